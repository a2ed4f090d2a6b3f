"""The clients return error, anomaly and intervals as arrays with the numbers of the plain HTTP responses."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

import onward
from onward.__main__ import main
from onward.client import results
from onward.client.results import Accuracy, IntervalInfo, Prediction, Predictions, RecentAccuracy, SessionInfo
from onward.client.sync_client import Client
from onward.errors import InvalidRequest
from onward.model.manifest import Feature
from tests.client.both_clients import Twin
from tests.e2e.server import Server
from tests.helpers import numpy_networks
from tests.helpers.reference_loop import ZOO, pulse, weather

INTERVAL = 0.9
"""The bounds of such an interval are known after 9 inputs."""


def plain(server: Server, model: str, inputs: Any, **body: Any) -> dict[str, Any]:
    """The answer to all of the inputs, of a session of its own, as the wire has it."""
    with server.client() as http:
        made = http.post(f"/v1/models/{model}/sessions", json=body).raise_for_status().json()
        answer: httpx.Response = http.post(f"/v1/sessions/{made['session_id']}/steps", json={"inputs": inputs})
        response: dict[str, Any] = answer.raise_for_status().json()
        return response


def bounds(rows: list[list[float | None]], without: float) -> np.ndarray[Any, Any]:
    return np.array([[without if value is None else value for value in row] for row in rows], np.float32)


def assert_same(response: list[Prediction], expected: dict[str, Any]) -> None:
    """Asserts that the scores of each step are those of the response; null is None, NaN, or an infinite bound."""
    low, high = (bounds(expected["interval"][name], end) for name, end in (("low", -np.inf), ("high", np.inf)))
    errors = np.array(expected["error"], np.float32)
    assert [prediction.anomaly for prediction in response] == [
        None if value is None else float(np.float32(value)) for value in expected["anomaly"]
    ]
    for index, prediction in enumerate(response):
        assert prediction.error is not None
        assert prediction.interval is not None
        assert prediction.error.tobytes() == errors[index].tobytes()
        assert prediction.interval.low.tobytes() == low[index].tobytes()
        assert prediction.interval.high.tobytes() == high[index].tobytes()


def test_each_way_of_stepping_tells_it(server: Server, client: Client) -> None:
    """Step, steps, stream and many: the same for the same inputs, unbounded while little is known, and then not."""
    rows = weather(40)
    expected = plain(server, "weather", rows, interval=INTERVAL)
    assert expected["interval"]["low"][0] == [None] * 4
    assert None not in expected["interval"]["low"][-1]
    assert None not in expected["anomaly"][-20:]
    assert expected["anomaly"][0] is None
    with client.session("weather", interval=INTERVAL) as session:
        response = [session.step(row) for row in rows[:5]]
        some = session.steps(rows[5:20])
        response += some.each
        (many,) = client.step_many([(session, rows[20:30])])
        assert isinstance(many, Predictions)
        response += [*many.each, *session.stream(rows[30:])]
        assert_same(response, expected)
        assert session.prediction is response[-1]
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
        response = session.steps("The assert statement of the language")
        assert (response.error, response.interval) == (None, None)
        assert response.anomaly is not None
        assert response.last.anomaly is not None
    stateless = client.held("pulse", [515]).predictions
    assert (stateless.error, stateless.anomaly, stateless.interval) == (None, None, None)


def test_a_session_tells_how_it_has_done(server: Server, client: Client) -> None:
    """The accuracy by target is that of the plain response; lists of sessions and new sessions do not have it."""
    rows = weather(40)
    with client.session("weather", inputs=rows, interval=0.9) as session, server.client() as http:
        info, raw = session.info(), http.get(f"/v1/sessions/{session.id}").json()
        assert info.accuracy == {
            target: Accuracy(**numbers | {"recent": RecentAccuracy(**numbers["recent"])})
            for target, numbers in raw["accuracy"].items()
        }
        assert list(info.accuracy) == ["precipitation", "temp_max", "temp_min", "wind"]
        assert info.accuracy["wind"].inputs == 40
        assert info.interval is not None
        assert info.interval.wanted == 0.9
        assert info.interval == IntervalInfo(**raw["interval"])
        assert info.accuracy["wind"].recent
        assert info.accuracy["wind"].recent.inputs == 40
        before = {"accuracy": {"wind": {"inputs": 40, "hits": None}}, "interval": raw["interval"].copy()}
        del before["interval"]["recent_coverage"]
        earlier = results.session(raw | before)  # a service of an earlier version
        assert earlier.accuracy == {"wind": Accuracy(40)}
        assert earlier.interval == replace(info.interval, recent_coverage={})
        (listed,) = [prediction for prediction in client.sessions("weather") if prediction.session_id == session.id]
        assert (listed.accuracy, listed.interval) == (None, None)
    with client.session("characters", inputs="The assert statement") as session:
        accuracy = session.info().accuracy
        assert accuracy is not None
        (hits,) = [prediction.hits for prediction in accuracy.values()]
        assert hits is not None
        assert 0 < hits < 1
        assert session.info().interval is None


@pytest.mark.parametrize(
    ("model", "inputs", "options"),
    [
        ("weather", weather(230), {"interval": 0.9}),
        ("pulse", pulse(230), {}),
        ("pulse", pulse(230), {"anomaly": "tail"}),
        ("characters", "The assert statement of the la", {"anomaly": "rank"}),
    ],
)
def test_in_process_it_is_told_alike(client: Client, model: str, inputs: Any, options: dict[str, Any]) -> None:
    """Seeded, step by step, many at once and forked: every number of a service's answers, and of what it keeps."""
    local = onward.load(ZOO / model / "1").session(inputs=inputs[:3], **options)
    with client.session(model, inputs=inputs[:3], **options) as remote:
        for session in (local, remote):
            assert session.prediction is not None
            assert (session.prediction.surprise, session.prediction.error, session.prediction.anomaly) == (None,) * 3
        for prediction in inputs[3:6]:
            assert_equal(local.step(prediction), remote.step(prediction))
        assert_equal(local.steps(inputs[6:-6]), remote.steps(inputs[6:-6]))
        assert local.prediction is not None
        assert remote.prediction is not None
        assert_equal(local.prediction, remote.prediction)
        with remote.fork() as away:
            fork = local.fork()
            assert_equal(fork.steps(inputs[-6:]), away.steps(inputs[-6:]))
            assert statistics(fork.info()) == statistics(away.info())
        assert statistics(local.info()) == statistics(remote.info())
        assert local.info().accuracy is not None
        assert local.info().anomaly == options.get("anomaly", "run")


