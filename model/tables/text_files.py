"""Text files as records: compression, encodings, byte-order marks, ends of lines, quotes and separators.

Owns the way from bytes to whole records in UTF-8, for files and for live streams. Knows nothing of the cells' meaning.
"""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from onward.model.errors import DataError

Format = Literal["text", "ndjson", "parquet", "arrow"]
FORMATS: dict[str, Format] = {
    ".csv": "text", ".tsv": "text", ".tab": "text", ".txt": "text", ".ndjson": "ndjson", ".jsonl": "ndjson",
    ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
"""The format of a table by the end of its name, in any case; `.gz` may follow those of texts."""

MOST_ABOVE = 50
"""The lines in which the names of columns are searched for, if the first one has them not."""

SEPARATORS = (",", ";", "\t", "|")
"""The characters of which a separator is found."""

CHUNK = 1 << 22
"""The bytes of a file that are read at once."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXPORT = "write its sheet as CSV"
_OTHER_FORMATS = {
    b"PK\3\4": f"a zip archive, as those of Excel: unpack it, or {_EXPORT}",
    b"\xd0\xcf\x11\xe0": f"a workbook of Excel: {_EXPORT}",
    b"PAR1": "a Parquet file: let its name end in .parquet",
    b"ARRO": "an Arrow file: let its name end in .arrow",
    b"BZh": "compressed by bzip2: unpack it, or use gzip",
    b"\xfd7zX": "compressed by xz: unpack it, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it, or use gzip",
    b"\x89PNG": "an image",
    b"%PDF": "a PDF",
    b"SQLi": "a SQLite database",
    b"\x89HDF": "an HDF5 file",
}
"""Formats that files with the name of a text have sometimes, by their first bytes."""
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar", " ": "blank"}
_QUOTE, _NEWLINE, _RETURN, _FIRST_OF_TEXT = b'"\n\r\t'
_SAMPLE = 20
"""The records by which a separator is found where the names of columns do not decide."""


def format_of(file: str) -> Format:
    """Returns the format of a file by its name. Raises DataError for a name of no format."""
    path = Path(file)
    compressed = path.suffix.lower() == ".gz"
    form = FORMATS.get(Path(path.stem).suffix.lower() if compressed else path.suffix.lower())
    if form is None or (compressed and form not in ("text", "ndjson")):
        raise DataError(
            f"{file}: expected a table whose name ends in {', '.join(FORMATS)}, or in .gz after one of a text"
        )
    return form


def chunks(opened: IO[bytes], name: str) -> Iterator[bytes]:
    """Yields the bytes of a file, decompressed if they are a gzip file's. Raises DataError."""
    with reading(name):
        start = opened.read(2)
        if start == b"\x1f\x8b":
            unzipped = gzip.GzipFile(fileobj=_Joined(start, opened))
            while data := unzipped.read(CHUNK):
                yield data
            return
        yield start
        while data := opened.read(CHUNK):
            yield data


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Raises DataError for a file that cannot be read in the block."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{name}: cannot be read: {reason}") from error


class _Joined(io.RawIOBase):
    """A file of which the first bytes have been read."""

    def __init__(self, start: bytes, rest: IO[bytes]) -> None:
        self._start, self._rest = start, rest

    def read(self, size: int = -1) -> bytes:
        start, self._start = self._start, b""
        return start + self._rest.read(size - len(start) if size > 0 else size)


def separator_name(separator: str) -> str:
    """Returns a separator in words."""
    return f"{_NAMES[separator]} ({separator!r})" if separator in _NAMES else repr(separator)


