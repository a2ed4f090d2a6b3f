"""While a large model computes, the rest of its worker goes on."""

import statistics
import time
from pathlib import Path
from threading import Thread

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers.recorded_bundles import draw

BOUND_S = 0.010
"""What is asked of the service. A batch of this model takes several times as long here, on any machine that runs the
tests, so in the event loop most answers would be later; the median leaves room for what a busy machine holds up."""


@pytest.mark.train
def test_healthz_is_prompt_while_a_large_model_computes(tmp_path: Path) -> None:
    """One worker, one LSTM of 2 x 512 that is kept busy with batches: /healthz is answered in between them, at once."""
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
