"""Forks, exports, restores and bulk deletion of sessions, and stateless steps."""

from collections.abc import Iterator

import pytest

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.sessions.lifecycle import SessionFilter
from onward.service.errors import (
    InvalidInputError,
    ModelGoneError,
    NoSecretError,
    SessionEndedError,
    SessionExistsError,
    StateExpiredError,
    UnknownSessionError,
)
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.service.conftest import Clock

T = "tenant"
SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def sealing(store: LmdbStore, clock: Clock) -> Iterator[Engine]:
    """An engine that has a secret."""
    started = Engine(open_all(ZOO), store, Limits(), seal=SignedTokens([SECRET]), clock=clock, monotonic=clock)
    started.start(flush_s=1000, sweep_s=1000)
    yield started
    started.close()


def test_a_fork_goes_its_own_way(engine: Engine) -> None:
    """A fork, also of a fork, starts from the same state; neither session moves the other or has its requests."""
    inputs = pulse(6)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)["mean"]
    engine.create(T, "pulse", session_id="a", ttl_s=50)
    engine.steps.step(T, "a", inputs[:3], request_id="r")
    forked = engine.sessions.fork(T, "a", "b", None)
    assert (forked.record.step, forked.record.ttl_s) == (3, 50)
    assert forked.record.surprise == engine.sessions.get(T, "a").record.surprise
    assert engine.steps.step(T, "b", [[600.0]], request_id="r").step == 4
    again = engine.sessions.fork(T, "b", None, 70)
    assert (again.record.step, again.record.ttl_s) == (4, 70)
    assert engine.steps.step(T, "a", inputs[3:]).outputs["mean"].tobytes() == expected[3:].tobytes()
    first, second = (engine.steps.step(T, name, inputs[3:]).outputs.tobytes() for name in ("b", again.session_id))
    assert first == second
    with pytest.raises(SessionExistsError):
        engine.sessions.fork(T, "a", "b", None)
    with pytest.raises(UnknownSessionError):
        engine.sessions.fork(T, "nobody", None, None)


def test_a_session_is_exported_and_restored(sealing: Engine) -> None:
    """Retries of its last requests get their answers. A live or an altered session is not restored."""
    inputs = pulse(4)
    sealing.create(T, "pulse", session_id="a")
    first = [sealing.steps.step(T, "a", inputs[at : at + 1], request_id=f"r{at}") for at in range(2)]
    _, signed = sealing.transfer.export(T, "a")
    with pytest.raises(SessionExistsError):
        sealing.transfer.restore(T, "a", signed)
    for wrong in (signed[:-1] + bytes([signed[-1] ^ 1]), signed[:40], b"", SignedTokens(["x" * 32]).sign(signed[36:])):
        with pytest.raises(InvalidInputError):
            sealing.transfer.restore(T, "b", wrong)
    with pytest.raises(InvalidInputError, match="another tenant"):
        sealing.transfer.restore("other", "b", signed)
    sealing.steps.step(T, "a", inputs[3:])
    sealing.sessions.delete(T, "a")
    assert sealing.transfer.restore(T, "a", signed).record.step == 2
    again = [sealing.steps.step(T, "a", inputs[at : at + 1], request_id=f"r{at}") for at in range(2)]
    assert [(result.step, result.outputs.tobytes()) for result in again] == [
        (n, result.outputs.tobytes()) for n, result in enumerate(first, 1)
    ]
    expected = BareLoop(ZOO / "pulse/1").run(inputs)["mean"]
    assert sealing.steps.step(T, "a", inputs[2:]).outputs["mean"].tobytes() == expected[2:].tobytes()
    sealing.models.named("pulse").digest = bytes(32)
    with pytest.raises(ModelGoneError):
        sealing.transfer.restore(T, "c", signed)


def test_a_record_of_another_version_of_onward_is_not_called_forged(sealing: Engine) -> None:
    """The record was signed with this secret, but cannot be read: the error says which of the two is wrong."""
    sealing.create(T, "pulse", session_id="a")
    seal = SignedTokens([SECRET])
    data = seal.verify(sealing.transfer.export(T, "a")[1])
    with pytest.raises(InvalidInputError, match="wrote it in format 3, and this version reads formats 4, 5, 6 and 7"):
        sealing.transfer.restore(T, "b", seal.sign(data[:3] + b"\x03" + data[4:]))
    with pytest.raises(InvalidInputError, match="not a record that this service's secret has signed"):
        sealing.transfer.restore(T, "b", data)


def test_a_step_without_a_session(sealing: Engine, clock: Clock) -> None:
    """A state steps as a session does, nothing is stored; it fits no other model, tenant or version, and expires."""
    inputs = pulse(5)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)["mean"]
    issued = sealing.stateless.step(T, "pulse", None, inputs[:2], None)
    assert (issued.step, issued.outputs["mean"].tobytes()) == (2, expected[:2].tobytes())
    for _ in range(2):  # a state may be used any number of times
        after = sealing.stateless.step(T, "pulse", 1, inputs[2:], issued.state)
        assert (after.step, after.outputs["mean"].tobytes()) == (5, expected[2:].tobytes())
    for tenant, name, version, state in (
        ("other", "pulse", None, issued.state),
        (T, "weather", None, issued.state),
        (T, "pulse", 2, issued.state),
        (T, "pulse", None, issued.state[:-8]),
        (T, "pulse", None, "2" + issued.state[1:]),
        (T, "pulse", None, "nonsense"),
    ):
        with pytest.raises((InvalidInputError, ModelGoneError)):
            sealing.stateless.step(tenant, name, version, [[1, 2, 3, 4]] if name == "weather" else inputs[:1], state)
    clock.now += 86_400
    sealing.stateless.step(T, "pulse", None, inputs[:1], issued.state)
    clock.now += 1
    with pytest.raises(StateExpiredError):
        sealing.stateless.step(T, "pulse", None, inputs[:1], issued.state)
    assert sealing.live_sessions() == {}


def test_exports_and_stateless_steps_need_a_secret(engine: Engine) -> None:
    """Exports and stateless steps are refused, and the error names the way out."""
    engine.create(T, "pulse", session_id="a")
    for operation in (
        lambda: engine.transfer.export(T, "a"),
        lambda: engine.transfer.restore(T, "b", b""),
        lambda: engine.stateless.step(T, "pulse", None, [[500]], None),
    ):
        with pytest.raises(NoSecretError, match="ONWARD_SECRET"):
            operation()


def test_many_are_ended_by_model_age_and_prefix(engine: Engine, clock: Clock) -> None:
    """The chosen sessions and no others are ended, also if they are more than a page."""
    for number in range(700):
        engine.create(T, "pulse", session_id=f"a{number:03}")
    for name in ("b1", "b2"):
        engine.create(T, "weather", session_id=name)
    engine.create("other", "pulse", session_id="a0")
    clock.now += 100
    engine.steps.step(T, "a007", [[500]])
    assert engine.sessions.delete_many(T, SessionFilter("weather", "a")) == (0, False)
    assert engine.sessions.delete_many(T, SessionFilter(prefix="a", idle_s=100)) == (699, False)
    assert [result.session_id for result in engine.sessions.page(T, "", 10, None)[0]] == ["a007", "b1", "b2"]
    with pytest.raises(SessionEndedError) as ended:
        engine.steps.step(T, "a008", [[500]])
    assert ended.value.reason == "deleted"
    assert engine.sessions.delete_many(T, SessionFilter("weather")) == (2, False)
    assert engine.sessions.delete_many(T, SessionFilter()) == (1, False)
    assert engine.sessions.get("other", "a0").record.step == 0
