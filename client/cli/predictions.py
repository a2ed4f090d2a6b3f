"""The commands `onward predict`, `stream`, `forecast` and `generate`."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from onward.client.cli import step_options
from onward.client.cli.common import (
    columns,
    connected,
    echo_json,
    echo_line,
    echo_table,
    exit_statuses,
    json_members,
    json_option,
    listed_option,
    service_command,
    url_option,
)
from onward.client.cli.step_options import file_argument, format_option, series_option
from onward.client.results import Done, Forecast, Prediction, Predictions, SequencePrediction
from onward.client.step_files import SeriesSteps, StepFormat
from onward.errors import SessionEnded, UnknownSession

if TYPE_CHECKING:
    from onward.client.sync_client import Client, Session

MOST_SEQUENCES, MOST_STEPS = 1000, 50_000
"""The most sequences and steps of one call, unless a single sequence has more steps."""


@click.command()
@file_argument
@format_option
@series_option
@click.option("--model", help="the name of the model")
@click.option("--version", type=click.IntRange(min=1), help="the version of the model; by default the highest")
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False), help="predict in this process by the bundle in a folder"
)
@click.option(
    "--horizon", type=click.IntRange(min=0), default=0, help="the number of steps to roll forward after the last input"
)
@listed_option
@url_option
@json_option
def predict(
    *, file: str, form: StepFormat | None, series: tuple[str, ...], model: str | None, version: int | None,
    bundle: str | None, horizon: int, listed_only: bool, url: str, as_json: bool,
) -> None:  # fmt: skip
    """Predict after each step of FILE (- is stdin), without a session; with --horizon, forecast the steps after it.

    Each series of FILE is predicted by itself.
    """
    if (model is None) == (bundle is None):
        raise click.UsageError("give --model or --bundle, and not both")
    with exit_statuses(url), _predictor(url, model, version, bundle, listed_only=listed_only) as predictor:
        found = step_options.read(file, predictor.description, series=series, form=form)
        results = [(item.name, result) for item, result in predictor.results(found, horizon)]
    if as_json:
        for name, result in results:
            ahead = {} if result.forecast is None else {"forecast": json_members(result.forecast)["forecast"]}
            echo_json(json_members(result.predictions, name) | ahead)
        return
    rows: list[Sequence[object]] = []
    names: list[str] = []
    for name, result in results:
        outputs = result.predictions if result.forecast is None else result.forecast
        names, of_series = columns(outputs, predictor.targets)
        if result.forecast is None:
            names = ["step", *names, "surprise"]
            each = zip(result.predictions.each, of_series, strict=True)
            rows += [(*_named(name), step.step, *row, step.surprise) for step, row in each]
        else:
            names = ["ahead", *names]
            rows += [(*_named(name), ahead, *row) for ahead, row in enumerate(of_series, 1)]
    echo_table([*(["series"] if results[0][0] is not None else []), *names], rows)


@dataclass(frozen=True, slots=True)
class _Predictor:
    """A model of a service or of this process, of which sequences are predicted."""

    description: Any
    """The description by the service, or the bundle's model."""
    targets: Sequence[str]
    predict: Callable[[list[Any], int], list[SequencePrediction]]

    def results(self, series: Sequence[SeriesSteps], horizon: int) -> Iterator[tuple[SeriesSteps, SequencePrediction]]:
        """Yields the prediction of each series; a call takes as many as a service usually accepts."""
        start = 0
        while start < len(series):
            stop, count = start, 0
            while stop < len(series) and stop < start + MOST_SEQUENCES:
                count += len(series[stop].steps) + horizon
                if count > MOST_STEPS and stop > start:
                    break
                stop += 1
            group = series[start:stop]
            yield from zip(group, self.predict([item.steps for item in group], horizon), strict=True)
            start = stop


