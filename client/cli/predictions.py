"""The commands `onward predict`, `stream`, `forecast` and `generate`."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from onward.client.cli.common import (
    columns,
    echo_json,
    echo_line,
    echo_table,
    json_members,
    listed_option,
    service_command,
)
from onward.client.cli.step_files import file_argument, format_option, steps
from onward.client.results import Done, Forecast, Prediction, Predictions
from onward.errors import SessionEnded, UnknownSession

if TYPE_CHECKING:
    from onward.client.sync_client import Client, Session


@click.command()
@file_argument
@format_option
@click.option("--model", required=True, help="the name of the model")
@click.option("--version", type=click.IntRange(min=1), help="the version of the model; by default the highest")
@click.option(
    "--horizon", type=click.IntRange(min=0), default=0, help="the number of steps to roll forward after the last input"
)
@listed_option
@service_command
def predict(
    client: "Client", *, file: str, form: str | None, model: str, version: int | None, horizon: int, as_json: bool
) -> None:
    """Predict after each step of FILE (- is stdin), without a session; with --horizon, forecast the steps after it."""
    detail = client.model(model, version)
    inputs = list(steps(file, form, detail["inputs"]))
    if not inputs:
        raise ValueError(f"{file}: the file has no steps")
    (result,) = client.predict(model, [inputs], horizon, version=version)
    if as_json:
        ahead = {} if result.forecast is None else {"forecast": json_members(result.forecast)["forecast"]}
        echo_json(json_members(result.predictions) | ahead)
        return
    if result.forecast is None:
        names, rows = columns(result.predictions, detail["targets"])
        steps_and_rows = zip(result.predictions.each, rows, strict=True)
        echo_table(["step", *names, "surprise"], [(step.step, *row, step.surprise) for step, row in steps_and_rows])
    else:
        _echo_forecast(result.forecast, detail["targets"])


@click.command()
@click.option("--session", "session_id", required=True, help="the session to begin from")
@click.option("--horizon", type=click.IntRange(min=1), required=True, help="the number of steps ahead")
@click.option("--samples", type=click.IntRange(min=1), help="the number of sample paths to draw")
@click.option("--quantiles", help="quantile levels, separated by commas: 0.1,0.5,0.9")
@click.option("--seed", type=int, help="the same seed draws the same paths")
@click.option("--future", help="FILE of future covariates, one line for each step")
@listed_option
@service_command
def forecast(
    client: "Client", *, session_id: str, horizon: int, samples: int | None, quantiles: str | None, seed: int | None,
    future: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Roll a session's predictions forward; the session does not move."""
    try:
        levels = None if quantiles is None else [float(level) for level in quantiles.split(",")]
    except ValueError:
        raise click.BadParameter("expected numbers separated by commas", param_hint="--quantiles") from None
    session = client.attach(session_id)
    detail = client.model(session.model, session.version)
    covariates = [feature for feature in detail["inputs"] if feature["name"] not in detail["targets"]]
    known_future = None if future is None else list(steps(future, None, covariates))
    result = session.forecast(horizon, samples, levels, seed, known_future)
    if as_json:
        echo_json(json_members(result))
        return
    _echo_forecast(result, detail["targets"])
    if result.seed is not None:
        click.echo(f"seed: {result.seed}")


@click.command()
@file_argument
@format_option
@click.option("--model", help="create a session of this model; it ends after the last line unless --session names it")
@click.option("--session", "session_id", help="continue this session; with --model, create it if it does not exist")
@listed_option
@service_command
def stream(
    client: "Client", *, file: str, form: str | None, model: str | None, session_id: str | None, as_json: bool
) -> None:
    """Step through FILE (- is stdin) over one connection; each line is answered by one as it arrives."""
    with _session(client, model, session_id) as session:
        detail = client.model(session.model, session.version)
        with _with_progress(steps(file, form, detail["inputs"]), file) as inputs:
            for prediction in session.stream(inputs):
                if as_json:
                    echo_json(json_members(prediction))
                else:
                    _, (row,) = columns(_as_row(prediction), detail["targets"])
                    echo_line((prediction.step, *row, prediction.surprise))


@click.command()
@click.option("--session", "session_id", help="the session to begin from; it does not move")
@click.option("--model", help="the model to begin from, instead of a session")
@click.option("--prompt", help="a text that the model reads first")
@click.option(
    "--horizon", type=click.IntRange(min=1), default=200, show_default=True, help="the most steps to generate"
)
@click.option("--seed", type=int, help="the same seed draws the same")
@click.option("--temperature", type=float, help="below 1 more likely tokens, above 1 less likely ones")
@click.option("--top-k", type=int, help="draw among this number of likeliest tokens")
@click.option("--top-p", type=float, help="draw among the likeliest tokens that have this probability together")
@click.option("--repetition-penalty", type=float, help="above 1: tokens that were drawn become less likely")
@click.option("--stop", multiple=True, help="a text at which to end; may be given several times")
@service_command
def generate(
    client: "Client", *, session_id: str | None, model: str | None, prompt: str | None, horizon: int, as_json: bool,
    stop: tuple[str, ...], **drawing: Any,
) -> None:  # fmt: skip
    """Generate steps, and show each as it is drawn."""
    if model is not None and session_id is not None:
        raise click.UsageError("give --session or --model, and not both")
    with _session(client, model, session_id) as session:
        drawing |= {"inputs": prompt, "stop": list(stop) or None}
        for event in session.generate(horizon, **drawing):
            if as_json:
                echo_json(_members(event))
            elif isinstance(event, Done):
                click.echo()
                click.echo(f"{event.reason}; seed {event.seed}", err=True)
            elif event.values is not None:
                echo_line((event.ahead, *event.values))
            else:
                click.echo(event.token if isinstance(event.token, str) else f"{event.token} ", nl=False)
                sys.stdout.flush()


def _members(event: Any) -> dict[str, Any]:
    names = event.__slots__
    return {name: value for name in names if (value := getattr(event, name)) is not None and value != ()}


def _as_row(prediction: Prediction) -> Predictions:
    return Predictions({name: values[None] for name, values in prediction.items()}, None, prediction.step)


def _echo_forecast(forecast: Forecast, targets: Sequence[str]) -> None:
    names, rows = columns(forecast, targets)
    echo_table(["ahead", *names], [(ahead, *row) for ahead, row in enumerate(rows, 1)])


def _session(client: "Client", model: str | None, session_id: str | None) -> "Session":
    """Returns the session with this id, which must be of the model if both are given, or a new session of the model.

    A new session is kept if it was given an id.
    """
    if session_id is None:
        if model is None:
            raise click.UsageError("give --session or --model")
        return client.session(model)
    try:
        session = client.attach(session_id)
    except (UnknownSession, SessionEnded):
        if model is None:
            raise
        return client.session(model, session_id, keep=True)
    if model not in (None, session.model):
        raise ValueError(f"session {session_id!r} is of the model {session.model!r}, not of {model!r}")
    return session


@contextlib.contextmanager
def _with_progress(inputs: Iterator[Any], file: str) -> Iterator[Iterator[Any]]:
    """Shows a progress bar on a terminal while the output goes to a file."""
    if file == "-" or sys.stdout.isatty() or not sys.stderr.isatty():
        yield inputs
        return
    with click.progressbar(list(inputs), file=sys.stderr, label="steps") as shown:
        yield iter(shown)
