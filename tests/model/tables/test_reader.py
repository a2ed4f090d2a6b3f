"""The one reader for files and live streams: separators, encodings, cells, rows and the errors that name them."""

import gzip
import io
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from onward.model.errors import DataError
from onward.model.tables.cells import Column
from onward.model.tables.reader import Reader, Rows, read
from onward.model.tables.settings import TableSettings

X = (Column("x"),)


def rows(content: str | bytes, columns: Sequence[Column] = X, **settings: Any) -> Rows:
    data = content.encode() if isinstance(content, str) else content
    return read(io.BytesIO(data), TableSettings.model_validate(settings), columns)


def values(content: str | bytes, columns: Sequence[Column] = X, **settings: Any) -> dict[str, list[Any]]:
    frame = rows(content, columns, **settings).frame
    return {column.name: frame[column.name].to_list() for column in columns}


def refusal(content: str | bytes, columns: Sequence[Column] = X, **settings: Any) -> str:
    with pytest.raises(DataError) as refused:
        rows(content, columns, **settings)
    return str(refused.value).removeprefix("standard input: ")


@pytest.mark.parametrize(("separator", "name"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "vertical")])
def test_the_separator_is_found_and_reported(separator: str, name: str) -> None:
    """The header has the wanted column under one separator only, whatever other cells contain."""
    table = rows(f"y{separator}x\n1{separator}2\n")
    assert table.frame["x"].to_list() == [2.0]
    assert table.found["separator"].startswith(name)


def test_a_separator_that_the_header_does_not_decide_is_refused() -> None:
    """The candidates are named; the setting decides."""
    message = refusal("x,y;z\n1,2;3\n", (Column("w"),))
    assert message.startswith("the separator may be comma (',') or semicolon (';'), and the first line is 'x,y;z'")
    assert message.endswith("set data.separator")
    assert values("x,y;z\n1,2;3\n", (Column("y;z", "text"),), separator=",") == {"y;z": ["2;3"]}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_ends_of_lines_and_byte_order_marks_do_not_matter(ends: str, encoding: str, size: int) -> None:
    """The same rows come from any of them, in whatever pieces the bytes arrive; blank lines at the end are skipped."""
    content = ends.join(["x;ort", '1,5;"Köln, am', 'Rhein"', "2;b", "", ""]).encode(encoding)
    settings = TableSettings(decimal=",", separator=";")
    reader = Reader("t", settings, (Column("x"), Column("ort", "category")))
    for start in range(0, len(content), size):
        reader.feed(content[start : start + size])
    reader.feed(b"", final=True)
    frame = reader.take().frame
    city = "Köln, am" + ("\n" if ends == "\r" else ends) + "Rhein"
    assert (frame["x"].to_list(), frame["ort"].to_list()) == ([1.5, 2.0], [city, "b"])


def test_an_encoding_is_set_or_refused_with_the_line() -> None:
    """Bytes that are not UTF-8 are never read as something else silently."""
    content = "x,ort\n1,Köln\n2,Ulm\n3,Jülich\n".encode("cp1252")
    columns = (Column("x"), Column("ort", "category"))
    assert values(content, columns, encoding="cp1252")["ort"] == ["Köln", "Ulm", "Jülich"]
    message = refusal(content, columns)
    assert message.startswith("line 2: b'\\xf6' is not UTF-8 (2 such lines")
    assert 'set data.encoding to that of the file, as "cp1252"' in message
    for order in ("utf-16-le", "utf-16-be"):
        wide = "x\n1\n".encode(order)
        assert f'null bytes: if it is UTF-16, set data.encoding = "{order}"' in refusal(wide)
        assert values(wide, encoding=order) == {"x": [1.0]}
        assert 'set data.encoding to "utf-16-le" or "utf-16-be"' in refusal(wide, encoding="utf-16")
    assert "line 3 has null bytes: it is no text" in refusal(b"x\n1\n\0\0\0\0")
    assert "no encoding is called 'latin-99'" in refusal(content, columns, encoding="latin-99")


FAULTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "an empty row": (
        "x,y\n1,2\n\n\n3,4\n\n",
        {},
        "row 2: is empty; only the end of a file may have empty rows: remove it (2 such",
    ),
    "an empty row with separators": ("x,y\n1,2\n,\n3,4\n,\n", {}, "row 2, column x: no value; in training, list a"),
    "a separator too many": ("x,y\n1,2,\n3,4,\n", {}, "row 1: has 3 cells, the header has 2: the separator at its end"),
    "too many cells": ("x,y\n1,2\n3,4,5\n", {}, "row 2: has 3 cells, the header has 2; the separator is the comma"),
    "too few cells": ("x,y\n1,2\n3\n4\n", {}, "row 2: has 1 cell, the header has 2 (2 such rows; also row 3)"),
    "a short and a long row": ("x,y\n1\n3,4,5\n", {}, "row 1: has 1 cell, the header has 2"),
    "a name twice": ("x,x\n1,2\n", {}, "two columns have one name: x; rename one of them"),
    "a decimal comma": ("x;y\n1,5;2\n", {}, "row 1, column x: '1,5' is not a number; set data.decimal = \",\""),
    "a decimal point": (
        "x;y\n1.5;2\n",
        {"decimal": ","},
        "row 1, column x: '1.5' is not a number; set data.decimal = \".\"",
    ),
    "a marker": (
        "x,y\n?,2\n1,1\n?,2\n",
        {},
        "row 1, column x: '?' is not a number (2 such rows; also row 3: '?'); if it stands for a missing value, set",
    ),
    "an empty column": ("x,y\n,2\n,4\n", {}, "column x: has no value in any of 2 rows"),
    "an empty cell": ("x,y\n1,2\n,4\n", {}, "row 2, column x: no value; in training, list a feature that may be"),
    "a blank cell of one column": ("x\n1\n\n3\n", {}, "row 2, column x: no value"),
    "two markers": (
        "x\nNA\n-\n1\n",
        {},
        "row 1, column x: 'NA' is not a number (2 such rows; also row 2: '-'); if they ",
    ),
    "words": (
        "x,y\nw1,2\nw2,2\n",
        {},
        "row 1, column x: 'w1' is not a number (2 such rows; also row 2: 'w2'); list a column",
    ),
    "a marker with digits": ("x\n1.#QNAN\n1\n", {}, "row 1, column x: '1.#QNAN' is not a number; if it stands for"),
    "a blank in the header": ("y, x\n1,2\n", {}, "no column x; it has y,  x; did you mean ' x'?"),
    "another blank": ("y,x\u00a0\n1,2\n", {}, "no column x; it has y, x\u00a0; did you mean 'x\\xa0'?"),
    "a header again": ("x,y\n1,2\nx,y\n", {}, "row 2, column x: 'x' is not a number; the row has the names of the"),
    "an open quote": ('y,x\n"a,1\nb,2\n', {}, "row 1: a quote is not closed"),
    "nothing": ("", {}, "is empty: a table begins with the names of its columns"),
    "a header": ("x\n", {}, "has no rows"),
    "another case": ("X,y\n1,2\n", {}, "no column x; it has X, y; did you mean 'X'?"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_table_is_refused_with_its_rows_and_the_setting(fault: str) -> None:
    """A refusal counts all such rows, names the first few, and names what helps."""
    content, settings, message = FAULTS[fault]
    assert refusal(content, **settings).startswith(message)


def test_missing_values_are_texts_and_numbers() -> None:
    """Numbers match by value; texts match as written, in categories too."""
    content = "x,c\n-9999.0,a\nNA,?\n3,\n-9999,NA\n"
    columns = (Column("x", nullable=True), Column("c", "category", nullable=True))
    found = values(content, columns, missing_values=["NA", "?", -9999])
    assert found == {"x": [None, None, 3.0, None], "c": ["a", None, None, None]}


def test_categories_are_text_as_written() -> None:
    """Leading zeros, 64-bit numbers, exponents and truth values stay what they are; a bundle's integers are numbers."""
    written = ["007", "18446744073709551615", "1E5", "True", "1.0"]
    content = "c\n" + "".join(f"{word}\n" for word in written)
    assert values(content, (Column("c", "category"),)) == {"c": written}
    assert values("c\n007\n18446744073709551615\n", (Column("c", "integer"),)) == {"c": [7, 18446744073709551615]}
    assert "row 3, column c: '1E5' is not a whole number, as the model's categories are (3 such" in refusal(
        content, (Column("c", "integer"),)
    )


def test_numbers_are_read_as_people_write_them() -> None:
    """Blanks around a number and truth values are read; a quote within a cell is a character."""
    assert values('x,y\n 1 ,a\n+2,b\ntrue,c\n.5,5" pipe\n') == {"x": [1.0, 2.0, 1.0, 0.5]}
    assert values('x\n" 1 000"\n', (Column("x", "category"),)) == {"x": [" 1 000"]}


def test_rows_without_a_cell_at_the_end_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spreadsheets write separators for rows that are empty, and editors blanks; what could be a row stays one."""
    content = "x,y\n1,2\n3,\n,\n  \n , \r\n,\n"
    assert values(content) == {"x": [1.0, 3.0]}
    assert values(content, (Column("x"), Column("y", nullable=True))) == {"x": [1.0, 3.0], "y": [2.0, None]}
    assert values("x,y\n1,2\n,\n", (Column("x", nullable=True),)) == {"x": [1.0, None]}
    assert values("t,x\n1,2\n,\n", (Column("x", nullable=True),), time="t") == {"x": [2.0]}
    monkeypatch.setattr("onward.model.tables.text_files.CHUNK", 5)
    assert values(content) == {"x": [1.0, 3.0]}
    assert refusal("x,y\n1,2\n\n\n3,4\n").startswith("row 2: is empty; only the end")
    assert values("x\n1\n\n\n3\n", (Column("x", nullable=True),)) == {"x": [1.0, None, None, 3.0]}


def test_lines_above_and_below_the_header_are_left_out_by_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal names the line that has the names of the columns, and the setting for a row of units."""
    content = "Station: 7; Berlin\n# version 2\n\nt;x\n[h];[m]\n1;2\n3;4\n"
    message = refusal(content, time="t")
    assert message == "line 4 has the names of the columns, and not line 1: set data.lines_above_header = 3"
    assert refusal(content, time="t", lines_above_header=3).endswith("set data.lines_below_header = 1")
    assert "'[m]' is not a number" in (message := refusal("x;y\n[m];h\n1;2\n"))
    assert message.endswith("; if the row has units, set data.lines_below_header = 1")
    for chunk in (1, 1000):
        monkeypatch.setattr("onward.model.tables.text_files.CHUNK", chunk)
        assert values(content, time="t", lines_above_header=3, lines_below_header=1) == {"x": [2.0, 4.0]}


THOUSANDS: dict[str, tuple[list[float], dict[str, Any], str]] = {
    "1.234,5 -2.001.000 7": ([1234.5, -2001000, 7], {"decimal": ",", "thousands": "."}, 'data.decimal = "," and data.'),
    "1,234.5 12 1,000": ([1234.5, 12, 1000], {"thousands": ","}, 'set data.thousands = ","'),
    "1'234.5 1\u2019000": ([1234.5, 1000], {"thousands": "'"}, 'set data.thousands = "\'"'),
    "1\u00a0234,5 1\u202f000,0": ([1234.5, 1000], {"decimal": ",", "thousands": " "}, 'data.thousands = " "'),
    "\u22121,5 1": ([-1.5, 1], {"decimal": ","}, 'set data.decimal = ","'),
    "12,345": ([12345], {"thousands": ","}, 'set data.decimal = ",", or data.thousands = ","'),
}


@pytest.mark.parametrize("written", THOUSANDS)
def test_numbers_with_separated_thousands_are_refused_with_the_setting_that_reads_them(written: str) -> None:
    """Groups of three digits are read by a setting only, because 12,345 may be either number."""
    numbers, settings, hint = THOUSANDS[written]
    content = "x;y\n" + "".join(f"{number};1\n" for number in written.split(" "))
    assert hint in refusal(content)
    assert values(content, **settings)["x"] == numbers
    assert "row 1, column x: '1,23' is not a number" in refusal("x;y\n1,23;1\n", thousands=",")


def test_the_thousands_and_the_decimal_mark_differ() -> None:
    """Settings under which 1.234 would have two meanings are refused."""
    with pytest.raises(ValidationError, match="thousands and decimal are both"):
        TableSettings(thousands=".")


def test_numbers_that_are_text_in_a_typed_file_are_read_as_those_of_a_text() -> None:
    """JSON has numbers in quotes, markers among numbers, and NaN as Python writes it; a NaN is a missing value."""
    content = '{"x":"1.5"}\n{"x":2}\n{"x":"NA"}\n{"x":NaN}\n{"x":null}\n'
    nullable = (Column("x", nullable=True),)
    assert values(content, nullable, missing_values=["NA"]) == {"x": [1.5, 2.0, None, None, None]}
    assert 'set data.missing_values = ["NA"]' in refusal(content, nullable)
    assert "row 2, column x: no value" in refusal("x,y\n1,2\nNaN,3\n")
    assert values("x,y\n1,2\nNaN,3\n", nullable) == {"x": [1.0, None]}


def test_whole_numbers_of_typed_files_are_categories_whatever_their_type(tmp_path: Path) -> None:
    """A data frame has floats where whole numbers are missing; numbers of both signs need 65 bits; dates are words."""
    columns = (Column("c", "category", nullable=True),)
    assert values('{"c":1.0}\n{"c":null}\n{"c":3}\n', columns) == {"c": [1, None, 3]}
    assert values('{"c":-1}\n{"c":18446744073709551615}\n', columns) == {"c": [-1, 2**64 - 1]}
    assert values('{"c":7}\n{"c":"a"}\n', columns) == {"c": ["7", "a"]}
    message = refusal('{"c":1.0}\n{"c":2.5}\n{"c":3.5}\n', columns)
    assert message.startswith("row 2, column c: '2.5' is neither a word nor a whole number of 64 bits")
    assert "(2 such rows; also row 3: '3.5')" in message
    for cells, expected in (
        (pl.Series([1.0, float("nan"), None]), [1, None, None]),
        (pl.Series([date(2024, 1, 31), None, None]), ["2024-01-31", None, None]),
        (pl.Series([2**64 - 1, 1, None], dtype=pl.Int128), [2**64 - 1, 1, None]),
    ):
        cells.to_frame("c").write_parquet(tmp_path / "t.parquet")
        assert read(tmp_path / "t.parquet", TableSettings(), columns).frame["c"].to_list() == expected
    pl.DataFrame({"c": pl.Series([2**64], dtype=pl.Int128)}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(DataError, match="'18446744073709551616' is neither a word nor a whole number of 64 bits"):
        read(tmp_path / "t.parquet", TableSettings(), columns)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"PK\3\4", "is no text but a zip archive, as those of Excel: unpack it, or write its sheet as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1", "is no text but a workbook of Excel"),
        (b"PAR1\x15", "is no text but a Parquet file: let its name end in .parquet"),
        (b"ARROW1\0\0", "is no text but an Arrow file: let its name end in .arrow"),
        (b"BZh91AY", "is no text but compressed by bzip2"),
        (b"\xfd7zXZ", "is no text but compressed by xz"),
        (b"(\xb5/\xfd", "is no text but compressed by zstd"),
        (b'{"x":1}\n', "is NDJSON: let its name end in .ndjson"),
        (b"<!DOCTYPE html>\n", "is a page of the web or XML"),
    ],
)
def test_another_format_with_the_name_of_a_text_is_named(tmp_path: Path, start: bytes, message: str) -> None:
    """The error names the way out, rather than a fault of the first line."""
    (tmp_path / "t.csv").write_bytes(start + bytes(20) * (not start.endswith(b"\n")))
    with pytest.raises(DataError) as refused:
        read(tmp_path / "t.csv", TableSettings(), X)
    assert str(refused.value).startswith(f"{tmp_path}/t.csv: {message}")


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.tsv", "t.txt", "t.csv.gz", "t.parquet", "t.arrow", "t.feather",
                                  "t.ipc", "t.ndjson", "t.JSONL", "t.ndjson.gz"])  # fmt: skip
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    """The end of a name says the format, in any case; `.gz` is decompressed."""
    frame = pl.DataFrame({"c": ["a", "b"], "x": [0.1, None], "t": ["2020-01-01T00:00:00", "2020-01-01T01:00:00"]})
    file, kind = tmp_path / name, name.lower().removesuffix(".gz").rpartition(".")[2]
    buffer = io.BytesIO()
    if kind == "parquet":
        frame.write_parquet(buffer)
    elif kind in ("arrow", "feather", "ipc"):
        frame.write_ipc(buffer)
    elif kind in ("ndjson", "jsonl"):
        frame.write_ndjson(buffer)
    else:
        frame.write_csv(buffer, separator="\t" if kind == "tsv" else ",")
    content = buffer.getvalue()
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    columns = (Column("x", nullable=True), Column("c", "category"))
    found = read(file, TableSettings(time="t"), columns).frame
    assert found.select("x", "c", "t").to_dict(as_series=False) == {
        "x": [0.1, None], "c": ["a", "b"], "t": [datetime(2020, 1, 1), datetime(2020, 1, 1, 1)],  # noqa: DTZ001
    }  # fmt: skip


