"""The engine in process, with a clock that the test sets: expiry, races between processes, failures."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pytest

from onward.model.errors import BundleError
from onward.model.repository import Opened, open_all
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.layout import ERROR, Sum
from onward.model.state import State
from onward.service.engine.batching.batch_row import StepRequest
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.engine.sessions.lifecycle import SessionFilter
from onward.service.errors import (
    DamagedRecordError,
    ForeignRecordError,
    InvalidInputError,
    ModelGoneError,
    NotFiniteError,
    ReloadedError,
    SessionEndedError,
    SessionExistsError,
    StepConflictError,
    UnknownSessionError,
)
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import TOMBSTONE_S, Record
from tests.contracts.test_stores import another_format, damage, in_another_process, set_bytes, stored_bytes
from tests.helpers.recorded_bundles import make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.service.conftest import Clock

T = "tenant"


def test_sessions_expire_when_idle_and_steps_prolong_them(engine: Engine, store: LmdbStore, clock: Clock) -> None:
    """A session lives ttl_s after its last step; it is reported as ended for a day, and then as unknown."""
    engine.create(T, "pulse", session_id="s", ttl_s=10)
    clock.now += 9
    engine.steps.step(T, "s", [[500]])
    clock.now += 9
    assert engine.sessions.get(T, "s").record.step == 1
    clock.now += 1
    due = clock.now
    for _ in range(2):  # before a sweep, and after
        with pytest.raises(SessionEndedError) as ended:
            engine.steps.step(T, "s", [[500]])
        assert (ended.value.reason, ended.value.ended_at) == ("expired", due)
        store.sweep(clock.now)
    clock.now = due + TOMBSTONE_S
    with pytest.raises(UnknownSessionError):
        engine.sessions.get(T, "s")


def test_an_expired_sessions_id_is_free_at_once(engine: Engine, clock: Clock) -> None:
    """The id of an expired session is free before a sweep; that of a live session is not."""
    engine.create(T, "pulse", session_id="s", ttl_s=10, inputs=[[500]])
    with pytest.raises(SessionExistsError):
        engine.create(T, "pulse", session_id="s")
    clock.now += 10
    session, _ = engine.create(T, "weather", session_id="s")
    assert (session.record.step, session.record.ref.model) == (0, "weather")
    engine.steps.step(T, "s", [[1, 2, 3, 4]])


def test_a_step_follows_an_id_to_another_model(engine: Engine, store: LmdbStore) -> None:
    """A step that was queued for the old model runs on the model that now has the session of that id."""
    engine.create(T, "pulse", session_id="s")
    engine.steps.step(T, "s", [[500]])
    old = store.load_many([records.key(T, "s")])[0]
    assert isinstance(old, Record)
    second, _ = engine.create(T, "weather", session_id="other")
    store.commit_many([Change(records.key(T, "s"), old.revision, second.record)])  # as another process would
    assert engine.steps.step(T, "s", [[1, 2, 3, 4]]).model.manifest.name == "weather"


def test_tenants_do_not_see_each_other(engine: Engine) -> None:
    """The same id in two tenants is two sessions."""
    engine.create(T, "pulse", session_id="s")
    with pytest.raises(UnknownSessionError):
        engine.steps.step("another", "s", [[500]])
    engine.create("another", "pulse", session_id="s", inputs=[[500], [501]])
    assert engine.sessions.get(T, "s").record.step == 0
    assert [listed.session_id for listed in engine.sessions.page("another", "", 10, None)[0]] == ["s"]


def test_a_step_that_another_process_overtook_is_recomputed(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If another process commits between load and commit, both inputs are applied, each once."""
    inputs = pulse(3)
    engine.create(T, "pulse", session_id="s")
    engine.steps.step(T, "s", inputs[:1])
    model = engine.models.named("pulse")
    run = StepModel.run_step
    overtaken: list[bool] = []

    def overtake(self: StepModel, *args: Any) -> object:
        if not overtaken:
            overtaken.append(True)
            before = store.load_many([records.key(T, "s")])[0]
            assert isinstance(before, Record)
            state = model.layout.stack([before.state])
            _, after = model.run(np.array([inputs[1:2]], np.float32), np.array([1], np.int32), state)
            step = before.replace(revision=before.revision + 1, step=2, state=after.tobytes())
            assert store.commit_many([Change(records.key(T, "s"), before.revision, step)]) == [True]
        return run(self, *args)

    monkeypatch.setattr(StepModel, "run_step", overtake)
    answer = engine.steps.step(T, "s", inputs[2:])
    assert overtaken
    assert answer.step == 3
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    assert answer.outputs["mean"].tobytes() == expected["mean"][2:].tobytes()


