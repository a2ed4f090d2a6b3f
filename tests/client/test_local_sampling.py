"""Draws in process: the same paths for the same seed as a service's, bit for bit, and the same refusals."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onward
from onward.client.local import LocalSession
from onward.client.results import Done, Forecast, Generated
from onward.client.sync_client import Session
from onward.errors import InvalidRequest, NoForecast, Problem
from tests.client.test_local import bits
from tests.e2e.server import Server
from tests.helpers.analytic_models import markov
from tests.helpers.recorded_bundles import FEATURES, make_bundle
from tests.helpers.reference_loop import ZOO, pulse

GIVEN: dict[str, Any] = {
    "pulse": pulse(12), "characters": 'The "assert" ', "covariate": [[10.0, 20.0, 30.0], [12.0, 21.0, 29.0]],
    "points": [[10.0], [11.0]], "one": ["a", "b"],
}  # fmt: skip
FUTURE = [22.0, 25.0, 19.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two shipped models, one with a covariate, one with a point head, and one with a top of one."""
    made = tmp_path_factory.mktemp("models")
    make_bundle(made, name="covariate", features=FEATURES, targets=("z", "x"))
    make_bundle(made, name="points", head="point")
    markov(made, [[0.6, 0.2, 0.2]] * 3, "ab", unknown=True, top=1, name="one")
    for name in ("pulse", "characters"):
        (made / name).symlink_to(ZOO / name)
    return made


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[onward.Client]:
    with (
        Server(tmp_path_factory.mktemp("service"), ONWARD_MODELS=str(folder)) as server,
        onward.Client(server.url) as connected,
    ):
        yield connected


@pytest.fixture
def twins(
    folder: Path, client: onward.Client, request: pytest.FixtureRequest
) -> Iterator[tuple[LocalSession, Session]]:
    """A session of the model that the test names, in process and of the service."""
    name: str = request.param
    with client.session(name, inputs=GIVEN[name]) as remote:
        yield onward.load(folder / name / "1").session(inputs=GIVEN[name]), remote


def same(left: Forecast, right: Forecast) -> bool:
    answers = [(given.step, given.seed, given.samples, given.levels) for given in (left, right)]
    nested = [{name: [row.tolist() for row in values] for name, values in given.items()} for given in (left, right)]
    return answers[0] == answers[1] and bits(left).keys() == bits(right).keys() and nested[0] == nested[1]


@pytest.mark.parametrize(
    ("twins", "asked"),
    [
        ("pulse", {"samples": 40, "quantiles": [0.05, 0.5, 0.95], "seed": 7, "paths": True}),
        ("pulse", {"quantiles": [0.1], "seed": 1}),
        ("pulse", {"samples": 3, "seed": 2**63 - 1, "inputs": pulse(20)[12:], "paths": True}),
        ("characters", {"samples": 30, "seed": 3, "paths": True}),
        ("characters", {"samples": 5, "seed": 3, "inputs": "statement"}),
        ("covariate", {"future": FUTURE}),
        ("covariate", {"future": [{"y": y} for y in FUTURE], "samples": 10, "seed": 5, "paths": True}),
    ],
    indirect=["twins"],
)
def test_forecasts_are_the_services(twins: tuple[LocalSession, Session], asked: dict[str, Any]) -> None:
    """Paths, means, quantiles and probabilities, at horizons of one and of four; the session stays."""
    local_side, remote = twins
    for horizon in (1, 4):
        mine, theirs = local_side.forecast(horizon, **asked), remote.forecast(horizon, **asked)
        assert same(mine, theirs)
    assert local_side.step_count == remote.info().step


@pytest.mark.parametrize(
    ("twins", "asked"),
    [
        ("pulse", {"temperature": 0.5}),
        ("pulse", {"inputs": pulse(20)[12:]}),
        ("characters", {"top_p": 0.9, "temperature": 0.8, "repetition_penalty": 1.2, "logprobs": 3}),
        ("characters", {"top_k": 4, "stop": ["e", "on"], "inputs": "stat"}),
        ("covariate", {"future": FUTURE}),
        ("points", {}),
    ],
    indirect=["twins"],
)
def test_what_is_generated_is_the_services(twins: tuple[LocalSession, Session], asked: dict[str, Any]) -> None:
    """Every step and the end are the same for all options of drawing."""
    local_side, remote = twins
    mine, theirs = list(local_side.generate(4, seed=7, **asked)), list(remote.generate(4, seed=7, **asked))
    assert len(mine) > 1
    for left, right in zip(mine, theirs, strict=True):
        assert plain(left) == plain(right)


