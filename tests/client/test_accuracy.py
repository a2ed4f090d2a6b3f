"""How predictions come true, as the clients tell it: the numbers of the plain answers, as arrays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import onward
from onward.__main__ import main
from onward.client.results import Accuracy, Prediction, Predictions, SessionInfo
from onward.client.sync_client import Client
from onward.errors import InvalidRequest
from onward.model.manifest import Feature
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers import numpy_networks
from tests.helpers.reference_loop import ZOO, pulse, weather

INTERVAL = 0.9
"""Its bounds are known after 9 inputs."""


def plain(server: Server, model: str, inputs: Any, **body: Any) -> dict[str, Any]:
    """The answer to all of the inputs, of a session of its own, as the wire has it."""
    with server.client() as http:
        made = http.post(f"/v1/models/{model}/sessions", json=body).raise_for_status().json()
        answer: httpx.Response = http.post(f"/v1/sessions/{made['session_id']}/steps", json={"inputs": inputs})
        told: dict[str, Any] = answer.raise_for_status().json()
        return told


def bounds(rows: list[list[float | None]], without: float) -> np.ndarray[Any, Any]:
    return np.array([[without if value is None else value for value in row] for row in rows], np.float32)


def assert_same(told: list[Prediction], expected: dict[str, Any]) -> None:
    """Each step's; what is null is None, NaN, or without bound."""
    low, high = (bounds(expected["interval"][name], end) for name, end in (("low", -np.inf), ("high", np.inf)))
    errors = np.array(expected["error"], np.float32)
    assert [one.anomaly for one in told] == [
        None if value is None else float(np.float32(value)) for value in expected["anomaly"]
    ]
    for place, one in enumerate(told):
        assert one.error is not None
        assert one.interval is not None
        assert one.error.tobytes() == errors[place].tobytes()
        assert one.interval.low.tobytes() == low[place].tobytes()
        assert one.interval.high.tobytes() == high[place].tobytes()


def test_each_way_of_stepping_tells_it(server: Server, client: Client) -> None:
    """Step, steps, stream and many: the same for the same inputs, unbounded while little is known, and then not."""
    rows = weather(40)
    expected = plain(server, "weather", rows, interval=INTERVAL)
    assert expected["interval"]["low"][0] == [None] * 4
    assert None not in expected["interval"]["low"][-1]
    assert None not in expected["anomaly"][-20:]
    assert expected["anomaly"][0] is None
    with client.session("weather", interval=INTERVAL) as session:
        told = [session.step(row) for row in rows[:5]]
        some = session.steps(rows[5:20])
        told += some.each
        (many,) = client.step_many([(session, rows[20:30])])
        assert isinstance(many, Predictions)
        told += [*many.each, *session.stream(rows[30:])]
        assert_same(told, expected)
        assert session.prediction is told[-1]
        assert some.error is not None
        assert some.error.shape == (15, 4)
        assert some.anomaly is not None
        assert np.isnan(some.anomaly).tolist() == [value is None for value in expected["anomaly"][5:20]]


def test_an_interval_that_knows_no_bound_holds_any_number(client: Client) -> None:
    with client.session("pulse", interval=0.9) as session:
        first = session.step(515).interval
        assert first is not None
        assert (first.low < -3e38).all()
        assert (first.high > 3e38).all()
        last = session.steps(pulse(60)).last.interval
        assert last is not None
        assert ((last.low > 0) & (last.low < last.high) & (last.high < 2000)).all()


def test_what_is_not_told_is_none(client: Client) -> None:
    """No interval where none was asked for, no error of categories, nothing of what stands alone."""
    with client.session("pulse") as session:
        assert session.step(515).interval is None
    with client.session("characters") as session:
        told = session.steps("The assert statement of the language")
        assert (told.error, told.interval) == (None, None)
        assert told.anomaly is not None
        assert told.last.anomaly is not None
    held = client.held("pulse", [515]).predictions
    assert (held.error, held.anomaly, held.interval) == (None, None, None)


def test_a_session_tells_how_it_has_done(server: Server, client: Client) -> None:
    """By target, as the plain answer has it; a list of sessions and a new one do not tell it."""
    rows = weather(40)
    with client.session("weather", inputs=rows, interval=0.9) as session, server.client() as http:
        info, raw = session.info(), http.get(f"/v1/sessions/{session.id}").json()
        assert info.accuracy == {target: Accuracy(**one) for target, one in raw["accuracy"].items()}
        assert list(info.accuracy) == ["precipitation", "temp_max", "temp_min", "wind"]
        assert info.accuracy["wind"].inputs == 40
        assert info.interval is not None
        assert info.interval.wanted == 0.9
        assert (info.interval.coverage, info.interval.alpha) == (raw["interval"]["coverage"], raw["interval"]["alpha"])
        (listed,) = [one for one in client.sessions("weather") if one.session_id == session.id]
        assert (listed.accuracy, listed.interval) == (None, None)
    with client.session("characters", inputs="The assert statement") as session:
        accuracy = session.info().accuracy
        assert accuracy is not None
        (hits,) = [one.hits for one in accuracy.values()]
        assert hits is not None
        assert 0 < hits < 1
        assert session.info().interval is None