def test_a_name_of_no_format_is_refused(tmp_path: Path) -> None:
    """The message lists the names that are read, and errors of reading name the file."""
    with pytest.raises(DataError, match=r"t\.xlsx: expected a table whose name ends in \.csv, \.tsv"):
        read(tmp_path / "t.xlsx", TableSettings(), X)
    with pytest.raises(DataError, match=r"absent\.csv: cannot be read: No such file"):
        read(tmp_path / "absent.csv", TableSettings(), X)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"x\n1\n" * 1000)[:-20])
    with pytest.raises(DataError, match=r"t\.csv\.gz: cannot be read: "):
        read(tmp_path / "t.csv.gz", TableSettings(), X)


def test_typed_files_have_their_own_types(tmp_path: Path) -> None:
    """Whole numbers of Parquet stay whole as categories, unless a bundle's categories are text."""
    pl.DataFrame({"c": pl.Series([1, 2**63 + 1], dtype=pl.UInt64), "d": [date(2020, 1, 1)] * 2, "f": [1.5, 2.0]}) \
        .write_parquet(tmp_path / "t.parquet")  # fmt: skip
    file = tmp_path / "t.parquet"
    assert read(file, TableSettings(), (Column("c", "category"),)).frame["c"].to_list() == [1, 2**63 + 1]
    assert read(file, TableSettings(), (Column("c", "text"),)).frame["c"].to_list() == ["1", str(2**63 + 1)]
    with pytest.raises(DataError, match=r"row 1, column f: '1.5' is neither a word nor a whole number"):
        read(file, TableSettings(), (Column("f", "category"),))
    with pytest.raises(DataError, match=r"row 1, column d: '2020-01-01' is not a number \(2 such rows; also row 2"):
        read(file, TableSettings(), (Column("d"),))