@contextlib.contextmanager
def _predictor(
    url: str, model: str | None, version: int | None, bundle: str | None, *, listed_only: bool
) -> Iterator[_Predictor]:
    if bundle is not None:
        from onward.client.local import load

        local = load(bundle, listed_only=listed_only)
        yield _Predictor(local, local.model.manifest.head.targets, local.predict)
        return
    assert model is not None
    with connected(url, listed_only=listed_only) as client:
        description = client.model(model, version)
        version = description["version"]
        yield _Predictor(description, description["targets"], partial(client.predict, model, version=version))


@click.command()
@click.option("--session", "session_id", required=True, help="the session to begin from")
@click.option("--horizon", type=click.IntRange(min=1), required=True, help="the number of steps ahead")
@click.option("--samples", type=click.IntRange(min=1), help="the number of sample paths to draw")
@click.option("--quantiles", help="quantile levels, separated by commas: 0.1,0.5,0.9")
@click.option("--seed", type=int, help="the same seed draws the same paths")
@click.option(
    "--future", type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="FILE of future covariates (- is stdin), one row for each step, and one more for "
    "features with a lead; features of the calendar are computed",
)  # fmt: skip
@click.option("--series", metavar="NAME", help="the series of the session, where the FILE has several")
@listed_option
@service_command
def forecast(
    client: "Client", *, session_id: str, horizon: int, samples: int | None, quantiles: str | None, seed: int | None,
    future: str | None, series: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Roll a session's predictions forward; the session does not move."""
    try:
        levels = None if quantiles is None else [float(level) for level in quantiles.split(",")]
    except ValueError:
        raise click.BadParameter("expected numbers separated by commas", param_hint="--quantiles") from None
    session = client.attach(session_id)
    detail = client.model(session.model, session.version)
    known_future = None if future is None else _future(future, detail, series)
    result = session.forecast(horizon, samples, levels, seed, known_future)
    if as_json:
        echo_json(json_members(result))
        return
    _echo_forecast(result, detail["targets"])
    if result.seed is not None:
        click.echo(f"seed: {result.seed}")


def _future(file: str, detail: Mapping[str, Any], series: str | None) -> Any:
    """Returns the future covariates in a file. Raises ValueError if it has several series."""
    covariates = [feature["name"] for feature in detail["inputs"] if feature["name"] not in detail["targets"]]
    if not covariates:
        raise ValueError("--future: the model predicts all of its features, and takes no future covariates")
    found = step_options.read(file, detail, series=[series] if series else (), only=covariates)
    if len(found) > 1:
        names = ", ".join(str(item.name) for item in found[:3])
        raise ValueError(f"{file}: has {len(found):,} series ({names}...): name that of the session by --series")
    return found[0].steps


@click.command()
@file_argument
@format_option
@series_option
@click.option("--model", help="create a session of this model; it ends after the last line unless --session names it")
@click.option(
    "--session", "session_id",
    help="continue this session; with --model, create it if it does not exist. If FILE has a column of series, the "
    "session of series S is ID:S, or ID with a single --series",
)  # fmt: skip
@listed_option
@service_command
def stream(
    client: "Client", *, file: str, form: StepFormat | None, series: tuple[str, ...], model: str | None,
    session_id: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Step through FILE (- is stdin), a session for each series; each line of a stream is answered as it arrives."""
    single = session_id is not None or len(series) == 1
    with contextlib.ExitStack() as opened:
        sessions = _SeriesSessions(client, opened, model, session_id, one_chosen=len(series) == 1)
        detail = sessions.description()
        if step_options.is_live(file):
            batches = step_options.batches(file, detail, series=series, single=single, form=form)
            predictions = _stream_arriving(client, sessions, batches)
        else:
            found = step_options.read(file, detail, series=series, single=single, form=form)
            predictions = _stream_series(sessions, found)
        for name, prediction in predictions:
            if as_json:
                echo_json(json_members(prediction, name))
            else:
                _, (row,) = columns(_as_row(prediction), detail["targets"])
                echo_line((*_named(name), prediction.step, *row, prediction.surprise))


class _SeriesSessions:
    """The sessions of series, by the name of the series; each is created or found when it is first used.

    With --session, the session of series S is ID:S, unless only one series was chosen or no column tells series apart.
    """

    def __init__(
        self, client: "Client", opened: contextlib.ExitStack, model: str | None, session_id: str | None, *,
        one_chosen: bool,
    ) -> None:  # fmt: skip
        if model is None and session_id is None:
            raise click.UsageError("give --session or --model")
        self._client, self._opened, self._model, self._id = client, opened, model, session_id
        self._one_chosen = one_chosen
        self._sessions: dict[str | None, Session] = {}

    def description(self) -> dict[str, Any]:
        """Returns the description of the model, in the version of the session of the option if it exists."""
        model, version = self._model, None
        if self._id is not None:
            try:
                session = self._client.attach(self._id)
            except (UnknownSession, SessionEnded):
                if model is None:
                    raise
            else:
                _require_model(session, model)
                model, version = session.model, session.version
        assert model is not None
        return self._client.model(model, version)

    def __getitem__(self, name: str | None) -> "Session":
        if name not in self._sessions:
            session = self._opened.enter_context(_session(self._client, self._model, self._session_id(name)))
            if name is not None:
                click.echo(f"onward: series {name}: session {session.id}", err=True)
            self._sessions[name] = session
        return self._sessions[name]

    def is_one(self, name: str | None) -> bool:
        """Returns whether there is one session for all steps, of which the first is of that series."""
        return name is None or self._one_chosen

    def _session_id(self, name: str | None) -> str | None:
        if self._id is None or self.is_one(name):
            return self._id
        if self._model is None:
            raise ValueError("the steps are of several series: name one by --series, or a session for each by --model")
        assert name is not None
        return f"{self._id}:{quote(name, safe='').replace('~', '%7E').replace('%', '~')}"


def _stream_series(sessions: _SeriesSessions, found: Sequence[SeriesSteps]) -> Iterator[tuple[str | None, Prediction]]:
    """Yields the predictions of series, one series after another."""
    with _with_progress(found) as advance:
        for item in found:
            for prediction in sessions[item.name].stream(item.steps):
                advance()
                yield item.name, prediction


def _stream_arriving(
    client: "Client", sessions: _SeriesSessions, batches: Iterator[list[tuple[str | None, Any]]]
) -> Iterator[tuple[str | None, Prediction]]:
    """Yields the predictions of steps that arrive, in their order."""
    first = next(batches, None)
    if first is None:
        return
    name = first[0][0]
    if sessions.is_one(name):
        steps = (step for batch in chain([first], batches) for _, step in batch)
        for prediction in sessions[name].stream(steps):
            yield name, prediction
        return
    for batch in chain([first], batches):
        yield from _step_together(client, sessions, batch)


def _step_together(
    client: "Client", sessions: _SeriesSessions, batch: Sequence[tuple[str | None, Any]]
) -> Iterator[tuple[str | None, Prediction]]:
    """Yields the predictions of steps of several sessions. Raises the failure of one after those of the others."""
    by_series: dict[str | None, list[Any]] = {}
    for name, step in batch:
        by_series.setdefault(name, []).append(step)
    results = client.step_many([(sessions[name], steps) for name, steps in by_series.items()])
    answers = {
        name: iter(result.each)
        for name, result in zip(by_series, results, strict=True)
        if isinstance(result, Predictions)
    }
    for name, _ in batch:
        if name in answers:
            yield name, next(answers[name])
    for result in results:
        if isinstance(result, Exception):
            raise result


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
    _require_model(session, model)
    return session


@contextlib.contextmanager
def _with_progress(found: Sequence[SeriesSteps]) -> Iterator[Callable[[], None]]:
    """Shows a progress bar of the steps on a terminal while the output goes to a file."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        yield lambda: None
        return
    steps = sum(len(item.steps) for item in found)
    with click.progressbar(length=steps, file=sys.stderr, label="steps") as bar:
        yield lambda: bar.update(1)


def _named(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _require_model(session: "Session", model: str | None) -> None:
    """Raises ValueError for a session of another model."""
    if model is not None and session.model != model:
        raise ValueError(f"session {session.id!r} is of the model {session.model!r}, not of {model!r}")
