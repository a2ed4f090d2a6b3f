"""The parts that the commands share: the service's address, the exit statuses, and output for people and programs.

Exit statuses: 0 done, 1 refused or wrong, 2 usage (click's own), 3 the service cannot be reached; `onward.process_exit`
has those of interrupts and of a failing output.
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

from onward.client.results import Forecast, Outputs, Prediction, Predictions, without_none
from onward.client.transport import address
from onward.errors import OnwardError, Problem, UnreachableError
from onward.model import precision

if TYPE_CHECKING:
    from onward.client.sync_client import Client

URL = "http://127.0.0.1:8000"
REFUSED, UNREACHABLE = 1, 3
DIGITS = 5
"""The significant digits of a number that is written for people, unless more tell it from its neighbours."""
RETRY_DEADLINE_S = 10.0
"""Shorter than the client's own: somebody may be waiting at a terminal."""
json_option = click.option(
    "--json", "as_json", is_flag=True, help="write JSON, as one document or one line for each result"
)


listed_option = click.option(
    "--listed-only", is_flag=True, help="rank listed categories only, not what stands for all others"
)


def _url(_context: click.Context, _option: click.Parameter, url: str) -> str:
    try:
        return address.service(url)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


url_option = click.option(
    "--url", envvar="ONWARD_URL", default=URL, show_default=True, show_envvar=True, callback=_url,
    help="the address of the service",
)  # fmt: skip


def service_command(command: Callable[..., None]) -> Callable[..., None]:
    """Returns the command with a client as its first argument, the options `--url` and `--json`, and an exit status for
    each kind of failure.

    The API key comes from ONWARD_API_KEY alone: an option would be visible in the list of processes.
    """

    @url_option
    @json_option
    @functools.wraps(command)
    def run(*, url: str, listed_only: bool = False, **options: Any) -> None:
        with exit_statuses(url), connected(url, listed_only=listed_only) as client:
            command(client, **options)

    return run


def connected(url: str, *, listed_only: bool = False) -> "Client":
    try:
        from onward.client.sync_client import Client
    except ModuleNotFoundError as error:
        fail(f"this needs {error.name}: pip install 'onward[client]'")
    return Client(url, key(), patience=RETRY_DEADLINE_S, listed_only=listed_only)


def key() -> str | None:
    return os.environ.get("ONWARD_API_KEY") or None


@contextmanager
def exit_statuses(url: str) -> Iterator[None]:
    """Reports an error of the block in one line on stderr, and exits with its status. url: the service's address."""
    try:
        yield
    except UnreachableError as error:
        fail(
            f"{url}: {error}; start a service with `onward serve`, or name its address with --url or ONWARD_URL",
            UNREACHABLE,
        )
    except Problem as error:
        fail(f"{error} [{error.name or error.status}]")
    except (ValueError, ImportError, OnwardError) as error:
        fail(str(error))


def fail(message: str, status: int = REFUSED) -> NoReturn:
    click.echo(f"onward: {message}", err=True)
    sys.exit(status)


# For programs


def echo_json(content: Any) -> None:
    """Writes one line of JSON, with the shortest decimals that are the same 32-bit floats."""
    click.echo(orjson.dumps(content, np.ndarray.tolist, orjson.OPT_SERIALIZE_NUMPY))


def json_members(outputs: Outputs, series: str | None = None) -> dict[str, Any]:
    """Returns the members of the HTTP response that the outputs come from, after the name of their series, if any."""
    return without_none(series=series) | _members(outputs)


def _members(outputs: Outputs) -> dict[str, Any]:
    arrays = {name: np.ascontiguousarray(values) for name, values in outputs.items()}
    if isinstance(outputs, Forecast):
        sampling = without_none(seed=outputs.seed, samples=outputs.samples, levels=list(outputs.levels) or None)
        return {"step": outputs.step, "forecast": arrays} | sampling
    assert isinstance(outputs, (Prediction, Predictions))
    scores = without_none(surprise=outputs.surprise, error=outputs.error, anomaly=outputs.anomaly)
    members = {name: _single_precision(score) for name, score in scores.items()}
    if outputs.interval is not None:
        members["interval"] = {"low": outputs.interval.low, "high": outputs.interval.high}
    return {"step": outputs.step, "predictions": arrays} | members


def _single_precision(value: Any) -> Any:
    return np.float32(value) if isinstance(value, float) else value


# For people


def echo_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes columns as wide as they need to be; numbers are aligned to the right.

    They have five significant digits, or as many as tell the numbers of a column apart.
    """
    listed = [list(row) for row in rows]
    digits = [_digits([row[column] for row in listed]) for column in range(len(names))]
    written = [[_written(value, count) for value, count in zip(row, digits, strict=True)] for row in listed]
    widths = [max(map(len, column)) for column in zip(names, *written, strict=True)]
    numbers = [bool(written) and all(_is_number(row[column]) for row in written) for column in range(len(names))]
    for row in [list(names), *written]:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numbers, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def echo_line(values: Iterable[object]) -> None:
    """Writes one of many lines at once, its values separated by tabs."""
    click.echo("\t".join([_written(value, _digits([value])) for value in values]))
    sys.stdout.flush()


def columns(outputs: Outputs, targets: Sequence[str]) -> tuple[list[str], list[tuple[object, ...]]]:
    """Returns the columns' names and the rows of outputs (rows, targets, ...); of categories, the likeliest."""
    names: list[str] = []
    cells: list[NDArray[Any]] = []
    for output, values in outputs.items():
        if output == "paths":
            continue
        if "top" in outputs:
            names.append({"top": "likeliest", "log_probability": "probability"}.get(output, output))
            first = np.array([row[0] for row in values])
            cells.append(np.exp(first) if output == "log_probability" else first)
            continue
        levels = outputs.levels if isinstance(outputs, Forecast) and output == "quantiles" else ()
        for index, target in enumerate(targets):
            of_target = values[:, index].reshape(len(values), -1)
            for inner, column in enumerate(of_target.T):
                suffix = f" {levels[inner]:g}" if levels else f" {inner}" if of_target.shape[1] > 1 else ""
                names.append(
                    output.removesuffix("s" if suffix else "") + suffix + (f" {target}" if len(targets) > 1 else "")
                )
                cells.append(column)
    return names, list(zip(*cells, strict=True))


def _digits(values: Sequence[object]) -> int:
    """Returns the number of significant digits with which successive numbers of a model are told apart."""
    numbers = np.array([float(value) for value in values if isinstance(value, np.floating)])
    numbers = numbers[np.isfinite(numbers)]
    steps = np.abs(np.diff(numbers))
    most = 17 if any(isinstance(value, np.float64) for value in values) else 9
    if steps.any():
        return min(most, precision.digits(float(np.abs(numbers).max()), float(np.median(steps[steps > 0]))))
    is_single = bool((numbers.astype(np.float32) == numbers).all() and (numbers % 1).any())
    return DIGITS if most == 9 or is_single else most


def _written(value: object, digits: int) -> str:
    if isinstance(value, np.generic) and not isinstance(value, np.floating):
        value = value.item()
    if value is None:
        return "-"
    if isinstance(value, (float, np.floating)):
        return str(float(value)) if digits > 15 else f"{value:.{digits}g}"
    return repr(value) if (isinstance(value, str) and not value.isprintable()) or value == " " else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.lstrip("-").replace(".", "", 1).replace("e-", "").replace("e+", "").isdecimal()
