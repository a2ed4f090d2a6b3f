"""A worker answers other requests while a large model computes."""

import statistics
import time
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers.recorded_bundles import draw

BOUND_S = 0.010
"""The bound on the median response time. A batch of this model takes several times as long on any machine that runs the
tests, so most responses would be later if it ran in the event loop; the median tolerates delays by a busy machine."""


@pytest.mark.train
def test_healthz_is_prompt_while_a_large_model_computes(tmp_path: Path) -> None:
    """A worker that is busy with batches of an LSTM of 2 x 512 answers /healthz between them without delay."""
    from tests.helpers import random_bundles  # noqa: PLC0415  (needs the train extra; its graph is too large to record)

    random_bundles.make_bundle(tmp_path / "models", name="large", layers=2, units=512)
    inputs = draw(64, 400).round(2).tolist()
    with Server(tmp_path, ONWARD_WORKERS="1", ONWARD_MODELS=str(tmp_path / "models")) as server:
        answers: list[httpx.Response] = []

        def predict() -> None:
            with httpx.Client(base_url=server.url, timeout=120) as client:
                answers.append(client.post("/v1/models/large/predict", json={"inputs": inputs}))

        computing = Thread(target=predict)
        with server.client() as client:
            client.get("/healthz")
            computing.start()
            took = []
            while computing.is_alive():
                began = time.perf_counter()
                assert client.get("/healthz").status_code == 200
                took.append(time.perf_counter() - began)
        computing.join()
    assert [answer.status_code for answer in answers] == [200]
    assert len(took) > 50
    assert statistics.median(took) < BOUND_S, statistics.median(took)
