"""Texts as characters and as bytes, and the strings of Python files."""

from pathlib import Path
from typing import Any

import pytest

from onward.training.config import Data
from onward.training.data import datasets
from onward.training.data.datasets import Dataset
from onward.training.errors import DataError


def load(file: Path, text: str = "characters", **keys: Any) -> Dataset:
    return datasets.load(file, Data.model_validate({"path": file.name, "text": text} | keys))


def written(tmp_path: Path, content: str | bytes, name: str = "t.txt") -> Path:
    file = tmp_path / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def read(dataset: Dataset) -> str:
    """Returns the text, decoded from the indices."""
    categories = dataset.features[0].categories
    tokens = [categories[int(index)] for index in dataset.series[0].values[:, 0]]
    return "".join(token if isinstance(token, str) else chr(token) for token in tokens)


TEXT = "naïve \N{SNOWMAN}\r\n\N{GRINNING FACE} \x00\t" * 9


def test_characters_are_code_points(tmp_path: Path) -> None:
    """Characters beyond the basic plane and line ends stay as they are; the one feature states the unit of the text."""
    dataset = load(written(tmp_path, TEXT))
    assert read(dataset) == TEXT
    (feature,) = dataset.features
    assert (feature.name, feature.kind, feature.text) == ("token", "category", "characters")
    assert feature.categories == tuple(sorted(set(TEXT)))
    (series,) = dataset.series
    test_steps = int(0.15 * len(TEXT))
    assert (series.validation_from, series.test_from) == (len(TEXT) - 2 * test_steps, len(TEXT) - test_steps)


def test_any_bytes_are_accepted(tmp_path: Path) -> None:
    """All 256 values have an index, the value itself, whether they occur or not, and the file need not be UTF-8."""
    content = bytes([0xFF, 0xFE, 0, 10, 200]) * 5
    dataset = load(written(tmp_path, content), "bytes")
    assert dataset.features[0].categories == tuple(range(256))
    assert dataset.features[0].text == "bytes"
    assert dataset.series[0].values[:, 0].tolist() == list(content)
    assert bytes(int(x) for x in load(written(tmp_path, TEXT), "bytes").series[0].values[:, 0]).decode() == TEXT


@pytest.mark.parametrize("name", ["t.txt", "t.py"])
def test_the_error_for_invalid_utf_8_names_the_byte(name: str, tmp_path: Path) -> None:
    """The error has the offset of the first wrong byte, and what to do."""
    file = written(tmp_path, b"a\n" * 20 + b"\xe9bc\n", name)
    with pytest.raises(DataError) as refused:
        load(file)
    advice = '; with text = "bytes" any file is accepted' if name == "t.txt" else ""
    assert str(refused.value) == f"{file}: byte 40: not UTF-8{advice}"


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt: cannot be read: No such file"):
        load(tmp_path / "absent.txt")


def test_characters_outside_the_vocabulary_are_refused_or_unknown(tmp_path: Path) -> None:
    """The error for a character that training lacks has its line; with `unknown` it gets the index after the last."""
    text = "ab\n" * 30 + "ab\naXb\n"
    file = written(tmp_path, text)
    with pytest.raises(DataError) as refused:
        load(file)
    assert str(refused.value) == (
        f"{file}: line 32: 'X' does not occur in the training part; with unknown = true it is accepted"
    )
    dataset = load(file, unknown=True)
    assert dataset.features[0].category_count == 4
    assert dataset.series[0].values[-4:, 0].tolist() == [1, 3, 2, 0]
    rare = load(written(tmp_path, "q" + text), unknown=True, min_count=2)
    assert rare.features[0].categories == ("\n", "a", "b")
    assert rare.series[0].values[:4, 0].tolist() == [3, 1, 2, 0]


def test_the_text_of_a_python_file_is_its_strings(tmp_path: Path) -> None:
    """The text is every string constant, docstrings included, in order; code and comments are left out."""
    source = '"""Docs."""\n# comment\nnumber = 12345\nx = {"one": "two", "b": b"bytes"}\n' + 's = "é" "joined"\n'
    file = written(tmp_path, source, "m.py")
    lines = read(load(file, "bytes")).encode("latin-1").decode().split("\n")
    assert lines[0] == "Docs."
    assert sorted(lines) == sorted(["Docs.", "one", "two", "b", "éjoined"])


def test_invalid_python_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "x = 1\ny = = 2\n", "m.py")
    with pytest.raises(DataError, match=r"m\.py: line 2: not Python: "):
        load(file)


@pytest.mark.parametrize("text", ["characters", "bytes"])
def test_a_lone_surrogate_in_a_string_is_refused(text: str, tmp_path: Path) -> None:
    """Python's strings may hold lone surrogates, which UTF-8 cannot encode."""
    file = written(tmp_path, 'x = "a" * 9\ny = "b\\ud800c"\n', "m.py")
    with pytest.raises(DataError) as refused:
        load(file, text)
    assert str(refused.value) == f"{file}: a string constant has '\\ud800', which is not a character"


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.txt: the file has 3 steps"):
        load(written(tmp_path, "abc"))


def test_the_hash_changes_with_a_character(tmp_path: Path) -> None:
    """The hash covers the bytes of the file."""
    first, second = (load(written(tmp_path, text)).sha256 for text in ("abab" * 9, "abab" * 8 + "abaa"))
    assert first != second
