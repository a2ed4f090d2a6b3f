"""Files and live streams of steps, read as a model's manifest says, for a service and for sessions in this process.

A file is a table (text with separators, lines of JSON objects, Parquet, Arrow), lines of JSON that are steps as a
service takes them, or a text for a model of texts. Only tables need polars. Knows nothing of how steps are sent.
"""

import codecs
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import orjson

from onward.errors import DataError
from onward.model import texts
from onward.model.tables import text_files

if TYPE_CHECKING:
    from onward.client.local import LocalModel
    from onward.model.tables.inputs import StepLayout

StepFormat = Literal["csv", "ndjson", "parquet", "arrow", "text"]
"""The format of a file of steps; `csv` is a text with any separator, `text` that of a model of texts."""

STDIN = "standard input"


@dataclass(frozen=True, slots=True)
class SeriesSteps:
    """The steps of a series, in order of time, as sessions take them.

    name: the name of the series; None where no column tells series apart.
    """

    name: str | None
    steps: str | list[Any]
    """A text for a model of texts, or a list of steps, which have their values by the name of the feature."""


@dataclass(frozen=True, slots=True)
class StepFile:
    """The series of a file; `notes` say in words what was not as expected in it, and what was done."""

    series: list[SeriesSteps]
    notes: Sequence[str] = ()


def read_steps(
    source: str | PathLike[str] | IO[bytes],
    model: "LocalModel | Mapping[str, Any]",
    *,
    series: str | Iterable[str] | None = None,
    form: StepFormat | None = None,
) -> list[SeriesSteps]:
    """Returns the steps of each series in a file, read as the table that the model was trained on.

    source: a path, or a binary stream, which is read to its end. model: a bundle of `onward.load`, or a description by
    `Client.model`. series: the names of the series to return; a table without the column that tells series apart is
    the one that is named. form: by default by the end of the file's name. The rows of a series are ordered, repeated
    times and gaps resolved, and features of the calendar computed as in training. Raises DataError, which names the
    row and the column, and ImportError for a table if polars is not installed.
    """
    chosen = [series] if isinstance(series, str) else series
    return read(source, model, series=chosen, form=form).series


def read(
    source: str | PathLike[str] | IO[bytes],
    model: "LocalModel | Mapping[str, Any]",
    *,
    series: Iterable[str] | None = None,
    only: Collection[str] | None = None,
    form: StepFormat | None = None,
    single: bool = False,
) -> StepFile:
    """Returns what `read_steps` does, with notes.

    only: the features that are read; by default all. single: a table without the column that tells series apart is one
    series, also if none is named.
    """
    chosen = None if series is None else list(series)
    if isinstance(source, (str, PathLike)):
        name, opened = fspath(source), None
    else:
        name, opened = STDIN, io.BytesIO(source.read())
    form = _form(name, model, form)
    if form == "text":
        return StepFile([SeriesSteps(None, _text(name, opened, _unit(model)))])
    if form in (None, "ndjson") and (lines := _listed_steps(name, opened, declared=form is not None)) is not None:
        return StepFile([SeriesSteps(None, lines)])
    tables = _tables()
    layout = _layout(tables, model, only=only, single=single or (chosen is not None and len(chosen) == 1))
    table = tables.read(name if opened is None else opened, layout, form="text" if form == "csv" else form)
    found = [SeriesSteps(name, steps) for name, steps in table.series]
    return StepFile(found if chosen is None else _chosen(name, found, chosen), table.notes)


def _chosen(file: str, found: list[SeriesSteps], chosen: Sequence[str]) -> list[SeriesSteps]:
    """Returns the series of those names, in their order."""
    if len(found) == 1 and found[0].name is None:
        if len(chosen) != 1:
            raise DataError(f"{file}: has one series without a name, and not {', '.join(chosen)}")
        return [SeriesSteps(chosen[0], found[0].steps)]
    by_name = {series.name: series for series in found}
    if absent := [name for name in chosen if name not in by_name]:
        names = [str(name) for name in by_name]
        more = f" and {len(names) - 10} more" if len(names) > 10 else ""
        raise DataError(f"{file}: no series {', '.join(absent)}; it has {', '.join(names[:10])}{more}")
    return [by_name[name] for name in chosen]


class ArrivingSteps(Protocol):
    """Steps as the bytes of a stream arrive."""

    notes: Sequence[str]

    def feed(self, data: bytes, *, final: bool = False) -> Sequence[tuple[str | None, Any]]:
        """Returns the steps that are complete, each with the name of its series. Raises DataError."""


class StepFeed:
    """The steps of a live stream: `feed` takes bytes as they come, and the first of them tell the format."""

    def __init__(
        self, name: str, model: "LocalModel | Mapping[str, Any]", *, single: bool, form: StepFormat | None = None
    ) -> None:
        """single: a table without the column that tells series apart is one series. Raises DataError."""
        self.notes: Sequence[str] = ()
        self._name, self._model, self._single, self._form = name, model, single, _form(STDIN, model, form)
        if self._form in ("parquet", "arrow"):
            raise DataError(f"{name}: {self._form} is read from files, and not as it arrives")
        self._start = b""
        self._steps: ArrivingSteps | None = _TextStream(name, _unit(model)) if self._form == "text" else None

    def feed(self, data: bytes, *, final: bool = False) -> Sequence[tuple[str | None, Any]]:
        """Returns the steps that are complete, each with the name of its series. Raises DataError."""
        if self._steps is None:
            self._start += data
            if b"\n" not in self._start.lstrip() and b"\r" not in self._start.lstrip() and not final:
                return []
            data, self._start = self._start, b""
            self._steps = self._begin(data)
        steps = self._steps.feed(data, final=final)
        self.notes = self._steps.notes
        return steps

    def _begin(self, start: bytes) -> ArrivingSteps:
        if self._form in (None, "ndjson") and _lists_steps(start, declared=self._form is not None):
            return _JsonLines(self._name)
        tables = _tables()
        layout = _layout(tables, self._model, only=None, single=self._single)
        form = "text" if self._form == "csv" else self._form
        steps: ArrivingSteps = tables.StepStream(layout, name=self._name, form=form)
        return steps


