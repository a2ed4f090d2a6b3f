"""Predictions do not depend on other sessions, on chunking, or on the process that computes them."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np

from tests.e2e.server import Server
from tests.helpers.reference_loop import INPUTS, ZOO, BareLoop, assert_same_bits

RACE = 200


def test_two_racers_advance_a_session_exactly_once_a_step(server: Server) -> None:
    """When two clients send every step, exactly one of them wins each; the other is answered with the expected step."""
    inputs = INPUTS["pulse"](RACE)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    start = Barrier(2)

    def race(racer: int) -> tuple[list[int], list[int]]:
        """Returns the steps that this racer won, and the expected steps of the conflicts that it received."""
        won, conflicts, at = [], [], 0
        with server.client() as client:
            start.wait()
            while at < RACE:
                response = client.post("/v1/sessions/race/steps", json={"inputs": [inputs[at]], "step": at})
                if response.status_code == 200:
                    won.append(at)
                    assert_same_bits(response.json(), expected, slice(at, at + 1))
                    at += 1
                    assert response.json()["step"] == at
                else:
                    problem = response.json()
                    assert response.status_code == 409, response.text
                    assert problem["type"] == "urn:onward:problem:step-conflict"
                    assert problem["expected_step"] > at
                    conflicts.append(problem["expected_step"])
                    at = problem["expected_step"]
        return won, conflicts

    with server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "race"})
        with ThreadPoolExecutor(2) as pool:
            (won_a, conflicts_a), (won_b, conflicts_b) = pool.map(race, range(2))
        assert sorted(won_a + won_b) == list(range(RACE))
        assert conflicts_a or conflicts_b, "the racers never met, so the test shows nothing"
        assert client.get("/v1/sessions/race").json()["step"] == RACE


def test_racers_without_a_step_are_all_applied_one_after_another(server: Server) -> None:
    """Every acknowledged input without a `step` is applied once, though two processes compute at the same time."""
    with server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "free"})

    def send(racer: int) -> list[int]:
        with server.client() as client:
            return [
                client.post("/v1/sessions/free/steps", json={"inputs": [[500.0 + racer]]}).json()["step"]
                for _ in range(40)
            ]

    with ThreadPoolExecutor(4) as pool:
        steps = [step for reached in pool.map(send, range(4)) for step in reached]
    assert sorted(steps) == list(range(1, 161))


def test_retries_that_race_commit_once(server: Server) -> None:
    """Two clients that send the same request at the same moment receive the same response."""
    with server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "twice"})
    start = Barrier(2)

    def send(turn: int) -> list[object]:
        responses = []
        with server.client() as client:
            for number in range(50):
                start.wait()
                body = {"inputs": [[500.0 + number]], "request_id": f"r{number}"}
                responses.append(client.post("/v1/sessions/twice/steps", json=body).json())
        return responses

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(send, range(2))
    assert first == second
    assert [response["step"] for response in first] == list(range(1, 51))  # type: ignore[index]


def test_32_interleaved_sessions_predict_as_32_separate_ones(server: Server) -> None:
    """Sessions of two models and different lengths, cut into random pieces, are sent by 8 clients at once."""
    chance = random.Random(3)
    work = {}
    for number in range(32):
        model = ("pulse", "weather")[number % 2]
        inputs = INPUTS[model](20 + 11 * number, start=17 * number)
        work[f"i{number}"] = (model, inputs, BareLoop(ZOO / model / "1").run(inputs))

    def serve(names: list[str]) -> int:
        reached = dict.fromkeys(names, 0)
        calls = 0
        with server.client() as client:
            for name in names:
                client.post(f"/v1/models/{work[name][0]}/sessions", json={"session_id": name})
            while reached:
                name = chance.choice(list(reached))
                _, inputs, expected = work[name]
                piece = slice(reached[name], reached[name] + chance.choice((1, 1, 2, 5, 80)))
                response = client.post(f"/v1/sessions/{name}/steps", json={"inputs": inputs[piece]})
                assert response.status_code == 200, response.text
                assert_same_bits(response.json(), expected, piece)
                reached[name] = response.json()["step"]
                if reached[name] == len(inputs):
                    del reached[name]
                calls += 1
        return calls

    with ThreadPoolExecutor(8) as pool:
        calls = list(pool.map(serve, [sorted(work)[i::8] for i in range(8)]))
    assert sum(calls) > 32


def test_a_long_catch_up_is_one_atomic_advance(server: Server) -> None:
    """A call of 10,000 steps is a single commit and equals 10,000 single steps."""
    inputs = INPUTS["pulse"](10_000)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    with server.client() as client:
        client.post("/v1/models/pulse/sessions", json={"session_id": "long"})
        response = client.post("/v1/sessions/long/steps", json={"inputs": inputs}).json()
        assert response["step"] == 10_000
        assert_same_bits(response, expected)


def test_predict_and_forecast_equal_the_bare_loop(server: Server) -> None:
    """Stateless predictions and forecasts that feed the mean back equal the bare loop; the session does not change."""
    sequences = [INPUTS["pulse"](length, start=length) for length in (1, 70, 130)]
    with server.client() as client:
        response = client.post("/v1/models/pulse/predict", json={"inputs": sequences, "horizon": 4}).json()
        for sequence, inputs in zip(response["sequences"], sequences, strict=True):
            loop = BareLoop(ZOO / "pulse/1")
            expected = loop.run(inputs)
            assert_same_bits(sequence, expected)
            rolled = [expected["mean"][-1]]
            while len(rolled) < 4:
                rolled.append(loop.step(rolled[-1].tolist())["mean"])
            assert np.array(sequence["forecast"]["mean"], np.float32).tobytes() == np.stack(rolled).tobytes()
        client.post("/v1/models/pulse/sessions", json={"session_id": "f", "inputs": sequences[1]})
        forecast = client.post("/v1/sessions/f/forecast", json={"horizon": 4}).json()
        assert forecast["forecast"] == response["sequences"][1]["forecast"]
        assert forecast["step"] == client.get("/v1/sessions/f").json()["step"] == 70