@pytest.mark.parametrize(
    ("model", "inputs", "interval"),
    [("weather", weather(60), 0.9), ("pulse", pulse(60), None), ("characters", "The assert statement of the la", None)],
)
def test_in_process_it_is_told_alike(client: Client, model: str, inputs: Any, interval: float | None) -> None:
    """Seeded, step by step, many at once and forked: every number of a service's answers, and of what it keeps."""
    local = onward.load(ZOO / model / "1").session(inputs=inputs[:3], interval=interval)
    with client.session(model, inputs=inputs[:3], interval=interval) as remote:
        for session in (local, remote):
            assert session.prediction is not None
            assert (session.prediction.surprise, session.prediction.error, session.prediction.anomaly) == (None,) * 3
        for one in inputs[3:6]:
            assert_equal(local.step(one), remote.step(one))
        assert_equal(local.steps(inputs[6:25]), remote.steps(inputs[6:25]))
        assert local.prediction is not None
        assert remote.prediction is not None
        assert_equal(local.prediction, remote.prediction)
        with remote.fork() as away:
            fork = local.fork()
            assert_equal(fork.steps(inputs[25:]), away.steps(inputs[25:]))
            assert kept(fork.info()) == kept(away.info())
        assert kept(local.info()) == kept(remote.info())
        assert local.info().accuracy is not None


def assert_equal(mine: Prediction | Predictions, other: Prediction | Predictions) -> None:
    for name in ("surprise", "error", "anomaly"):
        told, expected = (np.array(getattr(one, name), np.float32) for one in (mine, other))
        np.testing.assert_array_equal(told, expected)
    assert (mine.interval is None, mine.step) == (other.interval is None, other.step)
    if mine.interval is not None and other.interval is not None:
        assert mine.interval.low.tobytes() == other.interval.low.tobytes()
        assert mine.interval.high.tobytes() == other.interval.high.tobytes()


def kept(info: SessionInfo) -> tuple[Any, ...]:
    return info.step, info.surprise, info.accuracy, info.interval


@pytest.mark.parametrize("interval", [0.4, 1.0])
def test_an_interval_that_no_service_takes_is_refused_in_process(client: Client, interval: float) -> None:
    for begin in (client.session, lambda name, **asked: onward.load(ZOO / name / "1").session(**asked)):
        with pytest.raises(InvalidRequest) as refused:
            begin("pulse", interval=interval)
        assert [error["field"] for error in refused.value.errors] == ["interval"]
        with pytest.raises(InvalidRequest, match="predicts no numbers, so there are no intervals"):
            begin("characters", interval=0.9)


@pytest.fixture(scope="module")
def gappy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one model of two numbers, which may both be missing."""
    folder: Path = tmp_path_factory.mktemp("gaps") / "models"
    spoken = numpy_networks.signature([Feature(name="x", nullable=True), Feature(name="y", nullable=True)], "x", "y")
    numpy_networks.export(numpy_networks.network(spoken, head="gaussian", scaling="causal", units=8), folder)
    return folder


@pytest.fixture(scope="module")
def gaps(gappy: Path) -> Iterator[Server]:
    with Server(gappy.parent, ONWARD_MODELS=str(gappy)) as running:
        yield running


def test_what_is_missing_has_no_error(gappy: Path, gaps: Server, twin: Twin) -> None:
    rows = [[10.0, 11.0], [None, 12.0], [9.0, 10.0], [None, None]]
    expected = plain(gaps, "tiny", rows, interval=INTERVAL)
    with twin(gaps.url) as client, client.session("tiny", interval=INTERVAL) as session:
        told = session.steps(rows)
        assert_same(told.each, expected)
        assert told.error is not None
        assert np.isnan(told.error).tolist() == [[False, False], [True, False], [False, False], [True, True]]
        info = session.info()
    here = onward.load(gappy / "tiny/1").session(interval=INTERVAL)
    assert_same(here.steps(rows).each, expected)
    assert kept(here.info()) == kept(info)


def test_the_command_tells_it_as_http_does(server: Server) -> None:
    """A line a step, null where nothing is known."""
    arguments, lines = ["stream", "-", "--model", "pulse", "--json"], "".join(f"{row}\n" for row in pulse(30))
    done = CliRunner().invoke(main, arguments, input=lines, env={"ONWARD_URL": server.url})
    assert done.exit_code == 0, done.output
    told, expected = [json.loads(line) for line in done.stdout.splitlines()], plain(server, "pulse", pulse(30))
    assert [one["error"] for one in told] == expected["error"]
    assert [one.get("anomaly") for one in told] == expected["anomaly"]