class _TextStream:
    """The characters or bytes of a text."""

    def __init__(self, name: str, unit: texts.Unit) -> None:
        self.notes: Sequence[str] = ()
        self._name = name
        self._decoder = codecs.getincrementaldecoder("utf-8")() if unit == "characters" else None

    def feed(self, data: bytes, *, final: bool = False) -> Sequence[tuple[None, str | int]]:
        if self._decoder is None:
            return [(None, byte) for byte in data]
        try:
            return [(None, character) for character in self._decoder.decode(data, final)]
        except UnicodeDecodeError as error:
            raise DataError(f"{self._name}: {error.object[error.start : error.end]!r} is not UTF-8") from error


class _JsonLines:
    """Lines of JSON that are steps as a service takes them: lists, or values by themselves."""

    def __init__(self, name: str) -> None:
        self.notes: Sequence[str] = ()
        self._name, self._rows = name, 0
        self._decoder, self._records = text_files.Decoder(name, None), text_files.Records(name)

    def feed(self, data: bytes, *, final: bool = False) -> Sequence[tuple[None, Any]]:
        steps = []
        for line in self._records.feed(self._decoder.feed(data, final=final), final=final).split(b"\n"):
            if line.strip():
                self._rows += 1
                try:
                    steps.append((None, orjson.loads(line)))
                except orjson.JSONDecodeError as error:
                    raise DataError(f"{self._name}: row {self._rows}: not JSON: {error}") from error
        return steps


def _form(name: str, model: "LocalModel | Mapping[str, Any]", form: StepFormat | None) -> StepFormat | None:
    """Returns the format by which a file is read; None for that of a stream, which its first character tells."""
    reads_text = _text_unit(model) is not None
    if form == "text" and not reads_text:
        raise DataError(f"{name}: the model reads no text; the format of a table is csv, ndjson, parquet or arrow")
    if form is None and reads_text:
        return "ndjson" if name.lower().endswith((".ndjson", ".jsonl")) else "text"
    if form is not None or name == STDIN:
        return form
    try:
        found = text_files.format_of(name)
    except DataError as error:
        raise DataError(f"{error}; or name its format with --format") from None
    return "csv" if found == "text" else found


def _text_unit(model: "LocalModel | Mapping[str, Any]") -> texts.Unit | None:
    if isinstance(model, Mapping):
        unit: texts.Unit | None = model["inputs"][0].get("text")
        return unit
    return model.model.manifest.features[0].text


def _unit(model: "LocalModel | Mapping[str, Any]") -> texts.Unit:
    unit = _text_unit(model)
    assert unit is not None
    return unit


def _text(name: str, opened: IO[bytes] | None, unit: texts.Unit) -> str | list[Any]:
    with text_files.reading(name):
        content = texts.content(name, Path(name).read_bytes() if opened is None else opened.read(), unit)
    if not content:
        raise DataError(f"{name}: is empty")
    return content if isinstance(content, str) else list(content)


def _listed_steps(name: str, opened: IO[bytes] | None, *, declared: bool) -> list[Any] | None:
    """Returns the steps of lines of JSON that are no objects; None for a table."""
    feed = _JsonLines(name)
    with Path(name).open("rb") if opened is None else nullcontext(opened) as lines, text_files.reading(name):
        chunks = text_files.chunks(lines, name)
        start = b"".join(islice(chunks, 2))
        if not _lists_steps(start, declared=declared):
            lines.seek(0)
            return None
        steps = [step for chunk in (start, *chunks) for _, step in feed.feed(chunk)]
    return steps + [step for _, step in feed.feed(b"", final=True)]


def _lists_steps(start: bytes, *, declared: bool) -> bool:
    """Returns whether the first line is JSON of a step that has no names. declared: the format is lines of JSON."""
    lines = start.removeprefix(codecs.BOM_UTF8).split(maxsplit=0)
    line = lines[0].splitlines()[0] if lines else b""
    try:
        step = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return not isinstance(step, dict) and (declared or not isinstance(step, str))


def _tables() -> ModuleType:
    try:
        from onward.model.tables import inputs  # noqa: PLC0415  (texts and lines of JSON need no polars)
    except ModuleNotFoundError as error:
        if error.name != "polars":
            raise
        raise ImportError("a table is read by polars: pip install 'onward[tables]'", name="polars") from error
    return inputs


def _layout(
    tables: ModuleType, model: "LocalModel | Mapping[str, Any]", *, only: Collection[str] | None, single: bool
) -> "StepLayout":
    kind = tables.StepLayout
    layout: StepLayout = (
        kind.of_description(model) if isinstance(model, Mapping) else kind.of_manifest(model.model.manifest)
    )
    return replace(layout, only=only, single=single)
