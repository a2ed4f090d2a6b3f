"""Sessions that are created by their first step or confirmed by a PUT: once, in one commit, and reported as created."""

from collections.abc import Sequence

import gevent
import pytest

from onward.model.repository import open_all
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine, Limits
from onward.service.errors import (
    InvalidInputError,
    SessionEndedError,
    SessionExistsError,
    UnknownModelError,
    UnknownSessionError,
)
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.service.conftest import Clock

T = "tenant"


def test_the_first_step_creates_its_session(engine: Engine, clock: Clock) -> None:
    """The session has the model's initial state and the service's defaults; the next step goes on from it."""
    inputs = pulse(3)
    first = engine.steps.step(T, "s", inputs[:2], model="pulse")
    second = engine.steps.step(T, "s", inputs[2:], model="pulse")
    assert (first.step, first.created, second.step, second.created) == (2, True, 3, False)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)["mean"]
    assert first.outputs["mean"].tobytes() + second.outputs["mean"].tobytes() == expected.tobytes()
    record = engine.sessions.get(T, "s").record
    assert (record.created_at, record.last_step_at, record.ttl_s) == (clock.now, clock.now, 3600.0)
    assert record.expires_at == clock.now + 3600
    assert engine.live_sessions() == {("pulse", 1): 1}
    assert [session.session_id for session in engine.sessions.page(T, "", 10, "pulse")[0]] == ["s"]


def test_a_first_step_equals_a_creation_and_a_step(store: LmdbStore, clock: Clock) -> None:
    """The two records are equal in every field but the revision, including the history for rewinds."""
    engine = Engine(open_all(ZOO), store, Limits(history=3), clock=clock, monotonic=clock)
    engine.start(flush_s=1000, sweep_s=1000)
    try:
        engine.create(T, "pulse", session_id="created")
        for session_id in ("created", "stepped"):
            engine.steps.step(T, session_id, pulse(5), model="pulse", request_id="r")
        first, second = (engine.sessions.get(T, session_id).record for session_id in ("created", "stepped"))
        assert first.replace(revision=0) == second.replace(revision=0)
        assert engine.history.rewind(T, "stepped", 3).record.step == 3
    finally:
        engine.close()


def test_a_retry_of_the_step_that_created_moves_nothing(engine: Engine) -> None:
    """A retry gets the first answer, whose session exists already."""
    first = engine.steps.step(T, "s", [[500], [501]], model="pulse", request_id="r")
    again = engine.steps.step(T, "s", [[500], [501]], model="pulse", request_id="r")
    assert (again.step, again.created, again.outputs.tobytes()) == (2, False, first.outputs.tobytes())
    assert engine.sessions.get(T, "s").record.step == 2


def test_steps_that_race_to_create_are_each_applied_once(engine: Engine) -> None:
    """If 20 clients step one session at once, one of them creates it and all 20 inputs are applied."""
    tasks = [gevent.spawn(engine.steps.step, T, "s", [[500 + n]], model="pulse") for n in range(20)]
    answers = [task.get() for task in tasks]
    assert sorted(answer.step for answer in answers) == list(range(1, 21))
    assert [answer.step for answer in answers if answer.created] == [1]
    assert engine.live_sessions() == {("pulse", 1): 1}


def test_two_processes_that_create_a_session_share_it(store: LmdbStore, engine: Engine, clock: Clock) -> None:
    """The slower process finds the session of the faster one at its commit, and goes on from it."""
    second = Engine(open_all(ZOO), store, Limits(), clock=clock, monotonic=clock)
    commit = store.commit_many
    raced: list[bool] = []

    def overtaken(changes: Sequence[Change]) -> list[bool]:
        if not raced:
            raced.append(True)
            seed = second._first_record(T, second.models.named("pulse"))
            second.sessions.begin(second.sessions.claim(T, "s"), seed, None)
        return commit(changes)

    store.commit_many = overtaken  # type: ignore[method-assign]
    answer = engine.steps.step(T, "s", [[500]], model="pulse")
    assert raced
    assert (answer.step, answer.created) == (1, False)
    assert engine.live_sessions() == {("pulse", 1): 1}


@pytest.mark.parametrize("swept", [False, True])
@pytest.mark.parametrize("ends", ["expired", "deleted"])
def test_an_ended_session_is_recreated_unless_the_client_expects_it(
    engine: Engine, store: LmdbStore, clock: Clock, ends: str, *, swept: bool
) -> None:
    """A client that names a later step learns that the session has ended; other clients get a new session."""
    engine.steps.step(T, "s", [[500], [501]], model="pulse")
    if ends == "deleted":
        engine.sessions.delete(T, "s")
    else:
        clock.now += 3600
    if swept:
        store.sweep(clock.now)
    with pytest.raises(SessionEndedError) as ended:
        engine.steps.step(T, "s", [[502]], step=2, model="pulse")
    assert ended.value.reason == ends
    answer = engine.steps.step(T, "s", [[502]], step=0, model="pulse")
    assert (answer.step, answer.created) == (1, True)
    assert engine.live_sessions() == {("pulse", 1): 1}


