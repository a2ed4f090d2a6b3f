"""The service is killed under its clients, in the middle of their steps."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import onward
from onward.client.results import Prediction
from tests.e2e.server import Server
from tests.helpers.reference_loop import ZOO, BareLoop, Steps, pulse

SESSIONS, STEPS = 4, 120
KILLED_AT = (60, 150, 300)
"""The service is killed when so many steps are answered, of all sessions together."""


class Progress:
    """Counts answers, and says when so many are there."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def more(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, 60)


def threads(url: str, rows: Sequence[Sequence[float]], progress: Progress) -> list[list[Prediction]]:
    def drive(predictions: list[Prediction]) -> None:
        with onward.Client(url) as client, client.session("pulse", keep=True) as session:
            for row in rows:
                predictions.append(session.step(row))
                progress.more()

    answers: list[list[Prediction]] = [[] for _ in range(SESSIONS)]
    running = [threading.Thread(target=drive, args=(predictions,)) for predictions in answers]
    for prediction in running:
        prediction.start()
    for prediction in running:
        prediction.join()
    return answers


def tasks(url: str, rows: Sequence[Sequence[float]], progress: Progress) -> list[list[Prediction]]:
    async def drive(client: onward.AsyncClient) -> list[Prediction]:
        predictions = []
        async with client.session("pulse", keep=True) as session:
            for row in rows:
                predictions.append(await session.step(row))
                progress.more()
        return predictions

    async def all_of_them() -> list[list[Prediction]]:
        async with onward.AsyncClient(url) as client:
            return await asyncio.gather(*(drive(client) for _ in range(SESSIONS)))

    return asyncio.run(all_of_them())


Drive = Callable[[str, Sequence[Sequence[float]], Progress], list[list[Prediction]]]


@pytest.mark.parametrize("clients", [threads, tasks])
def test_nothing_is_lost_or_doubled_over_kills(tmp_path: Path, clients: Drive) -> None:
    """Kill -9 of the whole service three times while four sessions step: each answer is the bare loop's, every session
    ends where its steps end, and no caller has seen an error.
    """
    rows = pulse(STEPS)
    expected = BareLoop(ZOO / "pulse/1").run(rows)
    progress = Progress()
    answers: list[list[Prediction]] = []
    with Server(tmp_path) as server:
        run = threading.Thread(target=lambda: answers.extend(clients(server.url, rows, progress)))
        run.start()
        for count in KILLED_AT:
            progress.wait_for(count)
            server.kill()
            server.start()
        run.join()
        with onward.Client(server.url) as client:
            assert [prediction.step for prediction in client.sessions("pulse")] == [STEPS] * SESSIONS
    assert len(answers) == SESSIONS
    for predictions in answers:
        assert_same(predictions, expected)


def assert_same(predictions: Sequence[Prediction], expected: Steps) -> None:
    assert [prediction.step for prediction in predictions] == list(range(1, STEPS + 1))
    for name in ("mean", "std"):
        assert np.stack([prediction[name] for prediction in predictions]).tobytes() == expected[name].tobytes()
    assert [prediction.surprise for prediction in predictions] == expected["surprise"].tolist()
