"""`onward predict`, `stream`, `forecast` and `generate`: what models say."""

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from onward.client.cli.common import columns, echo_json, echo_line, echo_table, plain, talking
from onward.client.cli.step_files import file_argument, format_option, steps
from onward.client.errors import SessionEnded, UnknownSession
from onward.client.results import Done, Prediction, Predictions

if TYPE_CHECKING:
    from onward.client.sync_client import Client, Session


@click.command()
@file_argument
@format_option
@click.option("--model", required=True, help="the model to ask")
@click.option("--version", type=click.IntRange(min=1), help="the highest if left out")
@click.option("--horizon", type=click.IntRange(min=0), default=0, help="roll so many steps forward after the last")
@talking
def predict(
    client: "Client", *, file: str, form: str | None, model: str, version: int | None, horizon: int, as_json: bool
) -> None:
    """Predict after each step of FILE (- is stdin), without a session; with --horizon, what follows it."""
    detail = client.model(model, version)
    inputs = list(steps(file, form, detail["inputs"]))
    if not inputs:
        raise ValueError(f"{file}: no step is in it")
    (told,) = client.predict(model, [inputs], horizon, version=version)
    if as_json:
        answer = plain(told.predictions)
        echo_json(answer | ({} if told.forecast is None else {"forecast": plain(told.forecast)["forecast"]}))
        return
    if told.forecast is None:
        names, rows = columns(told.predictions, detail["targets"])
        each = zip(told.predictions.each, rows, strict=True)
        echo_table(["step", *names, "surprise"], [(one.step, *row, one.surprise) for one, row in each])
    else:
        names, rows = columns(told.forecast, detail["targets"])
        echo_table(["ahead", *names], [(at, *row) for at, row in enumerate(rows, 1)])


@click.command()
@click.option("--session", "session_id", required=True, help="where to begin")
@click.option("--horizon", type=click.IntRange(min=1), required=True, help="how many steps ahead")
@click.option("--samples", type=click.IntRange(min=1), help="draw so many paths")
@click.option("--quantiles", help="levels, by commas: 0.1,0.5,0.9")
@click.option("--seed", type=int, help="the same seed draws the same paths")
@click.option("--future", help="FILE of what is known in advance, a step each")
@talking
def forecast(
    client: "Client", *, session_id: str, horizon: int, samples: int | None, quantiles: str | None, seed: int | None,
    future: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Roll a session's predictions forward; the session stays where it is."""
    try:
        levels = None if quantiles is None else [float(level) for level in quantiles.split(",")]
    except ValueError:
        raise click.BadParameter("expected numbers, by commas", param_hint="--quantiles") from None
    session = client.attach(session_id)
    detail = client.model(session.model, session.version)
    known = [one for one in detail["inputs"] if one["name"] not in detail["targets"]]
    told = session.forecast(
        horizon, samples, levels, seed, None if future is None else list(steps(future, None, known))
    )
    if as_json:
        echo_json(plain(told))
        return
    names, rows = columns(told, detail["targets"])
    echo_table(["ahead", *names], [(at, *row) for at, row in enumerate(rows, 1)])
    if told.seed is not None:
        click.echo(f"seed: {told.seed}")


@click.command()
@file_argument
@format_option
@click.option("--model", help="begin a session on it, which is ended after the last line unless it was given a name")
@click.option("--session", "session_id", help="go on with this session; with --model, begin it if it is not there")
@talking
def stream(
    client: "Client", *, file: str, form: str | None, model: str | None, session_id: str | None, as_json: bool
) -> None:
    """Step through FILE (- is stdin): a line in, a line out, as it goes, over one connection."""
    with _session(client, model, session_id) as session:
        detail = client.model(session.model, session.version)
        with _shown(steps(file, form, detail["inputs"]), file) as inputs:
            for told in session.stream(inputs):
                if as_json:
                    echo_json(plain(told))
                else:
                    _, (row,) = columns(_row(told), detail["targets"])
                    echo_line((told.step, *row, told.surprise))


@click.command()
@click.option("--session", "session_id", help="where to begin; it stays there")
@click.option("--model", help="or the model, to begin anew")
@click.option("--prompt", help="a text to begin with")
@click.option("--horizon", type=click.IntRange(min=1), default=200, show_default=True, help="at most so many steps")
@click.option("--seed", type=int, help="the same seed draws the same")
@click.option("--temperature", type=float, help="below 1 more likely tokens, above 1 less likely ones")
@click.option("--top-k", type=int, help="draw among so many of the likeliest")
@click.option("--top-p", type=float, help="draw among the likeliest that have this probability together")
@click.option("--repetition-penalty", type=float, help="above 1: what was drawn becomes less likely")
@click.option("--stop", multiple=True, help="end at this text; may be given several times")
@talking
def generate(
    client: "Client", *, session_id: str | None, model: str | None, prompt: str | None, horizon: int, as_json: bool,
    stop: tuple[str, ...], **drawing: Any,
) -> None:  # fmt: skip
    """Draw what comes next, and show it as it comes."""
    if model is not None and session_id is not None:
        raise click.UsageError("say where to begin: --session, or --model, and not both")
    with _session(client, model, session_id) as session:
        drawing |= {"inputs": prompt, "stop": list(stop) or None}
        for told in session.generate(horizon, **drawing):
            if as_json:
                echo_json(_event(told))
            elif isinstance(told, Done):
                click.echo()
                click.echo(f"{told.reason}; seed {told.seed}", err=True)
            elif told.values is not None:
                echo_line((told.ahead, *told.values))
            else:
                click.echo(told.token if isinstance(told.token, str) else f"{told.token} ", nl=False)
                sys.stdout.flush()


def _event(told: Any) -> dict[str, Any]:
    names = told.__slots__
    return {name: value for name in names if (value := getattr(told, name)) is not None and value != ()}


def _row(told: Prediction) -> Predictions:
    return Predictions({name: values[None] for name, values in told.items()}, None, told.step)


def _session(client: "Client", model: str | None, session_id: str | None) -> "Session":
    """One that is there, and is of that model where both are said; or a new one, which lives on where it has a name."""
    if session_id is None:
        if model is None:
            raise click.UsageError("say where to begin: --session, or --model")
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
def _shown(inputs: Iterator[Any], file: str) -> Iterator[Iterator[Any]]:
    """With a bar of how far it is, where answers go elsewhere and somebody looks."""
    if file == "-" or sys.stdout.isatty() or not sys.stderr.isatty():
        yield inputs
        return
    with click.progressbar(list(inputs), file=sys.stderr, label="steps") as shown:
        yield iter(shown)