class Decoder:
    """The text of a file: bytes become UTF-8 without a byte-order mark, as they arrive.

    `encoding` is the one that was set or found. Bytes that are not of the encoding are refused at the end of the file
    with the number of such lines; in a live stream, at once.
    """

    def __init__(self, name: str, encoding: str | None) -> None:
        self._name, self._set, self.encoding = name, encoding, encoding or "utf-8"
        self._start: bytes | None = b""
        self._incremental: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """Returns the UTF-8 of the bytes that are complete. Raises DataError."""
        if self._start is not None:
            self._start += data
            if len(self._start) < 4 and not final:
                return b""
            data, self._start = self._begin(self._start), None
        if self._incremental is None:
            return data
        try:
            return self._incremental.decode(data, final).encode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self._name}: {error.object[error.start : error.end]!r} is not {self.encoding}: "
                "set data.encoding to the file's"
            ) from error
        except UnicodeError as error:  # UTF-16 or UTF-32 in an order of bytes that nothing says
            raise DataError(
                f"{self._name}: has no byte-order mark, which {self.encoding} needs: set data.encoding to "
                f'"{self.encoding}-le" or "{self.encoding}-be"'
            ) from error

    def _begin(self, start: bytes) -> bytes:
        if any(byte < _FIRST_OF_TEXT for byte in start[:1024]):
            for signature, what in _OTHER_FORMATS.items():
                if start.startswith(signature):
                    raise DataError(f"{self._name}: is no text but {what}")
        mark, found = next(((mark, found) for mark, found in _MARKS if start.startswith(mark)), (b"", None))
        if self._set is None:
            self.encoding = found or "utf-8"
        try:
            codec = codecs.lookup(self.encoding)
        except LookupError:
            raise DataError(f"{self._name}: data.encoding: no encoding is called {self.encoding!r}") from None
        if codec.name == "utf-8":
            return start.removeprefix(codecs.BOM_UTF8)
        if found and codecs.lookup(found).name in codec.name and codec.name[-2:] in ("le", "be"):
            start = start.removeprefix(mark)
        if self._set is None or mark != codecs.BOM_UTF8:
            self._incremental = codec.incrementaldecoder()
        else:
            raise DataError(f"{self._name}: its byte-order mark is that of UTF-8, not of data.encoding {self._set!r}")
        return start


@dataclass(slots=True)
class Records:
    """Whole records of a text, as its bytes arrive: a line, or several where a quoted cell has line ends.

    Where a file has carriage returns alone, they become line feeds.
    """

    name: str
    _pending: list[bytes] = field(default_factory=list)
    _inside: int = 0
    _lines: int = 0
    _returns: bool | None = None

    def feed(self, data: bytes, *, final: bool = False) -> bytes:
        """Returns the records that are complete, each with its line end. Raises DataError for what is not UTF-8."""
        data = self._unified(data, final=final)
        end = self._end(data)
        if end or final:
            block = b"".join((*self._pending, data if final else data[:end]))
            self._pending = [] if final else [data[end:]]
            if final and block and not block.endswith(b"\n"):
                block += b"\n"
            return self._checked(block)
        self._pending.append(data)
        return b""

    def _unified(self, data: bytes, *, final: bool) -> bytes:
        if self._returns is None:
            data = b"".join((*self._pending, data))
            self._pending = []
            returned = data.find(b"\r")
            if b"\n" in data or (0 <= returned < len(data) - 1) or final:
                self._returns = b"\n" not in data and returned >= 0
        return data.replace(b"\r", b"\n") if self._returns else data

    def _end(self, data: bytes) -> int:
        """Returns the number of bytes up to the last line end outside of quotes."""
        if not self._inside and b'"' not in data:
            return data.rfind(b"\n") + 1
        array = np.frombuffer(data, np.uint8)
        outside = _outside_quotes(array, self._inside)
        ends = np.flatnonzero((array == _NEWLINE) & outside)
        self._inside ^= data.count(b'"') & 1
        return int(ends[-1]) + 1 if len(ends) else 0

    def _checked(self, block: bytes) -> bytes:
        if (null := block.find(b"\0")) >= 0:
            if self._lines or null > 1:
                line = self._lines + 1 + block.count(b"\n", 0, null)
                raise DataError(f"{self.name}: line {line} has null bytes: it is no text")
            encoding = "utf-16-be" if null == 0 else "utf-16-le"
            raise DataError(f'{self.name}: has null bytes: if it is UTF-16, set data.encoding = "{encoding}"')
        if not block.isascii():
            try:
                block.decode()
            except UnicodeDecodeError as error:
                line = self._lines + 1 + block.count(b"\n", 0, error.start)
                wrong = sum(not _is_utf8(text) for text in block.split(b"\n"))
                shown = block[error.start : error.start + 1]
                raise DataError(
                    f"{self.name}: line {line}: {shown!r} is not UTF-8 ({wrong:,} such lines so far): set "
                    'data.encoding to that of the file, as "cp1252"'
                ) from error
        self._lines += block.count(b"\n")
        return block


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _outside_quotes(array: NDArray[np.uint8], inside: int = 0) -> NDArray[np.bool_]:
    quotes = np.cumsum(array == _QUOTE, dtype=np.uint8)
    outside: NDArray[np.bool_] = (quotes + np.uint8(inside)) & 1 == 0  # a quote in a quoted cell is written twice
    return outside


@dataclass(frozen=True, slots=True)
class Shape:
    """The records of a block: the rows that are blank lines, and those with another number of cells than the header.

    The indices count from 0. `trailing` blank lines at the end of the block are neither.
    """

    rows: int
    trailing: int
    blank: NDArray[np.int64]
    ragged: dict[int, int]
    """The number of cells by row."""


