"""Files of steps: CSV with a header, NDJSON, or a text. The features of the model say how values are read."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import click
import orjson

Features = Sequence[Mapping[str, Any]]
"""The `inputs` of a model, from the service's description of it."""

FORMATS = {".csv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".txt": "text"}
file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
format_option = click.option(
    "--format", "form", type=click.Choice(["csv", "ndjson", "text"]),
    help="the format of FILE; by default from its suffix: .csv, .ndjson, .jsonl, .txt; ndjson for -",
)  # fmt: skip


def steps(file: str, form: str | None, features: Features) -> Iterator[Any]:
    """Yields the steps of `file`, or of stdin for `-`, as they arrive. Raises ValueError, which names the line."""
    form = form or ("ndjson" if file == "-" else FORMATS.get(Path(file).suffix.lower()))
    if form is None:
        raise ValueError(f"{file}: name its format with --format csv, ndjson or text")
    with click.open_file(file, encoding="utf-8") as lines:
        if form == "csv":
            yield from _csv(lines, features)
        elif form == "ndjson":
            yield from _ndjson(lines)
        else:
            while character := lines.read(1):
                yield character


def _ndjson(lines: IO[str]) -> Iterator[Any]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error


def _csv(lines: IO[str], features: Features) -> Iterator[dict[str, Any]]:
    """Yields the rows by feature name, without the columns that the model does not take, and warns about these."""
    rows = csv.DictReader(lines)
    names = [feature["name"] for feature in features]
    columns = rows.fieldnames or []
    if missing := [name for name in names if name not in columns]:
        raise ValueError(f"the header has no {', '.join(missing)}; the model takes {', '.join(names)}")
    if extra := [name for name in columns if name not in names]:
        click.echo(f"onward: columns that the model does not take are ignored: {', '.join(extra)}", err=True)
    for number, row in enumerate(rows, 2):
        yield {feature["name"]: _value(row[feature["name"]], feature, number) for feature in features}


def _value(text: str | None, feature: Mapping[str, Any], line: int) -> float | int | str | None:
    """Returns the value of a cell; None, a missing value, for an empty one."""
    if not text:
        return None
    if feature["kind"] == "category" and isinstance(feature["categories"][0], str):
        return text
    try:
        return int(text) if feature["kind"] == "category" else float(text)
    except ValueError:
        raise ValueError(f"line {line}: {text!r} ({feature['name']}) is not a number") from None
