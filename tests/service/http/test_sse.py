"""A draw on its way: beside live steps, no further than it is read, and no more when nobody asks."""

import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import gevent
import numpy as np
import pytest
from gevent.event import Event as Signal

from onward.model.sampling.generation import GeneratedStep, GenerationOptions
from onward.service.engine.batching.work_item import WorkItem
from onward.service.engine.engine import Engine
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.http import sse
from onward.service.http.connection import hung_up
from onward.service.http.sse import Event
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.helpers.sse_reader import ReceivedEvent, read

T = "tenant"


def drawn(engine: Engine) -> list[bytes]:
    """The values of each of 20 steps."""
    steps = engine.generations.begin(T, "p", ForecastRequest(20), GenerationOptions(), seed=1).steps()
    return [step.values.tobytes() for step in steps if isinstance(step, GeneratedStep)]


def counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Of each batch of the pulse model, how many rows were live steps, and how many were not."""
    sizes: list[tuple[int, int]] = []
    executor = engine._batchers.by_model[engine.models.named("pulse")].executor
    run = executor.run

    def counting(batch: Sequence[WorkItem]) -> None:
        live = sum(bool(work.requests) for work in batch)
        sizes.append((live, len(batch) - live))
        run(batch)

    monkeypatch.setattr(executor, "run", counting)
    return sizes


def test_a_draw_shares_batches_and_moves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps run beside live ones, with the bits that they have alone."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    alone = drawn(engine)
    sizes = counted(engine, monkeypatch)
    drawing = gevent.spawn(drawn, engine)
    said = [engine.steps.step(T, "live", [row]).outputs["mean"] for row in pulse(30)]
    assert drawing.get() == alone
    assert np.concatenate(said).tobytes() == BareLoop(ZOO / "pulse/1").run(pulse(30))["mean"].tobytes()
    assert len(alone) == 20
    assert sizes.count((1, 1)) > 10
    assert engine.sessions.get(T, "p").record.step == 0


def endless(engine: Engine, session: str) -> Iterator[Event]:
    """A draw that nobody sees the end of."""
    for one in engine.generations.begin(T, session, ForecastRequest(10_000), GenerationOptions()).steps():
        yield Event("", b"%d" % one.ahead if isinstance(one, GeneratedStep) else b"end")


def closed(stream: Any, connection: socket.socket) -> None:
    del connection
    stream.close()


def left(stream: Any, connection: socket.socket) -> None:
    connection.close()
    assert sum(1 for _ in stream) <= sse.MOST_AHEAD + 1  # what was made already


@pytest.mark.parametrize("ends", [closed, left])
def test_a_draw_stops_when_nobody_asks_any_more(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, ends: Callable[[Any, socket.socket], None]
) -> None:
    """Whether the response is closed or the client has left: no row of it runs any more, and nothing waits."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    sizes = counted(engine, monkeypatch)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = sse.stream(endless(engine, "p"), partial(hung_up, ours.fileno()))
        assert next(stream) == b"id: \ndata: 1\n\n"
        before = sum(rows for _, rows in sizes)
        ends(stream, theirs)
    ran = sum(rows for _, rows in sizes)
    assert ran <= before + sse.MOST_AHEAD + 2
    for _ in range(20):
        engine.steps.step(T, "live", [[500]])
    assert sum(rows for _, rows in sizes) == ran
    assert sum(batcher.waiting for batcher in engine._batchers.by_model.values()) == 0


def test_a_draw_waits_for_a_slow_reader(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never more than a few events ahead of what was taken."""
    engine.create(T, "pulse", session_id="p")
    engine.create(T, "pulse", session_id="live")
    sizes = counted(engine, monkeypatch)
    stream: Any = sse.stream(endless(engine, "p"), None)
    next(stream)
    for _ in range(100):
        engine.steps.step(T, "live", [[500]])
    assert sse.MOST_AHEAD <= sum(rows for _, rows in sizes) <= sse.MOST_AHEAD + 2
    stream.close()


def test_silence_is_kept_alive() -> None:
    """Comments come where nothing else does, and the next event after them."""
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
