"""The LMDB store's data file beneath LMDB: whether it may be mapped, how it is made and how it grows.

LMDB trusts its file. A page that its meta pages name and that the file lacks kills with SIGBUS whichever process reads
it, and a page size of zero kills with SIGFPE whichever process opens it. So both are refused before.

LMDB writes nothing in place: a deletion needs free pages too. So the file is longer than what LMDB may use of it, by a
reserve whose blocks are allocated, and which only deletion and expiry may use once the file cannot grow any more.
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
"""Sizes are multiples of it: the largest page."""

_MAGIC, _VERSION, _META_FLAG = struct.pack("=I", 0xBEEFC0DE), 1, 0x08
_META = struct.Struct("=8x2xH4x4sI16xI92xQQ")
"""A page's header and the meta data: flags, magic, version, page size, last page, transaction."""
_NEWER_HEADER_BYTES = 24  # in the format of LMDB 1.0; here they are 16
_PAGE_BYTES = frozenset(2**power for power in range(8, 17))


class UnusableFileError(OSError):
    """The file cannot be LMDB's, or is not whole; the message says what is wrong and what to do."""


def reserve_bytes(size: int) -> int:
    """Of a file of that size, what only deletion and expiry may use."""
    return max(LEAST_RESERVE, size // 10 // UNIT * UNIT)


def make(folder: Path) -> None:
    """Makes an empty data file, at once in full: whoever is killed meanwhile, or finds no room, leaves none."""
    unfinished = folder / "unfinished.mdb"
    unfinished.unlink(missing_ok=True)
    lmdb.open(str(unfinished), subdir=False, lock=False, mode=0o600).close()
    unfinished.rename(folder / DATA)


def extend(file: int, size: int) -> None:
    """Makes the open data file so long, with blocks of its own. Raises OSError where there is no room for that."""
    before = os.fstat(file).st_size
    if size > before and sys.platform == "linux":
        os.posix_fallocate(file, before, size - before)
    elif size > before:
        os.ftruncate(file, size)


def examine(folder: Path) -> None:
    """Raises UnusableFileError where LMDB must not map the folder's data file, and OSError where it is unreadable."""
    size = (folder / DATA).stat().st_size
    with (folder / DATA).open("rb") as file:
        page_bytes, first = _meta(file.read(_META.size), size)
        file.seek(page_bytes)
        other_bytes, second = _meta(file.read(_META.size), size)
    if other_bytes != page_bytes:
        raise UnusableFileError(f"{DATA} is damaged: its two meta pages disagree on the page size; {RESTORE}")
    _, pages = max(first, second)
    if size < pages * page_bytes:
        raise UnusableFileError(
            f"{DATA} is cut short: it has {size} bytes, and its meta pages say {pages} pages of {page_bytes} bytes, "
            f"which are {pages * page_bytes}; {RESTORE}"
        )


def _meta(data: bytes, size: int) -> tuple[int, tuple[int, int]]:
    """What a meta page says: the page size; its transaction's number and how many pages the file has by then."""
    if len(data) < _META.size:
        raise UnusableFileError(f"{DATA} is cut short: {size} bytes are less than its two meta pages; {RESTORE}")
    flags, magic, version, page_bytes, last_page, transaction = _META.unpack(data)
    if data[_NEWER_HEADER_BYTES:].startswith(_MAGIC):
        raise UnusableFileError(f"{DATA} is of LMDB 1.0, and this version of Onward reads LMDB 0.9's; {RESTORE}")
    if magic == _MAGIC and version != _VERSION:
        raise UnusableFileError(f"{DATA} is of LMDB's format {version}, and Onward reads {_VERSION}; {RESTORE}")
    if magic != _MAGIC or flags != _META_FLAG or page_bytes not in _PAGE_BYTES:
        raise UnusableFileError(f"{DATA} is no data file of LMDB's, or its meta pages are damaged; {RESTORE}")
    return page_bytes, (transaction, last_page + 1)