def assert_equal(mine: Prediction | Predictions, expected_prediction: Prediction | Predictions) -> None:
    for name in ("surprise", "error", "anomaly"):
        response, expected = (
            np.array(getattr(prediction, name), np.float32) for prediction in (mine, expected_prediction)
        )
        np.testing.assert_array_equal(response, expected)
    assert (mine.interval is None, mine.step) == (expected_prediction.interval is None, expected_prediction.step)
    if mine.interval is not None and expected_prediction.interval is not None:
        assert mine.interval.low.tobytes() == expected_prediction.interval.low.tobytes()
        assert mine.interval.high.tobytes() == expected_prediction.interval.high.tobytes()


def statistics(info: SessionInfo) -> tuple[Any, ...]:
    return info.step, info.surprise, info.accuracy, info.interval, info.anomaly


@pytest.mark.parametrize("interval", [0.4, 1.0])
def test_an_interval_that_no_service_takes_is_refused_in_process(client: Client, interval: float) -> None:
    for begin in (client.session, lambda name, **asked: onward.load(ZOO / name / "1").session(**asked)):
        with pytest.raises(InvalidRequest) as refused:
            begin("pulse", interval=interval)
        assert [error["field"] for error in refused.value.errors] == ["interval"]
        with pytest.raises(InvalidRequest) as refused:
            begin("pulse", anomaly="mean")  # type: ignore[arg-type]
        assert [error["field"] for error in refused.value.errors] == ["anomaly"]
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
        response = session.steps(rows)
        assert_same(response.each, expected)
        assert response.error is not None
        assert np.isnan(response.error).tolist() == [[False, False], [True, False], [False, False], [True, True]]
        info = session.info()
    local_session = onward.load(gappy / "tiny/1").session(interval=INTERVAL)
    assert_same(local_session.steps(rows).each, expected)
    assert statistics(local_session.info()) == statistics(info)


def test_the_command_tells_it_as_http_does(server: Server) -> None:
    """A line a step, null where nothing is known."""
    arguments, lines = ["stream", "-", "--model", "pulse", "--json"], "".join(f"{row}\n" for row in pulse(30))
    done = CliRunner().invoke(main, arguments, input=lines, env={"ONWARD_URL": server.url})
    assert done.exit_code == 0, done.output
    response, expected = [json.loads(line) for line in done.stdout.splitlines()], plain(server, "pulse", pulse(30))
    assert [prediction["error"] for prediction in response] == expected["error"]
    assert [prediction.get("anomaly") for prediction in response] == expected["anomaly"]
