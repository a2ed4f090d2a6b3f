"""What the commands share: where the service is, how they end, and how answers are written for people and programs.

Exit statuses: 0 done, 1 refused or wrong, 2 usage (click's own), 3 the service cannot be reached.
"""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click
import numpy as np
import orjson
from numpy.typing import NDArray

from onward.client.errors import Problem, UnreachableError
from onward.client.results import Forecast, Outputs, Prediction, Predictions
from onward.client.transport import address
from onward.model.manifest import BundleError

if TYPE_CHECKING:
    from onward.client.sync_client import Client

URL = "http://127.0.0.1:8000"
REFUSED, UNREACHABLE = 1, 3
PATIENCE_S = 10.0
"""Somebody may be waiting at a terminal."""
json_option = click.option("--json", "as_json", is_flag=True, help="for programs: JSON, a document or a line each")


def _url(_context: click.Context, _option: click.Parameter, url: str) -> str:
    try:
        return address.service(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


url_option = click.option(
    "--url", envvar="ONWARD_URL", default=URL, show_default=True, show_envvar=True, callback=_url,
    help="where the service is",
)  # fmt: skip


def talking(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a client as its first argument, `--url` and `--json`, and its failures as exit statuses.

    The key is taken from ONWARD_API_KEY alone: an argument would be seen in the list of processes.
    """

    @url_option
    @json_option
    @functools.wraps(command)
    def run(*, url: str, **options: Any) -> None:
        with failing(url), connected(url) as client:
            command(client, **options)

    return run


def connected(url: str) -> "Client":
    try:
        from onward.client.sync_client import Client
    except ModuleNotFoundError as error:
        fail(f"this needs {error.name}: pip install 'onward[client]'")
    return Client(url, key(), patience=PATIENCE_S)


def key() -> str | None:
    return os.environ.get("ONWARD_API_KEY") or None


@contextmanager
def failing(url: str) -> Iterator[None]:
    """Reports what goes wrong inside on stderr, in one line, and ends with its exit status. url: of the service."""
    try:
        yield
    except UnreachableError as error:
        fail(f"{url}: {error}; start one with `onward serve`, or name another with --url or ONWARD_URL", UNREACHABLE)
    except Problem as error:
        fail(f"{error} [{error.name or error.status}]")
    except (ValueError, BundleError) as error:
        fail(str(error))


def fail(message: str, status: int = REFUSED) -> NoReturn:
    click.echo(f"onward: {message}", err=True)
    sys.exit(status)


# For programs


def echo_json(content: Any) -> None:
    """One line. numpy's numbers are as short as their 32 bits allow."""
    click.echo(orjson.dumps(content, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY))


def plain(told: Outputs) -> dict[str, Any]:
    """As HTTP has it."""
    arrays = {name: np.ascontiguousarray(values) for name, values in told.items()}
    if isinstance(told, Forecast):
        more = {"seed": told.seed, "samples": told.samples, "levels": list(told.levels) or None}
        return {"step": told.step, "forecast": arrays} | {name: one for name, one in more.items() if one is not None}
    assert isinstance(told, (Prediction, Predictions))
    seen: dict[str, Any] = {"surprise": told.surprise, "error": told.error, "anomaly": told.anomaly}
    found = {name: _single(one) for name, one in seen.items() if one is not None}
    if told.interval is not None:
        found["interval"] = {"low": told.interval.low, "high": told.interval.high}
    return {"step": told.step, "predictions": arrays} | found


def _single(value: Any) -> Any:
    """A number as short as its 32 bits allow."""
    return np.float32(value) if isinstance(value, float) else value


# For people


def echo_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns as wide as they need to be; numbers to the right, to five significant digits."""
    written = [[_written(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *written, strict=True)]
    numbers = [bool(written) and all(_is_number(row[place]) for row in written) for place in range(len(names))]
    for row in [list(names), *written]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def echo_line(values: Iterable[object]) -> None:
    """One of many to come, at once: tabs between."""
    click.echo("\t".join(map(_written, values)))
    sys.stdout.flush()


def columns(told: Outputs, targets: Sequence[str]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Names of columns and rows, of outputs (rows, targets, ...); of a ranking, the first of each row."""
    names: list[str] = []
    found: list[NDArray[Any]] = []
    for output, values in told.items():
        if output == "paths":
            continue
        if "top" in told:
            names.append({"top": "likeliest", "log_probability": "probability"}.get(output, output))
            first = np.array([row[0] for row in values])
            found.append(np.exp(first) if output == "log_probability" else first)
            continue
        levels = told.levels if isinstance(told, Forecast) and output == "quantiles" else ()
        for place, target in enumerate(targets):
            each = values[:, place].reshape(len(values), -1)
            for inner, column in enumerate(each.T):
                at = f" {levels[inner]:g}" if levels else f" {inner}" if each.shape[1] > 1 else ""
                names.append(output.removesuffix("s" if at else "") + at + (f" {target}" if len(targets) > 1 else ""))
                found.append(column)
    return names, list(zip(*found, strict=True))


def _written(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return f"{value:.5g}"
    return repr(value) if (isinstance(value, str) and not value.isprintable()) or value == " " else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("-").replace(".", "", 1).replace("e-", "").replace("e+", "").isdecimal()
