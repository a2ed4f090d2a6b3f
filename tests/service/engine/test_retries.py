"""Requests of one session: sent again, many under way at once, and held up."""

from collections.abc import Sequence
from typing import Any

import pytest

from onward.service.engine import input_parsing
from onward.service.engine.batching import executor
from onward.service.engine.batching.work_item import StepRequest
from onward.service.engine.engine import Engine
from onward.service.engine.steps import StepResult
from onward.service.errors import (
    InvalidInputError,
    LateRequestError,
    NotFiniteError,
    RequestReusedError,
    StepConflictError,
    StoreUnavailableError,
    UnknownSessionError,
)
from onward.service.store import idempotency
from onward.service.store.contract import Change
from onward.service.store.idempotency import MAX_REQUESTS
from onward.service.store.lmdb import LmdbStore
from tests.helpers.reference_loop import ZOO, BareLoop

T = "tenant"


def test_a_retry_gets_the_first_answer(engine: Engine) -> None:
    """The same id with the same inputs moves nothing and says the same, also after other ways to write the inputs."""
    engine.create(T, "pulse", session_id="s")
    first = engine.steps.step(T, "s", [[500], [501]], request_id="r")
    again = engine.steps.step(T, "s", [{"ppg": 500}, {"ppg": 501}], request_id="r", step=0)
    assert (again.step, again.outputs.tobytes()) == (2, first.outputs.tobytes())
    with pytest.raises(RequestReusedError):
        engine.steps.step(T, "s", [[500], [502]], request_id="r")
    assert engine.sessions.get(T, "s").record.step == 2
    engine.steps.step(T, "s", [[502]], request_id="r2")
    again = engine.steps.step(T, "s", [[500], [501]], request_id="r", step=0)
    assert (again.step, again.outputs.tobytes()) == (2, first.outputs.tobytes())
    assert engine.sessions.get(T, "s").record.step == 3


def test_late_duplicates_get_their_answers(engine: Engine) -> None:
    """StatelessResult up while others after them were answered: of the last 32, each gets its own, and nothing moves.

    Where answers are long fewer are kept, and the others' requests are known as applied.
    """
    engine.create(T, "pulse", session_id="s")
    first = [engine.steps.step(T, "s", [[500 + number]], request_id=f"r{number}") for number in range(MAX_REQUESTS)]
    again = [engine.steps.step(T, "s", [[500 + number]], request_id=f"r{number}") for number in range(MAX_REQUESTS)]
    assert [(one.step, one.outputs.tobytes()) for one in again] == [(one.step, one.outputs.tobytes()) for one in first]
    engine.steps.step(T, "s", [[1.0]] * 1000, request_id="long")
    engine.steps.step(T, "s", [[2.0]], request_id="next")
    assert engine.steps.step(T, "s", [[2.0]], request_id="next").step == MAX_REQUESTS + 1001
    for believed in (None, MAX_REQUESTS, 3):  # it was applied, whatever it says of the session
        with pytest.raises(LateRequestError):
            engine.steps.step(T, "s", [[1.0]] * 1000, request_id="long", step=believed)
    assert engine.sessions.get(T, "s").record.step == MAX_REQUESTS + 1001


