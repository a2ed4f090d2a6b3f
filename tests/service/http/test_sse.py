"""A streamed generation runs beside live steps, waits for a slow reader and stops when its client has left."""

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gevent
import numpy as np
import pytest
from gevent.event import Event as Signal

from onward.model.sampling.generation import GeneratedStep, GenerationOptions
from onward.service.engine.batching.batch_row import BatchRow
from onward.service.engine.engine import Engine
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.http import sse
from onward.service.http.connection import hung_up
from onward.service.http.sse import Event
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.helpers.sse_reader import ReceivedEvent, read

T = "tenant"


def generated_values(engine: Engine) -> list[bytes]:
    """The values of each of 20 generated steps."""
    steps = engine.generations.begin(T, "p", ForecastRequest(20), GenerationOptions(), seed=1).steps()
    return [step.values.tobytes() for step in steps if isinstance(step, GeneratedStep)]


def record_batch_sizes(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """A list that receives the numbers of live steps and of other rows in each batch of the pulse model."""
    sizes: list[tuple[int, int]] = []
    executor = engine._batchers.by_model[engine.models.named("pulse")].executor
    run = executor.run

    def counting(batch: Sequence[BatchRow]) -> None:
        live = sum(bool(work.requests) for work in batch)
        sizes.append((live, len(batch) - live))
        run(batch)

    monkeypatch.setattr(executor, "run", counting)
    return sizes


def test_a_generation_shares_batches_and_does_not_advance_its_session(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated steps run in batches with live steps, and have the bits of a generation that runs alone."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    alone = generated_values(engine)
    sizes = record_batch_sizes(engine, monkeypatch)
    generating = gevent.spawn(generated_values, engine)
    live_means = [engine.steps.step(T, "live", [row]).outputs["mean"] for row in pulse(30)]
    assert generating.get() == alone
    assert np.concatenate(live_means).tobytes() == BareLoop(ZOO / "pulse/1").run(pulse(30))["mean"].tobytes()
    assert len(alone) == 20
    assert sizes.count((1, 1)) > 10
    assert engine.sessions.get(T, "p").record.step == 0


def long_generation(engine: Engine, session: str) -> Iterator[Event]:
    """The events of a generation that is too long to be read to its end."""
    for step in engine.generations.begin(T, session, ForecastRequest(10_000), GenerationOptions()).steps():
        yield Event("", b"%d" % step.ahead if isinstance(step, GeneratedStep) else b"end")


def close_response(stream: Any, connection: socket.socket) -> None:
    del connection
    stream.close()


def close_connection(stream: Any, connection: socket.socket) -> None:
    connection.close()
    assert sum(1 for _ in stream) <= sse.MOST_AHEAD + 1  # events that were generated before


@pytest.mark.parametrize("end", [close_response, close_connection])
def test_a_generation_stops_when_its_client_has_left(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, end: Callable[[Any, socket.socket], None]
) -> None:
    """After the response or the connection is closed, no further row of the generation runs or waits."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    sizes = record_batch_sizes(engine, monkeypatch)
    local, remote = socket.socketpair()
    with local, remote:
        stream = sse.stream(long_generation(engine, "p"), partial(hung_up, local.fileno()))
        assert next(stream) == b"id: \ndata: 1\n\n"
        before = sum(rows for _, rows in sizes)
        end(stream, remote)
    count = sum(rows for _, rows in sizes)
    assert count <= before + sse.MOST_AHEAD + 2
    for _ in range(20):
        engine.steps.step(T, "live", [[500]])
    assert sum(rows for _, rows in sizes) == count
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0


def test_a_generation_waits_for_a_slow_reader(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation is never more than a few events ahead of its reader."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    sizes = record_batch_sizes(engine, monkeypatch)
    stream: Any = sse.stream(long_generation(engine, "p"), None)
    next(stream)
    for _ in range(100):
        engine.steps.step(T, "live", [[500]])
    assert sse.MOST_AHEAD <= sum(rows for _, rows in sizes) <= sse.MOST_AHEAD + 2
    stream.close()


def test_comments_keep_a_silent_stream_alive() -> None:
    """Comments are sent while no event is ready, and the next event follows them."""
    go = Signal()

    def slow() -> Iterator[Event]:
        yield Event("1", b"{}")
        go.wait()
        yield Event("2", b"{}", "done")

    stream = sse.stream(slow(), None, beat_s=0.001)
    assert next(stream) == b"id: 1\ndata: {}\n\n"
    assert [next(stream) for _ in range(3)] == [b": \n\n"] * 3
    go.set()
    rest = b"".join(stream)
    assert rest.replace(b": \n\n", b"") == b"id: 2\nevent: done\ndata: {}\n\n"
    assert read(rest.decode())[-1] == ReceivedEvent("done", "2", {})