def shape(block: bytes, separator: str, width: int) -> Shape:
    """Returns the shape of a block of whole records under a header of `width` cells."""
    array = np.frombuffer(block, np.uint8)
    newline, between = array == _NEWLINE, array == ord(separator)
    quoted = b'"' in block
    if quoted:
        outside = _outside_quotes(array)
        newline &= outside
        between &= outside
    ends, separators = np.flatnonzero(newline), np.flatnonzero(between)
    rows, per_row = len(ends), width - 1
    is_closed = not quoted or block.count(b'"') % 2 == 0
    if per_row and is_closed and len(separators) == rows * per_row:
        first, last = separators[::per_row], separators[per_row - 1 :: per_row]
        if (last < ends).all() and (first[1:] > ends[:-1]).all():
            return Shape(rows, 0, np.zeros(0, np.int64), {})
    if quoted:  # a quote within a cell that is not quoted is a character, which only a parser can tell
        records = csv.reader(io.StringIO(block.decode(), newline=""), delimiter=separator)
        counts = np.array([len(record) for record in records], np.int64)
        is_blank = counts == 0
    else:
        starts = np.append(0, ends[:-1] + 1)[:rows]
        counts = np.diff(np.searchsorted(separators, ends), prepend=0) + 1
        is_blank = (ends == starts) | ((ends == starts + 1) & (array[starts] == _RETURN))
    rows = len(counts)
    trailing = rows if is_blank.all() else int(is_blank[::-1].argmin())
    rows -= trailing
    is_blank, counts = is_blank[:rows], counts[:rows]
    ragged = {int(row): int(counts[row]) for row in np.flatnonzero((counts != width) & ~is_blank)}
    return Shape(rows, trailing, np.flatnonzero(is_blank), ragged)


def without_lines(number: int, block: bytes) -> tuple[int, bytes]:
    """Returns how many of the lines are still to come, and the block without those that it has."""
    while number and block:
        block = block.partition(b"\n")[2]
        number -= 1
    return number, block


def without_empty_end(block: bytes, separator: str) -> bytes:
    """Returns a block of whole records with blank lines for the last rows that have only separators and blanks."""
    content = len(block.rstrip(b" \t\r\n" + separator.encode()))
    end = block.find(b"\n", content) + 1 if content else 0
    return block[:end] + b"\n" * block.count(b"\n", end)


def split_header(block: bytes) -> tuple[bytes, bytes]:
    """Returns the first record that is not blank, and the rest."""
    start = 0
    while block[start : start + 1] in (b"\n", b"\r"):
        start += 1
    array = np.frombuffer(block, np.uint8)[start:]
    ends = np.flatnonzero((array == _NEWLINE) & _outside_quotes(array))
    end = start + int(ends[0]) + 1 if len(ends) else len(block)
    return block[start:end], block[end:]


def cells(record: bytes | str, separator: str) -> list[str]:
    """Returns the cells of one record."""
    text = record.decode() if isinstance(record, bytes) else record
    return next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])


def announced_separator(header: bytes) -> str | None:
    """Returns the separator of a first line such as `sep=;`, which spreadsheets write and read."""
    line = re.fullmatch(rb"sep=(.)\r?\n", header)
    return line.group(1).decode() if line else None


def find_separator(name: str, header: bytes, rest: bytes, required: Collection[str], decimal: str) -> str:
    """Returns the separator under which the header has the required columns. Raises DataError if none is found.

    If there are no such columns under any, it is the one that divides the first records into equally many cells, so
    that the message about absent columns names those that are there.
    """
    present = [mark for mark in SEPARATORS if mark in header.decode()]
    if not present:
        return ";" if decimal == "," else ","
    if len(present) == 1:
        return present[0]
    naming = [mark for mark in present if set(required) <= set(cells(header, mark))]
    if len(naming) == 1:
        return naming[0]
    records: Sequence[bytes] = rest[:100_000].split(b"\n")[:_SAMPLE]
    sample = [line for line in records if line.strip()]
    dividing = [
        mark for mark in naming or present if {len(cells(line, mark)) for line in sample} <= {len(cells(header, mark))}
    ]
    if len(dividing) == 1:
        return dividing[0]
    raise DataError(
        f"{name}: the separator may be {' or '.join(separator_name(mark) for mark in dividing or naming or present)}, "
        f"and the first line is {header.decode().rstrip()[:200]!r}: set data.separator"
    )