def test_objects_of_ndjson_are_rows() -> None:
    """A key that is left out is a missing value; a line that is no object is refused with its row."""
    columns = (Column("x", nullable=True), Column("c", "category"))
    assert values('{"x": 1, "c": 5}\n{"c": 6}\n{"x": 2.5, "c": 7}\n', columns) == {
        "x": [1.0, None, 2.5],
        "c": [5, 6, 7],
    }
    assert refusal('{"x": 1}\n[1]\n').startswith("row 2: b'[1]' is no object with the columns by name")
    assert refusal('{"x": 1}\n{"x":\n').startswith("row 2: not JSON: ")
    assert refusal('{"x": "a"}\n{"x": "b"}\n').startswith("row 1, column x: 'a' is not a number (2 such rows")
    assert refusal('{"y": 1}\n').startswith("no column x; it has y")


def test_a_stream_gives_its_rows_as_they_arrive() -> None:
    """A complete line is a row at once, with the number that it has in the whole stream."""
    reader = Reader("-", TableSettings(time="t", time_zone="Europe/Berlin"), X)
    reader.feed(b"t,x\n2020-01-01 00:00,1\n2020-01")
    assert reader.take().frame["x"].to_list() == [1.0]
    reader.feed(b"-01 01:00,2\n")
    table = reader.take()
    assert table.frame["x"].to_list() == [2.0]
    assert table.axis is not None
    assert table.frame[table.axis.row].to_list() == [2]
    reader.feed(b"2020-01-01 02:00,oops\n")
    with pytest.raises(DataError, match="row 3, column x: 'oops' is not a number"):
        reader.take()


def test_numbers_have_the_bits_that_python_reads() -> None:
    """A number of a text is the nearest double, with a decimal comma too."""
    numbers = np.random.default_rng(0).standard_normal(3000) * 10.0 ** np.random.default_rng(1).integers(
        -300, 300, 3000
    )
    text = "".join(f"{number!r}\n" for number in numbers.tolist())
    assert values("x\n" + text)["x"] == numbers.tolist()
    assert values("x\n" + text.replace(".", ","), decimal=",")["x"] == numbers.tolist()


def test_large_files_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, quotes and refusals are the same where a file is read in small parts."""
    monkeypatch.setattr("onward.model.tables.text_files.CHUNK", 37)
    content = "x,c\n" + "".join(f'{number},"a\n{number}"\n' for number in range(200))
    found = values(content, (Column("x"), Column("c", "category")))
    assert found == {"x": [float(number) for number in range(200)], "c": [f"a\n{number}" for number in range(200)]}
    assert refusal(content + "1,2,3\n" * 2).startswith("row 201: has 3 cells, the header has 2")
    assert "(2 such rows; also row 202)" in refusal(content + "1,2,3\n" * 2)
