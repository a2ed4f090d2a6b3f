"""A model in double precision tells neighbouring numbers apart in every message, as a model of `onward.load` does."""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import onward
from onward.client.results import Done, Generated, Outputs
from tests.e2e.server import Server
from tests.helpers.analytic_models import ar1
from tests.helpers.websocket_client import WebSocket

SIGMA = 0.001
VALUES = [1_700_000_000 + number / 1024 for number in range(12)]
"""Numbers of which single precision would make one."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `walk`, which predicts that the next value is the last one."""
    folder = tmp_path_factory.mktemp("double")
    ar1(folder / "models", 1.0, SIGMA, name="walk", dtype="float64")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with Server(folder, ONWARD_MODELS=str(folder / "models"), ONWARD_HISTORY="20") as server:
        yield server


def bits(outputs: Outputs | None) -> dict[str, tuple[Any, bytes]]:
    assert outputs is not None
    return {name: (values.dtype, values.tobytes()) for name, values in outputs.items()}


def test_predictions_are_those_of_the_session_in_process(folder: Path, served: Server) -> None:
    """Steps, forecasts, sample paths, generated steps and predictions have the same bits, in double precision."""
    local_model = onward.load(folder / "models/walk/1")
    local = local_model.session(inputs=VALUES[:2])
    with onward.Client(served.url) as client, client.session("walk", inputs=VALUES[:2]) as remote:
        for value in VALUES[2:4]:
            mine, theirs = local.step(value), remote.step(value)
            assert bits(mine) == bits(theirs)
            assert mine["mean"].tolist() == [value]
        some, same = local.steps(VALUES[4:8]), remote.steps(VALUES[4:8])
        assert bits(some) == bits(same)
        assert some["mean"][:, 0].tolist() == VALUES[4:8]
        assert [step["mean"].item() for step in remote.stream(VALUES[8:])] == VALUES[8:]
        assert [local.step(value)["mean"].item() for value in VALUES[8:]] == VALUES[8:]
        assert bits(local.forecast(3)) == bits(remote.forecast(3))
        assert local.forecast(3)["mean"].tolist() == [VALUES[-1:]] * 3
        drawn = local.forecast(3, samples=50, seed=7, paths=True)
        assert bits(drawn) == bits(remote.forecast(3, samples=50, seed=7, paths=True))
        assert 0 < drawn["paths"][:, 0].std() < 3 * SIGMA
        generated = [drawn_values(session.generate(3, seed=5)) for session in (local, remote)]
        assert generated[0] == generated[1]
        assert 0 < abs(generated[0][0] - VALUES[-1]) < 10 * SIGMA
        assert bits(local.fork().prediction) == bits(client.session("walk", inputs=VALUES).prediction)
        (whole,), (alone,) = client.predict("walk", [VALUES], 2), local_model.predict([VALUES], 2)
        assert bits(whole.predictions) == bits(alone.predictions)
        assert bits(whole.forecast) == bits(alone.forecast)
        accuracy = client.attach(remote.id).info().accuracy
        assert accuracy is not None
        assert accuracy["x"].mae == pytest.approx((VALUES[0] + 11 / 1024) / 12, abs=1e-6), "the first prediction is 0"


def test_intervals_have_the_digits_of_the_inputs(folder: Path, served: Server) -> None:
    """Errors and both ends of an interval are in double precision, in a service and in process."""
    local = onward.load(folder / "models/walk/1").session(inputs=VALUES[:1], interval=0.5)
    with onward.Client(served.url) as client, client.session("walk", inputs=VALUES[:1], interval=0.5) as remote:
        for value in VALUES[1:]:
            mine, theirs = local.step(value), remote.step(value)
            assert theirs.error is not None
            assert theirs.error.dtype == np.float64
            assert theirs.error.tolist() == [1 / 1024]
            assert mine.interval is not None
            assert theirs.interval is not None
            for end in ("low", "high"):
                assert getattr(mine.interval, end).tobytes() == getattr(theirs.interval, end).tobytes()
        assert remote.prediction is not None
        assert remote.prediction.interval is not None
        half = remote.prediction.interval.high.item() - VALUES[-1]
        assert 0 < half < 10 * SIGMA
        assert remote.prediction.interval.low.item() == pytest.approx(VALUES[-1] - half, abs=1e-6)


def drawn_values(events: Iterable[Generated | Done]) -> list[float]:
    return [event.values.item() for event in events if isinstance(event, Generated) and event.values is not None]


def test_messages_carry_doubles(served: Server) -> None:
    """The model says its type; a binary message has float64 values both ways, and JSON as many digits."""
    with served.client() as client:
        assert client.get("/v1/models/walk").json()["dtype"] == "float64"
        begun = client.post("/v1/models/walk/sessions", json={"session_id": "b", "inputs": VALUES[:1]}).json()
        assert (begun["prediction"]["mean"], begun["dtype"]) == (VALUES[:1], "float64")
        with WebSocket(served.url, "b") as stream:
            message = struct.pack("<Q", 3) + np.array(VALUES[1:4], "<f8").tobytes()
            for _ in range(2):  # the second is a retry
                stream.send(message)
                answer = stream.receive()
                rows = np.frombuffer(answer, "<f8", offset=8).reshape(3, -1)
                assert answer[:8] == struct.pack("<Q", 4)
                assert rows[:, 0].tolist() == VALUES[1:4]
                assert rows[:, 2].tolist() == [1 / 1024] * 3, "the error of each"
            stream.send(struct.pack("<Qf", 0, 1.0))
            assert "8 bytes" in stream.receive()["detail"]
            stream.send({"inputs": [VALUES[4]]})
            assert stream.receive()["predictions"]["mean"] == [[VALUES[4]]]
        text = client.post("/v1/sessions/b/steps", json={"inputs": [VALUES[5]]}).text
        assert f'"mean":[[{VALUES[5]}]]' in text
        assert rewound(client, "b", 3) == VALUES[2]


def rewound(client: httpx.Client, session_id: str, step: int) -> float:
    """Returns the prediction of the session after a rewind to that step."""
    client.post(f"/v1/sessions/{session_id}/rewind", json={"step": step}).raise_for_status()
    forecast = client.post(f"/v1/sessions/{session_id}/forecast", json={"horizon": 1}).json()
    value: float = forecast["forecast"]["mean"][0][0]
    return value


def test_many_sessions_in_one_call(served: Server) -> None:
    """Items and columns of a batch have each session's own digits."""
    names = [f"many-{number}" for number in range(len(VALUES))]
    with served.client() as client:
        for name in names:
            client.post("/v1/models/walk/sessions", json={"session_id": name}).raise_for_status()
        items = [{"session_id": name, "inputs": [value]} for name, value in zip(names, VALUES, strict=True)]
        answers = client.post("/v1/steps", json={"items": items}).json()["items"]
        assert [answer["predictions"]["mean"][0][0] for answer in answers] == VALUES
        columns = {"session_ids": names, "inputs": [[value] for value in VALUES]}
        answer = client.post("/v1/steps", json=columns).json()
        assert [rows[0][0] for rows in answer["predictions"]["mean"]] == VALUES
        assert answer["dtype"] == "float64"
