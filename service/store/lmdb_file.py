"""The LMDB store's data file: validation before LMDB maps it, creation and growth.

LMDB trusts its file. If the file lacks a page that its meta pages name, a process that reads the page dies of SIGBUS,
and a page size of zero kills every process that opens the file with SIGFPE. So both are detected and refused here.

LMDB never writes in place, so even a deletion needs free pages. Therefore the file is longer than the part that LMDB
may use, by a reserve whose blocks are allocated. Once the file cannot grow, only deletion and expiry use the reserve.
"""

import os
import struct
import sys
from pathlib import Path

import lmdb

from onward.service.store.contract import RESTORE

DATA = "data.mdb"
FIRST_BYTES, LEAST_RESERVE = 2 * 2**20, 2**20
UNIT = 2**16
"""Sizes are multiples of the largest page."""

_MAGIC, _VERSION, _META_FLAG = struct.pack("=I", 0xBEEFC0DE), 1, 0x08
_META = struct.Struct("=8x2xH4x4sI16xI92xQQ")
"""A page's header and its meta data: flags, magic, version, page size, last page, transaction."""
_NEWER_HEADER_BYTES = 24  # in the format of LMDB 1.0; 16 in the format of 0.9
_PAGE_BYTES = frozenset(2**power for power in range(8, 17))


class UnusableFileError(OSError):
    """The file is not LMDB's, or is incomplete; the message names the fault and the remedy."""


def reserve_bytes(size: int) -> int:
    """Returns the size of the reserve in a file of `size` bytes."""
    return max(LEAST_RESERVE, size // 10 // UNIT * UNIT)


def create(folder: Path) -> None:
    """Creates an empty data file atomically: a process that is killed, or finds no room, leaves no partial file."""
    unfinished = folder / "unfinished.mdb"
    unfinished.unlink(missing_ok=True)
    lmdb.open(str(unfinished), subdir=False, lock=False, mode=0o600).close()
    unfinished.rename(folder / DATA)


def extend(file: int, size: int) -> None:
    """Extends the open data file to `size` bytes with allocated blocks. Raises OSError if there is no room."""
    before = os.fstat(file).st_size
    if size > before and sys.platform == "linux":
        os.posix_fallocate(file, before, size - before)
    elif size > before:
        os.ftruncate(file, size)


def validate(folder: Path) -> None:
    """Raises UnusableFileError if LMDB must not map the folder's data file, and OSError if it is unreadable."""
    size = (folder / DATA).stat().st_size
    with (folder / DATA).open("rb") as file:
        page_bytes, first = _meta(file.read(_META.size), size)
        file.seek(page_bytes)
        second_page_bytes, second = _meta(file.read(_META.size), size)
    if second_page_bytes != page_bytes:
        raise UnusableFileError(f"{DATA} is damaged: its two meta pages disagree on the page size; {RESTORE}")
    _, pages = max(first, second)
    if size < pages * page_bytes:
        raise UnusableFileError(
            f"{DATA} is cut short: it has {size} bytes, and its meta pages say {pages} pages of {page_bytes} bytes, "
            f"which are {pages * page_bytes}; {RESTORE}"
        )


def _meta(data: bytes, size: int) -> tuple[int, tuple[int, int]]:
    """Returns a meta page's page size, and its transaction's number with the file's number of pages after it."""
    if len(data) < _META.size:
        raise UnusableFileError(f"{DATA} is cut short: {size} bytes are less than its two meta pages; {RESTORE}")
    flags, magic, version, page_bytes, last_page, transaction = _META.unpack(data)
    if data[_NEWER_HEADER_BYTES:].startswith(_MAGIC):
        raise UnusableFileError(f"{DATA} is of LMDB 1.0, and this version of Onward reads LMDB 0.9's; {RESTORE}")
    if magic == _MAGIC and version != _VERSION:
        raise UnusableFileError(f"{DATA} has LMDB's format {version}, and Onward reads {_VERSION}; {RESTORE}")
    if magic != _MAGIC or flags != _META_FLAG or page_bytes not in _PAGE_BYTES:
        raise UnusableFileError(f"{DATA} is no data file of LMDB's, or its meta pages are damaged; {RESTORE}")
    return page_bytes, (transaction, last_page + 1)
