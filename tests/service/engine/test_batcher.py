"""Batchers: deadlines, bounds, clients that disconnect, shares of models, and failures of batches."""

from collections.abc import Callable, Sequence
from pathlib import Path

import gevent
import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.repository import open_all
from onward.model.runner import Outputs, StepModel
from onward.model.sampling.generation import GenerationOptions
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.service.engine.batching import cost, executor
from onward.service.engine.batching.batch_row import BatchRow, StepRequest, StepResult
from onward.service.engine.batching.batcher import result_of
from onward.service.engine.batching.executor import Executor
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.errors import (
    AbandonedError,
    DeadlineError,
    NotFiniteError,
    OverloadedError,
    StoreUnavailableError,
)
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.reference_loop import ZOO
from tests.service.conftest import Clock

T = "tenant"


@pytest.mark.parametrize(
    ("owner", "method", "error"),
    [
        (LmdbStore, "commit_many", StoreUnavailableError("store is down")),
        (StepModel, "run_step", ZeroDivisionError()),
        (Executor, "run", ZeroDivisionError()),
    ],
    ids=["the store", "a bug in running", "a bug outside running"],
)
def test_a_failed_batch_answers_each_client(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, error: Exception
) -> None:
    """An error of any kind reaches the client, no client waits for ever, and the next batch runs."""
    engine.create(T, "pulse", session_id="s")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(owner, method, fail)
    with pytest.raises(type(error)) as raised:
        engine.steps.step(T, "s", [[500]])
    assert raised.value is error
    monkeypatch.undo()
    assert engine.steps.step(T, "s", [[500]]).step == 1


def test_a_row_that_cannot_go_on_fails_alone(engine: Engine) -> None:
    """A row whose sampler raises an error fails alone: the rows beside it are answered."""
    engine.create(T, "pulse", session_id="s")
    model, batchers = engine.models.named("pulse"), engine._batchers

    def fail(outputs: Outputs) -> NDArray[np.float32]:
        raise ValueError("nothing can be drawn")

    call, state = batchers.call(3), model.layout.initial(1)
    step = np.full((1, 1), 500, np.float32)
    failing = batchers.standalone_row(model, step, call, state, horizon=3, feed=RolloutInputs(model, sampler=fail))
    sound = [batchers.standalone_row(model, step, call, state, horizon=3) for _ in range(2)]
    batchers.run(call, [sound[0], failing, sound[1]])
    assert isinstance(failing.outcome, ValueError)
    assert [len(result_of(work).outputs) for work in sound] == [4, 4]
    assert engine.steps.step(T, "s", [[500]]).step == 1