def test_requests_in_order_are_one_commit(engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its own answer, as one by one; retries, refusals and inputs at fault are each its own."""
    engine.create(T, "pulse", session_id="s")
    many = [StepRequest("s", [[500 + number]], None, f"r{number}") for number in range(20)]
    commits, commit = list[int](), store.commit_many

    def counted(changes: Sequence[Change]) -> list[bool]:
        commits.append(len(changes))
        return commit(changes)

    monkeypatch.setattr(store, "commit_many", counted)
    answers = engine.steps.step_in_order(T, many)
    assert commits == [1]
    expected = BareLoop(ZOO / "pulse/1").run([[500 + number] for number in range(20)])["mean"]
    assert [one.step for one in answers if isinstance(one, StepResult)] == list(range(1, 21))
    assert (
        b"".join(one.outputs["mean"].tobytes() for one in answers if isinstance(one, StepResult)) == expected.tobytes()
    )

    mixed = [
        *many[18:],  # resent
        StepRequest("s", [[520], [521]], 20, "r20"),
        StepRequest("s", [["x"]], None, "bad"),
        StepRequest("s", [[1.0]], 7, "conflict"),
        StepRequest("s", [[1.0]], None, "r19"),  # another input than before
        StepRequest("s", [[522]], 22, "r21"),
        StepRequest("s", [[522]], 22, "r21"),  # twice in one go
        StepRequest("s", [[3e38]] * 3, None, "beyond"),
        StepRequest("s", [[523]], None),
    ]
    told = engine.steps.step_in_order(T, mixed)
    kinds = [one.step if isinstance(one, StepResult) else type(one) for one in told]
    assert kinds[:9] == [
        19, 20, 22, InvalidInputError, StepConflictError, RequestReusedError, 23, 23, NotFiniteError,
    ]  # fmt: skip
    assert kinds[9] == 24
    assert engine.sessions.get(T, "s").record.step == 24
    assert engine.steps.step(T, "s", [[522]], request_id="r21").step == 23
    strangers = [asked._replace(session_id="nobody") for asked in many[:2]]
    assert [type(one) for one in engine.steps.step_in_order(T, strangers)] == [UnknownSessionError] * 2


def test_what_was_under_way_is_answered_again(engine: Engine) -> None:
    """Of every model, also where a step's answer is long: 32 requests, each with its own answer."""
    for name in engine.models.by_name:
        engine.create(T, name, session_id=name)
        features = engine.models.named(name).manifest.features
        one = [0.0 if feature.kind == "number" else feature.categories[0] for feature in features]
        many = [StepRequest(name, [one], None, f"r{number}") for number in range(MAX_REQUESTS)]
        first, again = engine.steps.step_in_order(T, many), engine.steps.step_in_order(T, many)
        for place, (told, once_more) in enumerate(zip(first, again, strict=True), 1):
            assert isinstance(told, StepResult)
            assert isinstance(once_more, StepResult)
            assert (told.step, told.outputs.tobytes()) == (place, once_more.outputs.tobytes())
        assert engine.sessions.get(T, name).record.step == MAX_REQUESTS


def test_a_call_names_no_more_requests_than_are_remembered(engine: Engine) -> None:
    """Of one session: sent again, the first would be applied again. Without ids, and of many sessions, it may."""
    engine.create(T, "pulse", session_id="s")
    engine.create(T, "pulse", session_id="other")
    many = [StepRequest("s", [[500 + number]], None, f"r{number}") for number in range(MAX_REQUESTS + 1)]
    with pytest.raises(InvalidInputError, match="33 of session 's' have one, and its last 32 are known"):
        engine.steps.step_many(T, [StepRequest("other", [[1.0]]), *many])
    assert {engine.sessions.get(T, name).record.step for name in ("s", "other")} == {0}
    engine.steps.step_many(T, [*many[1:], StepRequest("other", [[1.0]], None, "r"), *[StepRequest("s", [[1.0]])] * 5])
    assert engine.sessions.get(T, "s").record.step == MAX_REQUESTS + 5


def test_nothing_overtakes_what_was_held_up(engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of requests in order, one that could not be done now is the last that is told: also where those that were to be
    one commit are done one by one, because there is one among them that the model cannot do.
    """
    engine.create(T, "pulse", session_id="s")
    many = [
        StepRequest("s", [[value]], None, f"r{place}") for place, value in enumerate((500.0, 501.0, 3e38, 502.0, 503.0))
    ]
    commit, times = store.commit_many, iter(range(100))

    def failing(changes: Sequence[Change]) -> list[bool]:
        if next(times) == 1:  # the second's, by itself
            raise StoreUnavailableError("away")
        return commit(changes)

    monkeypatch.setattr(store, "commit_many", failing)
    told = engine.steps.step_in_order(T, many)
    assert [one.step if isinstance(one, StepResult) else type(one) for one in told] == [1, StoreUnavailableError]
    assert engine.sessions.get(T, "s").record.step == 1
    again = engine.steps.step_in_order(T, many)
    assert [one.step if isinstance(one, StepResult) else type(one) for one in again] == [1, 2, NotFiniteError, 3, 4]


def test_nothing_overtakes_in_a_call_for_many(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What follows one of its session that could not be done now is not done either; those of a session are one row."""
    for name in ("s", "other"):
        engine.create(T, "pulse", session_id=name)
    many = [
        StepRequest("s", [[500]], None, "r0"),
        StepRequest("other", [[1.0], [2.0]], None, "r"),
        StepRequest("s", [[501]], None, "r1"),
    ]
    commits, commit = list[int](), store.commit_many

    def failing_once(changes: Sequence[Change]) -> list[bool]:
        commits.append(len(changes))
        if len(commits) == 1:
            raise StoreUnavailableError("away")
        return commit(changes)

    monkeypatch.setattr(store, "commit_many", failing_once)
    assert [type(told) for told in engine.steps.step_many(T, many)] == [StoreUnavailableError] * 3
    assert {engine.sessions.get(T, name).record.step for name in ("s", "other")} == {0}
    told = engine.steps.step_many(T, many)
    assert [one.step for one in told if isinstance(one, StepResult)] == [1, 2, 2]
    assert commits == [2, 2]


@pytest.mark.parametrize(
    ("of", "broken", "over"),
    [(idempotency, "find", "'bad'"), (executor, "live_record", "'s'"), (input_parsing, "parse_inputs", "13.0")],
)
def test_what_breaks_over_one_request_is_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, of: Any, broken: str, over: str
) -> None:
    """Whatever it is: neighbours are answered, what follows it does not overtake it, what was before it is done."""
    for name in "sab":
        engine.create(T, "pulse", session_id=name)
    right = getattr(of, broken)

    def wrong(*told: Any) -> Any:
        if over in repr(told):
            raise KeyError("broken")
        return right(*told)

    monkeypatch.setattr(of, broken, wrong)
    row = [
        StepRequest("s", [[500.0]], None, "r0"),
        StepRequest("s", [[13.0]], None, "bad"),
        StepRequest("s", [[502.0]], None, "r2"),
    ]
    beside = engine.steps.step_many(T, [StepRequest("a", [[500.0]]), row[1], StepRequest("b", [[500.0]])])
    told = engine.steps.step_in_order(T, row)
    kinds = [[one.step if isinstance(one, StepResult) else type(one) for one in each] for each in (beside, told)]
    expected = [KeyError] if broken == "live_record" else [1, KeyError]
    assert kinds == [[1, KeyError, 1], expected]
    assert "KeyError" in caplog.text
    monkeypatch.undo()
    assert engine.sessions.get(T, "s").record.step == len(expected) - 1
    assert [one.step for one in engine.steps.step_in_order(T, row) if isinstance(one, StepResult)] == [1, 2, 3]