def plain(answers: Generated | Done) -> list[Any]:
    found = [getattr(answers, name) for name in answers.__slots__]
    return [value.tobytes() if hasattr(value, "tobytes") else value for value in found]


def test_without_a_seed_one_is_told_that_draws_the_same() -> None:
    session = onward.load(ZOO / "characters/1").session(inputs="The ")
    *_, end = session.generate(9)
    assert isinstance(end, Done)
    assert [plain(left) for left in session.generate(9, seed=end.seed)][-1] == plain(end)
    drawn = session.forecast(3, samples=5)
    assert same(session.forecast(3, samples=5, seed=drawn.seed), drawn)


@pytest.mark.parametrize(
    ("twins", "asked"),
    [
        ("pulse", {"seed": 1}),
        ("pulse", {"paths": True}),
        ("pulse", {"future": [1.0]}),
        ("characters", {"quantiles": [0.5]}),
        ("points", {"samples": 5}),
        ("points", {"quantiles": [0.5]}),
        ("covariate", {}),
        ("covariate", {"future": [1.0]}),
        ("one", {"samples": 5}),
    ],
    indirect=["twins"],
)
def test_what_cannot_be_drawn_is_refused_as_the_service_does(
    twins: tuple[LocalSession, Session], asked: dict[str, Any]
) -> None:
    """The exceptions have the same class, text and fields."""
    answers: list[Problem] = []
    for session in twins:
        with pytest.raises((InvalidRequest, NoForecast)) as refused:
            session.forecast(4, **asked)
        answers.append(refused.value)
    local_side, remote = answers
    assert type(local_side) is type(remote)
    assert (local_side.detail, local_side.status) == (remote.detail, remote.status)
    assert local_side.errors == remote.errors


def test_what_would_need_a_future_is_not_predicted(folder: Path, client: onward.Client) -> None:
    """The call is refused at any horizon, locally and by the service."""
    local_side = onward.load(folder / "covariate/1")
    for horizon in (1, 2):
        answers: list[Problem] = []
        for predict in (local_side.predict, partial(client.predict, "covariate")):
            with pytest.raises(NoForecast, match="takes `future`") as refused:
                predict([GIVEN["covariate"]], horizon)
            answers.append(refused.value)
        assert (answers[0].detail, answers[0].errors) == (answers[1].detail, answers[1].errors)
    assert local_side.predict([GIVEN["covariate"]])[0].forecast is None


@pytest.mark.parametrize("twins", ["characters"], indirect=True)
@pytest.mark.parametrize(
    "asked",
    [{"logprobs": 999}, {"stop": ["\U0001f600"]}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": 0}, {"seed": -1}],
)
def test_what_cannot_be_generated_is_refused(twins: tuple[LocalSession, Session], asked: Any) -> None:
    """The error names the field at fault, locally and in the service."""
    found = []
    for session in twins:
        with pytest.raises(InvalidRequest) as refused:
            list(session.generate(4, **asked))
        found.append([error["field"] for error in refused.value.errors])
    assert found[0] == found[1] != []


@pytest.mark.parametrize(
    "asked", [{"samples": 1}, {"quantiles": []}, {"quantiles": [0.0, 0.5]}, {"quantiles": [0.5, 0.5]}, {"seed": 2**63}]
)
def test_numbers_out_of_range_are_refused(asked: dict[str, Any]) -> None:
    session = onward.load(ZOO / "pulse/1").session(inputs=pulse(4))
    with pytest.raises(InvalidRequest):
        session.forecast(4, **asked)
    with pytest.raises(InvalidRequest, match=r"horizon: expected a number from 1 up to 2,147,483,648"):
        session.forecast(0)
    with pytest.raises(InvalidRequest, match=r"top_p: expected a number above 0 up to 1"):
        list(session.generate(4, top_p=0.0))