def test_a_late_step_is_refused_and_not_applied(engine: Engine, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step whose deadline passes while it waits is refused, and the session does not move."""
    engine.create(T, "pulse", session_id="s")
    run = Executor.run

    def slow(self: Executor, batch: list[BatchRow]) -> None:
        clock.now += 31
        run(self, batch)

    monkeypatch.setattr(Executor, "run", slow)
    with pytest.raises(DeadlineError):
        engine.steps.step(T, "s", [[500]] * 65)  # two calls; the second is too late
    monkeypatch.undo()
    assert engine.sessions.get(T, "s").record.step == 0


def test_more_items_than_may_wait_are_refused_at_once(tmp_path: Path) -> None:
    """The queue is bounded, and the refusal comes before any work."""
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(max_waiting=3))
    engine.start()
    with pytest.raises(OverloadedError):
        engine.predict("pulse", None, [[[500]]] * 4, 0)
    engine.close()


def test_a_call_of_a_disconnected_client_is_dropped_between_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long call of a client that has left ends between two chunks, and its session does not move."""
    monkeypatch.setattr("onward.service.engine.batching.batcher.DISCONNECT_CHECK_S", 0.0)
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    engine.create(T, "pulse", session_id="s")
    with pytest.raises(AbandonedError):
        engine.steps.step(T, "s", [[500.0]] * 100_000, has_left=lambda: True)
    assert engine.sessions.get(T, "s").record.step == 0
    assert engine.steps.step(T, "s", [[500.0]]).step == 1
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0
    engine.close()


STEPS = [[500.0]] * 20_000
LONG: dict[str, Callable[[Engine, Callable[[], bool]], object]] = {
    "step": lambda engine, has_left: engine.steps.step(T, "s", STEPS, has_left=has_left),
    "steps in order": lambda engine, has_left: raise_first(
        engine.steps.step_in_order(T, [StepRequest("s", STEPS)] * 9, has_left=has_left)
    ),
    "bulk": lambda engine, has_left: raise_first(
        engine.steps.step_many(T, [StepRequest(name, STEPS) for name in "st"], has_left=has_left)
    ),
    "create": lambda engine, has_left: engine.create(T, "pulse", inputs=STEPS, has_left=has_left),
    "predict": lambda engine, has_left: engine.predict("pulse", None, [[500]], 9999, has_left=has_left),
    "stateless step": lambda engine, has_left: engine.stateless.step(T, "pulse", None, STEPS, None, has_left=has_left),
    "forecast": lambda engine, has_left: engine.forecasts.roll(T, "s", ForecastRequest(9999), has_left=has_left),
    "forecast after inputs": lambda engine, has_left: engine.forecasts.roll(
        T, "s", ForecastRequest(2, STEPS), has_left=has_left
    ),
    "sample paths": lambda engine, has_left: engine.forecasts.sample(
        T, "s", ForecastRequest(9999), samples=9, has_left=has_left
    ),
    "draw": lambda engine, has_left: list(
        engine.generations.begin(T, "s", ForecastRequest(9999), GenerationOptions(), has_left=has_left).steps()
    ),
    "rewind": lambda engine, has_left: engine.history.rewind(T, "old", 1999, has_left=has_left),
    "migrate": lambda engine, has_left: engine.history.migrate(T, "old", None, has_left=has_left),
}


def raise_first(answers: Sequence[object]) -> None:
    for answer in answers:
        assert isinstance(answer, Exception)
        raise answer


@pytest.mark.parametrize("name", LONG)
def test_every_kind_of_call_of_a_disconnected_client_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A call of any kind runs while its client is connected, and no further after that."""
    monkeypatch.setattr("onward.service.engine.batching.batcher.DISCONNECT_CHECK_S", 0.0)
    engine = Engine(
        open_all(ZOO), LmdbStore(tmp_path), Limits(history=2000), seal=SignedTokens(["0123456789abcdef" * 2])
    )
    engine.start()
    for session_id in "st":
        engine.create(T, "pulse", session_id=session_id)
    engine.create(T, "pulse", session_id="old")
    engine.steps.step(T, "old", [[500.0]] * 2000)
    calls = []
    run = Executor.run

    def counted(self: Executor, batch: list[BatchRow]) -> None:
        calls.append(len(batch))
        run(self, batch)

    monkeypatch.setattr(Executor, "run", counted)
    with pytest.raises(AbandonedError):
        LONG[name](engine, lambda: len(calls) > 3)
    assert 3 < len(calls) < 100
    gevent.sleep(0)
    assert engine.steps.step(T, "t", [[500.0]]).step == 1
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0
    assert engine.sessions.get(T, "s").record.step == 0
    assert engine.sessions.get(T, "old").record.step == 2000
    engine.close()


def test_a_disconnect_is_noticed_while_a_batch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check reaches the rows of a batch in a native thread too: a single call may never wait when it is made."""
    setting = "onward.service.engine.batching.batcher.DISCONNECT_CHECK_S"
    monkeypatch.setattr(setting, 3600.0)  # only the test looks for disconnects
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    engine.start()
    monkeypatch.setattr(setting, -1.0)
    engine.create(T, "pulse", session_id="s")
    run = Executor.run

    def checked(self: Executor, batch: list[BatchRow]) -> None:
        engine._batchers.mark_disconnected_calls()
        run(self, batch)

    monkeypatch.setattr(Executor, "run", checked)
    with pytest.raises(AbandonedError):
        engine.forecasts.roll(T, "s", ForecastRequest(9999), has_left=lambda: True)
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0
    engine.close()


def test_models_have_fair_shares(engine: Engine) -> None:
    """A long call of one model holds up neither the steps of another model nor other steps of its own."""
    engine.create(T, "pulse", session_id="long")
    engine.create(T, "pulse", session_id="beside")
    engine.create(T, "weather", session_id="other")
    long = gevent.spawn(engine.steps.step, T, "long", [[500.0]] * 50_000)
    for step in range(1, 31):
        assert engine.steps.step(T, "other", [[1, 2, 3, 4]]).step == step
        assert engine.steps.step(T, "beside", [[500.0]]).step == step
    assert not long.ready()
    assert long.get().step == 50_000


def test_a_failed_sequence_ends_its_siblings(engine: Engine) -> None:
    """If one sequence of a predict call fails, the others do not run on."""
    sequences = [[[3e38]], *([[500.0]] * 500 for _ in range(20))]
    with pytest.raises(NotFiniteError):
        engine.predict("pulse", None, sequences, 4000)
    gevent.sleep(0)
    engine.predict("pulse", None, [[[500.0]]], 0)
    assert sum(batcher.scheduler.waiting for batcher in engine._batchers.by_model.values()) == 0


def test_a_long_call_is_queued_in_parts(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other steps wait for one batch of the call, not for all of it; all its items are answered, in order."""
    for name in ("other", *(f"s{number}" for number in range(50))):
        engine.create(T, "pulse", session_id=name)
    batcher = engine._batchers.by_model[engine.models.named("pulse")]
    waiting, submit = [0], batcher.submit

    def counted(item: BatchRow) -> None:
        submit(item)
        waiting.append(batcher.scheduler.waiting)

    monkeypatch.setattr(batcher, "submit", counted)
    monkeypatch.setattr(cost, "MOST_ROWS", 8)
    many = [StepRequest(f"s{number}", [500.0 + number]) for number in range(50)]
    answers = engine.steps.step_many(T, many)
    assert max(waiting) <= 8 + 8  # items of the running batch are counted until the batch is over
    waiting.clear()
    assert [answer.step for answer in answers if isinstance(answer, StepResult)] == [1] * 50
    alone = [engine.steps.step(T, "other", request.inputs, step=number).outputs for number, request in enumerate(many)]
    assert np.array_equal(answers[0].outputs["mean"], alone[0]["mean"])  # type: ignore[union-attr]
    outputs = engine.predict("pulse", None, [[[500.0 + number]] for number in range(50)], 3)
    assert [len(prediction.outputs) for prediction in outputs] == [1] * 50
    assert max(waiting) <= 8 + 8


def test_a_large_batch_is_scored_in_parts_as_in_one(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers of many long rows and the statistics of their sessions do not depend on the parts, to the bit."""
    for number in range(40):
        for part in "ab":
            engine.create(T, "pulse", session_id=f"{part}{number}", interval=0.9 if number % 3 == 0 else None)
    answers: list[object] = []
    for part, at_once in (("a", 10**9), ("b", 16)):
        monkeypatch.setattr(executor, "SCORED_AT_ONCE", at_once)
        many = [StepRequest(f"{part}{number}", [500.0 + number, *range(480, 480 + number % 5)]) for number in range(40)]
        results = engine.steps.step_many(T, many)
        records = [engine.sessions.get(T, request.session_id).record for request in many]
        answers.append(
            [
                (
                    answer.outputs.tobytes() if isinstance(answer, StepResult) else answer,
                    record.accuracy,
                    record.surprise,
                )
                for answer, record in zip(results, records, strict=True)
            ]
        )
    assert answers[0] == answers[1]
