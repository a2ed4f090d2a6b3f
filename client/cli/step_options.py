"""The options of commands that read files of steps, and their notes about it."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any

import click

from onward.client import step_files
from onward.client.step_files import SeriesSteps, StepFormat

file_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
format_option = click.option(
    "--format", "form", type=click.Choice(["csv", "ndjson", "parquet", "arrow", "text"]),
    help="the format of FILE; by default by the end of its name, for - by its first character. csv: any text with "
    "separators; text: for a model of texts",
)  # fmt: skip
series_option = click.option(
    "--series", multiple=True, metavar="NAME",
    help="only the series NAME of FILE; may be given several times. A file without the column that tells series apart "
    "is the one that is named",
)  # fmt: skip


def read(
    file: str,
    model: Any,
    *,
    series: Sequence[str] = (),
    form: StepFormat | None = None,
    only: Sequence[str] | None = None,
    single: bool = False,
) -> list[SeriesSteps]:
    """Returns the series of a file, or of stdin for `-`, and prints what was not as expected in it."""
    source: IO[bytes] | str = file
    if is_live(file):
        source = io.BytesIO(b"".join(arriving(file)))
    found = step_files.read(source, model, series=series or None, only=only, form=form, single=single)
    print_notes(file, found.notes)
    return found.series


def print_notes(file: str, notes: Sequence[str]) -> None:
    """Writes what was not as expected in a file to stderr."""
    for note in notes:
        click.echo(f"onward: {step_files.STDIN if file == '-' else file}: {note}", err=True)


def is_live(file: str) -> bool:
    """Returns True for stdin and for a named pipe, whose bytes may be still to come."""
    return file == "-" or not Path(file).is_file()


def arriving(file: str) -> Iterator[bytes]:
    """Yields the bytes of a live stream as they arrive."""
    if file != "-":
        with Path(file).open("rb", buffering=0) as opened:
            yield from _reads(opened)
        return
    yield from _reads(sys.stdin.buffer)


def _reads(stream: IO[bytes]) -> Iterator[bytes]:
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        yield stream.read()
        return
    while data := os.read(descriptor, 1 << 16):  # without the lock of a buffer, so that an interrupt can end it
        yield data


def batches(
    file: str, model: Any, *, series: Sequence[str], single: bool, form: StepFormat | None
) -> Iterator[list[tuple[str | None, Any]]]:
    """Yields the steps of a live stream that arrive together, each with its series. Raises DataError."""
    feed = step_files.StepFeed(
        step_files.STDIN if file == "-" else file, model, single=single or len(series) == 1, form=form
    )
    printed = 0
    for data in chain(arriving(file), [b""]):
        steps = feed.feed(data, final=not data)
        if steps or not data:
            print_notes(file, feed.notes[printed:])
            printed = len(feed.notes)
        if len(series) == 1:
            steps = [(series[0] if name is None else name, step) for name, step in steps]
        if chosen := [(name, step) for name, step in steps if not series or name in series]:
            yield chosen
