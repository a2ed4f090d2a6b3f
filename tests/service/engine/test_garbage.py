"""A request's memory is freed when it ends: there are no cycles, which only the garbage collector would find."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from onward.model.repository import open_all
from onward.model.sampling.generation import GenerationOptions
from onward.service.engine.batching.batch_row import StepRequest
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.http import problems, steps
from onward.service.http.session_ids import TENANT
from onward.service.store.lmdb import LmdbStore
from onward.service.websocket.endpoint import SessionProtocol
from tests.helpers.recorded_bundles import make_bundle

T = TENANT
TIMES = 10
BEYOND = [3e38, 3e38]

REQUESTS: dict[str, Any] = {
    "step": lambda engine: steps.reply(engine, "s", b'{"inputs": [10]}'),
    "steps": lambda engine: steps.reply(engine, "s", b'{"inputs": [10, 11, 12]}'),
    "step of no session": lambda engine: steps.reply(engine, "none", b'{"inputs": [10]}'),
    "step at another step": lambda engine: steps.reply(engine, "s", b'{"inputs": [10], "step": 7000}'),
    "step of nonsense": lambda engine: steps.reply(engine, "s", b'{"inputs": ["a"]}'),
    "step beyond what is finite": lambda engine: steps.reply(engine, "s", b'{"inputs": [3e38, 3e38]}'),
    "step of another form": lambda engine: steps.reply(engine, "s", b'{"inputz": [10]}'),
    "bulk": lambda engine: steps.reply(
        engine, None, b'{"items": [{"session_id": "s", "inputs": [1]}, {"session_id": "none", "inputs": [1]}]}'
    ),
    "stream": lambda engine: SessionProtocol(engine, "s").answers([(b'{"inputs": [10]}', True), (b"{}", True)]),
    "stream of no session": lambda engine: SessionProtocol(engine, "none").answers([(b'{"inputs": [10]}', True)] * 2),
    "in order": lambda engine: engine.steps.step_in_order(
        T, [StepRequest("s", [10]), StepRequest("s", BEYOND), StepRequest("s", ["a"])]
    ),
    "create": lambda engine: engine.create(T, "tiny", inputs=[10]),
    "create beyond what is finite": lambda engine: engine.create(T, "tiny", inputs=BEYOND),
    "predict": lambda engine: engine.predict("tiny", None, [[10], [11]], 5),
    "predict beyond what is finite": lambda engine: engine.predict("tiny", None, [[10], BEYOND], 5),
    "predict of nonsense": lambda engine: engine.predict("tiny", None, [["a"]], 5),
    "forecast": lambda engine: engine.forecasts.roll(T, "s", ForecastRequest(5, [10])),
    "forecast beyond what is finite": lambda engine: engine.forecasts.roll(T, "s", ForecastRequest(5, BEYOND)),
    "sample paths": lambda engine: engine.forecasts.sample(T, "s", ForecastRequest(5), samples=3),
    "draw": lambda engine: list(engine.generations.begin(T, "s", ForecastRequest(5), GenerationOptions()).steps()),
    "migrate": lambda engine: engine.history.migrate(T, "s", None),
    "rewind too far": lambda engine: engine.history.rewind(T, "s", 10**9),
}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    make_bundle(tmp_path / "models", name="tiny")
    started = Engine(open_all(tmp_path / "models"), LmdbStore(tmp_path / "store"), Limits(history=5))
    started.start(flush_s=1000, sweep_s=1000)
    started.create(T, "tiny", session_id="s", inputs=[10])
    yield started
    started.close()


def ask(engine: Engine, name: str) -> None:
    try:
        REQUESTS[name](engine)
    except Exception as error:  # noqa: BLE001  (as each protocol does)
        problems.of(error, "POST", "/")


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_leaves_nothing_for_the_collector(engine: Engine, name: str) -> None:
    """Requests of any kind leave no cycles, which would keep inputs until a collection stops the worker."""
    for _ in range(3):
        ask(engine, name)
    gevent.idle()
    gc.collect()
    gc.disable()
    try:
        for _ in range(TIMES):
            ask(engine, name)
        gevent.idle()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = [type(item).__qualname__ for item in gc.garbage]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(left) < TIMES, left