def test_changes_by_another_process_are_noticed(engine: Engine, store: LmdbStore) -> None:
    """A process with a cached record follows the steps, retries and ends that another process committed."""
    inputs = pulse(4)
    for name in "abc":
        engine.create(T, "pulse", session_id=name)
        engine.steps.step(T, name, inputs[:1], request_id="first")
    second_engine = Engine(open_all(ZOO), in_another_process(store), Limits(), clock=vars(engine)["_clock"])
    second_engine.start()
    first = second_engine.steps.step(T, "a", inputs[1:2], request_id="second")
    second_engine.steps.step(T, "b", inputs[1:2])
    second_engine.sessions.delete(T, "c")
    again = engine.steps.step(T, "a", inputs[1:2], request_id="second")
    assert (again.step, again.outputs.tobytes()) == (2, first.outputs.tobytes())
    with pytest.raises(StepConflictError) as conflict:
        engine.steps.step(T, "b", inputs[2:3], step=1)
    assert conflict.value.expected == 2
    assert engine.steps.step(T, "b", inputs[2:3], step=2).step == 3
    second_engine.steps.step(T, "b", inputs[3:])
    with pytest.raises(SessionEndedError):
        engine.steps.step(T, "c", inputs[1:2])
    second_engine.create(T, "pulse", session_id="c")
    assert engine.steps.step(T, "c", inputs[1:2]).step == 1  # another session, and no step of it is lost
    second_engine.sessions.delete(T, "c")
    second_engine.create(T, "weather", session_id="c")
    assert engine.steps.step(T, "c", [[1, 2, 3, 4]]).step == 1
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    after = second_engine.steps.step(T, "b", inputs[:1])
    assert after.outputs.tobytes() != first.outputs.tobytes()
    assert engine.steps.step(T, "a", inputs[2:]).outputs["mean"].tobytes() == expected["mean"][2:].tobytes()
    gevent.killall(vars(second_engine)["_greenlets"])  # both engines share a store


@pytest.mark.parametrize("plain", [1, 12])
def test_overtaken_rows_beside_others_are_recomputed(engine: Engine, store: LmdbStore, plain: int) -> None:
    """An input is applied once, whichever rows share a batch and whichever of them were overtaken."""
    sessions = {f"plain-{number}": 1 for number in range(plain)} | {"interval-0": 1, "interval-1": 1, "a": 3, "b": 3}
    inputs = pulse(5)
    for name in sessions:
        engine.create(T, "pulse", session_id=name, interval=0.8 if name.startswith("interval") else None)
        engine.steps.step(T, name, inputs[:1])
    second_engine = Engine(open_all(ZOO), in_another_process(store), Limits(), clock=vars(engine)["_clock"])
    second_engine.start()
    overtaken = [name for name in sessions if name != "interval-1"]
    for name in overtaken:
        second_engine.steps.step(T, name, inputs[1:2])
    tasks: dict[str, Any] = {}
    for name, steps in sorted(sessions.items(), key=lambda session: -session[1]):  # long rows start again among others
        start = 2 if name in overtaken else 1
        tasks[name] = gevent.spawn(engine.steps.step, T, name, inputs[start : start + steps])
    gevent.joinall(list(tasks.values()), raise_error=True)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)["mean"]
    for name, task in tasks.items():
        start = 2 if name in overtaken else 1
        assert task.value.step == start + sessions[name]
        assert task.value.outputs["mean"].tobytes() == expected[start : task.value.step].tobytes()
    gevent.killall(vars(second_engine)["_greenlets"])  # both engines share a store