def test_invalid_creations_are_refused(engine: Engine) -> None:
    """Unknown models, sessions of another model, steps beyond 0 and inputs of another width are refused."""
    with pytest.raises(UnknownModelError):
        engine.steps.step(T, "s", [[500]], model="none")
    with pytest.raises(UnknownSessionError):
        engine.steps.step(T, "s", [[500]], step=7, model="pulse")
    with pytest.raises(InvalidInputError):
        engine.steps.step(T, "s", [[500, 1]], model="pulse")
    engine.create(T, "weather", session_id="w")
    engine.steps.step(T, "w", [[1, 2, 3, 4]])
    for name in ("pulse", "none"):
        with pytest.raises(SessionExistsError, match="runs on the model 'weather'"):
            engine.steps.step(T, "w", [[500]], model=name)
    assert engine.live_sessions() == {("weather", 1): 1}
    assert engine.sessions.get(T, "w").record.step == 1


def test_a_cached_model_is_not_used_after_the_session_has_ended(engine: Engine) -> None:
    """A step that names another model then creates a session of that model under the same id."""
    engine.steps.step(T, "s", [[500]], model="pulse")
    engine.sessions.delete(T, "s")
    answer = engine.steps.step(T, "s", [[1, 2, 3, 4]], model="weather")
    assert (answer.created, answer.model.manifest.name) == (True, "weather")


def test_items_of_one_call_create_their_sessions(engine: Engine) -> None:
    """The first item of a session that names a model creates it, for those after it too; one before it is refused."""
    many = [
        StepRequest("a", [[500]], model="pulse"),
        StepRequest("a", [[501]]),
        StepRequest("b", [[500]]),
        StepRequest("b", [[500]], model="pulse"),
        StepRequest("b", [[1, 2, 3, 4]], model="weather"),
        StepRequest("c", [[500]], model="none"),
        StepRequest("d", [[1, 2, 3, 4]], model="weather"),
    ]
    a1, a2, b1, b2, b3, c, d = engine.steps.step_many(T, many)
    created = [a1, b2, d]
    assert [(answer.step, answer.created) for answer in created if isinstance(answer, StepResult)] == [(1, True)] * 3
    assert isinstance(a2, StepResult)
    assert (a2.step, a2.created) == (2, False)
    assert [type(refused) for refused in (b1, b3, c)] == [UnknownSessionError, SessionExistsError, UnknownModelError]


def test_ensure_creates_once_and_confirms_after(engine: Engine) -> None:
    """A repeated call returns the session as it is, also after steps, and changes nothing."""
    options = {"ttl_s": 60.0, "inputs": [[500.0], [501.0]], "interval": 0.9, "anomaly": "tail"}
    session, answer = engine.ensure(T, "pulse", "s", **options)  # type: ignore[arg-type]
    again, confirmed = engine.ensure(T, "pulse", "s", **options)  # type: ignore[arg-type]
    assert (answer.created, confirmed.created) == (True, False)
    assert again.record == session.record
    assert (confirmed.step, confirmed.outputs["mean"].tolist()) == (2, answer.outputs["mean"].tolist())
    stepped = engine.steps.step(T, "s", [[502]])
    _, after = engine.ensure(T, "pulse", "s", **options)  # type: ignore[arg-type]
    assert (after.step, after.outputs["mean"].tolist()) == (3, stepped.outputs["mean"].tolist())


@pytest.mark.parametrize(
    ("name", "options", "difference"),
    [
        ("weather", {}, "runs on the model 'pulse'"),
        ("pulse", {"ttl_s": 61.0}, "has a ttl_s of 60"),
        ("pulse", {"interval": 0.8}, "has intervals of 0.9"),
        ("pulse", {"anomaly": "rank"}, "has the anomaly 'run'"),
        ("pulse", {"inputs": [[500], [502]]}, "not known to be seeded with these inputs"),
    ],
)
def test_ensure_names_what_is_different(engine: Engine, name: str, options: dict[str, object], difference: str) -> None:
    """A live session is confirmed only if it has the requested model and options."""
    engine.ensure(T, "pulse", "s", ttl_s=60.0, inputs=[[500], [501]], interval=0.9)
    with pytest.raises(SessionExistsError, match=difference):
        engine.ensure(T, name, "s", **options)  # type: ignore[arg-type]


def test_ensure_begins_an_ended_session_anew(engine: Engine, clock: Clock) -> None:
    engine.ensure(T, "pulse", "s", ttl_s=1)
    clock.now += 1
    _, answer = engine.ensure(T, "pulse", "s")
    assert answer.created