def test_an_overtaken_row_waits_for_its_turn_with_rows_of_its_size(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that starts again runs with rows as long as it is, and not with those as long as its last call was."""
    engine.create(T, "pulse", session_id="long")
    for name in "ab":
        engine.create(T, "pulse", session_id=name, interval=0.8)
    before = engine.sessions.get(T, "long").record
    in_another_process(store).commit_many(
        [Change(records.key(T, "long"), before.revision, before.replace(revision=before.revision + 1))]
    )
    shapes, run = list[tuple[int, ...]](), StepModel.run

    def recorded(self: StepModel, inputs: Any, *more: Any) -> object:
        shapes.append(inputs.shape[:2])
        return run(self, inputs, *more)

    monkeypatch.setattr(StepModel, "run", recorded)
    tasks = [gevent.spawn(engine.steps.step, T, "long", pulse(3))]
    tasks += [gevent.spawn(engine.steps.step, T, name, pulse(1)) for name in "ab"]
    gevent.joinall(tasks, raise_error=True)
    assert shapes == [(1, 3), (2, 1), (1, 3)]


@pytest.mark.parametrize("sessions", [1, 12])
def test_a_step_on_what_the_store_has_lost_conflicts(
    engine: Engine, store: LmdbStore, clock: Clock, sessions: int
) -> None:
    """If the store has gone back to an earlier record, the next step is not applied to it."""
    names = [f"s{number}" for number in range(sessions)]
    earlier = dict[str, Record]()
    for name in names:
        engine.create(T, "pulse", session_id=name)
        for turn in range(3):
            clock.now += 1
            engine.steps.step(T, name, [[500 + turn]])
            if turn == 0:
                earlier[name] = engine.sessions.get(T, name).record
    changes = [
        Change(records.key(T, name), engine.sessions.get(T, name).record.revision, earlier[name]) for name in names
    ]
    assert all(in_another_process(store).commit_many(changes))
    results = engine.steps.step_many(T, [StepRequest(name, [[503]]) for name in names])
    for name, result in zip(names, results, strict=True):
        assert isinstance(result, StepConflictError)
        assert result.expected == 1
        assert engine.sessions.get(T, name).record == earlier[name]


def test_an_overtaken_step_that_named_its_step_conflicts(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step with a step number is not recomputed at another step: it raises a conflict and is not applied."""
    engine.create(T, "pulse", session_id="s")
    commit = LmdbStore.commit_many

    def overtake(self: LmdbStore, changes: list[Change]) -> list[bool]:
        monkeypatch.undo()
        before = self.load_many([changes[0].key])[0]
        assert isinstance(before, Record)
        overtaking = before.replace(revision=before.revision + 1, step=before.step + 1)
        commit(self, [Change(changes[0].key, before.revision, overtaking)])
        return commit(self, changes)

    monkeypatch.setattr(LmdbStore, "commit_many", overtake)
    with pytest.raises(StepConflictError) as conflict:
        engine.steps.step(T, "s", [[500]], step=0)
    assert conflict.value.expected == 1
    assert store.load_many([records.key(T, "s")])[0].step == 1  # type: ignore[union-attr]


def test_a_damaged_record_is_reported(engine: Engine, store: LmdbStore) -> None:
    """A damaged session answers with an error until it is deleted, and other sessions are stepped."""
    for name in ("good", "bad"):
        engine.create(T, "pulse", session_id=name)
    damage(store, records.key(T, "bad"))
    with pytest.raises(DamagedRecordError):
        engine.steps.step(T, "bad", [[500]])
    with pytest.raises(DamagedRecordError):
        engine.create(T, "pulse", session_id="bad")
    assert engine.steps.step(T, "good", [[500]]).step == 1
    engine.sessions.delete(T, "bad")
    assert engine.create(T, "pulse", session_id="bad")[0].record.step == 0


def test_a_record_of_another_version_is_left_to_that_version(engine: Engine, store: LmdbStore) -> None:
    """No operation touches such a record, DELETE included; other sessions are served, listed and ended around it."""
    for name in "abc":
        engine.create(T, "pulse", session_id=name)
    good = stored_bytes(store, records.key(T, "b"))
    set_bytes(store, records.key(T, "b"), another_format(good))
    for attempt in (
        lambda: engine.steps.step(T, "b", [[500]]),
        lambda: engine.create(T, "pulse", session_id="b"),
        lambda: engine.sessions.get(T, "b"),
        lambda: engine.sessions.delete(T, "b"),
    ):
        with pytest.raises(ForeignRecordError, match="another version of Onward wrote it"):
            attempt()
    assert engine.steps.step(T, "c", [[500]]).step == 1
    assert engine.sessions.delete_many(T, SessionFilter()) == (2, False)
    assert store.count() == {("pulse", 1): 1}
    set_bytes(store, records.key(T, "b"), good)
    assert engine.steps.step(T, "b", [[500]]).step == 1


def test_a_session_whose_bundle_is_gone_is_refused_and_stays(tmp_path: Path) -> None:
    """A session of a removed or replaced bundle runs on no other bundle, and steps again when its bundle is back."""
    first = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    first.start()
    first.create(T, "pulse", session_id="s", inputs=[[500]])
    first.close()
    without = open_all(ZOO)
    del without.models["pulse"]
    refused = Opened(without.models, [BundleError(ZOO / "pulse/1/model.onnx", "broken")])
    replaced = open_all(ZOO)
    replaced.models["pulse"][1].digest = bytes(32)
    for opened, reason in ((without, "not served"), (refused, "was refused \\(broken\\)"), (replaced, "replaced")):
        engine = Engine(opened, LmdbStore(tmp_path), Limits())
        engine.start()
        with pytest.raises(ModelGoneError, match=reason):
            engine.steps.step(T, "s", [[500]])
        with pytest.raises(ModelGoneError, match=reason):
            engine.forecasts.roll(T, "s", ForecastRequest(3))
        assert engine.sessions.get(T, "s").record.step == 1
        engine.close()
    again = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    again.start()
    assert again.steps.step(T, "s", [[500]]).step == 2
    again.close()
    behind = Engine(without, LmdbStore(tmp_path), Limits(), is_superseded=lambda: True)
    behind.start()
    for unknown in (
        lambda: behind.steps.step(T, "s", [[500]]),
        lambda: behind.create(T, "pulse"),
        lambda: behind.create(T, "weather", version=2),
    ):
        with pytest.raises(ReloadedError):  # another worker may have loaded the bundle
            unknown()
    assert behind.create(T, "weather")[0].record.ref.version == 1
    behind.close()


def test_a_seeded_session_equals_a_stepped_one(engine: Engine) -> None:
    """Seeding from history equals stepping through it, to the bit, and its statistics too."""
    inputs = pulse(150)
    seeded, answer = engine.create(T, "pulse", session_id="seeded", inputs=inputs)
    engine.create(T, "pulse", session_id="stepped")
    last = engine.steps.step(T, "stepped", inputs)
    stepped = engine.sessions.get(T, "stepped")
    assert (seeded.record.step, seeded.record.state) == (stepped.record.step, stepped.record.state)
    assert seeded.record.surprise == stepped.record.surprise
    assert answer.outputs["mean"].tobytes() == last.outputs["mean"][-1:].tobytes()


def test_a_commit_for_an_earlier_session_of_an_id_is_refused(engine: Engine, store: LmdbStore, clock: Clock) -> None:
    """A commit is not applied if its session was ended and another was created under its id at the same step."""
    engine.create(T, "pulse", session_id="s")
    key = records.key(T, "s")
    (old,) = store.load_many([key])
    engine.sessions.delete(T, "s")
    clock.now += 1
    engine.create(T, "pulse", session_id="s")
    (new,) = store.load_many([key])
    assert isinstance(old, Record)
    assert isinstance(new, Record)
    assert old.step == new.step
    assert store.commit_many([Change(key, old.revision, old.replace(revision=old.revision + 1, step=1))]) == [False]
    assert engine.sessions.get(T, "s").record.step == 0


def test_a_state_that_is_not_finite_is_never_stored(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with such a state is refused even if every output is finite, and other rows of the batch are answered."""
    for name in ("good", "bad"):
        engine.create(T, "pulse", session_id=name)
    run = StepModel.run

    def spoil(
        self: StepModel, inputs: np.ndarray[Any, Any], lengths: np.ndarray[Any, Any], state: State
    ) -> tuple[Outputs, State]:
        outputs, after = run(self, inputs, lengths, state)
        after["h_in"][inputs[:, 0, 0] == 666] = np.inf
        return outputs, after

    monkeypatch.setattr(StepModel, "run", spoil)
    good, bad = (gevent.spawn(engine.steps.step, T, name, [[value]]) for name, value in (("good", 500), ("bad", 666)))
    assert good.get().step == 1
    bad.join()
    assert isinstance(bad.exception, NotFiniteError)
    assert engine.sessions.get(T, "bad").record.step == 0


def test_a_call_has_a_limit_of_steps(tmp_path: Path) -> None:
    """A longer call is refused before any work, and the error names the limit."""
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(max_steps=3))
    engine.start()
    engine.create(T, "pulse", session_id="s", inputs=[[500]] * 3)
    with pytest.raises(InvalidInputError, match="inputs: at most 3 steps a call, not 4"):
        engine.steps.step(T, "s", [[500]] * 4)
    with pytest.raises(InvalidInputError, match=r"inputs\[1\]: at most 3 steps"):
        engine.predict("pulse", None, [[[500]], [[500]] * 4], 0)
    engine.close()


def test_the_engine_sweeps(tmp_path: Path, clock: Clock) -> None:
    """Expired sessions are ended without a request, however many expire at once."""
    store = LmdbStore(tmp_path)
    engine = Engine(open_all(ZOO), store, Limits(), clock=clock)
    engine.create(T, "pulse", session_id="s", ttl_s=10)
    (template,) = store.load_many([records.key(T, "s")])
    assert isinstance(template, Record)
    store.commit_many([Change(records.key(T, f"s{number}"), None, template) for number in range(2500)])
    clock.now += 11
    engine.start(sweep_s=0.01)
    with gevent.Timeout(20):
        while engine.live_sessions()["pulse", 1]:
            gevent.sleep(0.01)
    engine.close()


class FailingObserver:
    """An Observer of the engine that fails until `counted` is set."""

    def __init__(self) -> None:
        self.counted: list[list[float]] | None = None

    def watched(self, model: StepModel, sums: Sequence[Sum]) -> Callable[[Sequence[float]], None]:
        del model, sums
        return self._gained

    def _gained(self, by: Sequence[float]) -> None:
        if self.counted is None:
            raise OSError("no space left")
        self.counted.append(list(by))

    def damaged(self) -> None:
        """Damaged records are not counted in this test."""


def test_counting_delays_no_answer(store: LmdbStore, caplog: pytest.LogCaptureFixture) -> None:
    """Steps are counted after their answers; a failure to count is logged, and later steps are counted."""
    observer = FailingObserver()
    engine = Engine(open_all(ZOO), store, Limits(), observer=observer)
    engine.start()
    engine.create(T, "pulse", session_id="s")
    assert engine.steps.step(T, "s", [[500]]).step == 1
    for _ in range(2):
        take_loop_turn()
    assert "the committed steps could not be counted" in caplog.text
    observer.counted = counted = list[list[float]]()
    assert engine.steps.step(T, "s", [[500], [500]]).step == 3
    assert counted == []
    for _ in range(2):
        take_loop_turn()
    assert [inputs for inputs, *_ in counted] == [2.0]
    engine.close()


@pytest.mark.parametrize("form", ["separate tensors", "one tensor"])
def test_sessions_of_both_forms_of_state_are_served(form: str, tmp_path: Path) -> None:
    """A bundle of before, with a state tensor for each value, and a new one, with a single one, serve alike.

    Steps, the scores of their predictions, and a forecast are those of the model run alone.
    """
    repository, name = (ZOO, "pulse") if form == "separate tensors" else (tmp_path / "models", "tiny")
    if form == "one tensor":
        make_bundle(repository, name=name)
    engine = Engine(open_all(repository), LmdbStore(tmp_path / "store"), Limits())
    engine.start(flush_s=1000, sweep_s=1000)
    try:
        model = engine.models.named(name)
        engine.create(T, name, session_id="s")
        state = model.layout.initial(1)
        for value in (500.0, 510.0, 505.0):
            (predicted,) = model.last_prediction(state)
            outputs, state = model.run_row(np.array([[value]], np.float32), state)
            result = engine.steps.step(T, "s", [[value]]).outputs
            assert all(result[field].tobytes() == outputs[field].tobytes() for field in ("mean", "std", "surprise"))
            assert result[ERROR].tolist() == [[np.float32(value - float(predicted["mean"][0]))]]
        forecast = engine.forecasts.roll(T, "s", ForecastRequest(1)).outputs
        assert forecast["mean"].tobytes() == outputs["mean"].tobytes()
    finally:
        engine.close()
