"""Retries: requests of one session that are sent again, sent many at once, or skipped after an error."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from onward.service.engine import input_parsing
from onward.service.engine.batching.admission import Admission
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine
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
    """A repeated request with the same inputs, in any notation, changes nothing and gets the first answer."""
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
    """A retry of any of the last 32 requests gets its own answer and changes nothing.

    If answers are long, fewer of them are stored; retries of the other requests are refused as already applied.
    """
    engine.create(T, "pulse", session_id="s")
    first = [engine.steps.step(T, "s", [[500 + number]], request_id=f"r{number}") for number in range(MAX_REQUESTS)]
    again = [engine.steps.step(T, "s", [[500 + number]], request_id=f"r{number}") for number in range(MAX_REQUESTS)]
    assert [(result.step, result.outputs.tobytes()) for result in again] == [
        (result.step, result.outputs.tobytes()) for result in first
    ]
    engine.steps.step(T, "s", [[1.0]] * 1000, request_id="long")
    engine.steps.step(T, "s", [[2.0]], request_id="next")
    assert engine.steps.step(T, "s", [[2.0]], request_id="next").step == MAX_REQUESTS + 1001
    for believed in (None, MAX_REQUESTS, 3):  # the request was applied, whatever step it names
        with pytest.raises(LateRequestError):
            engine.steps.step(T, "s", [[1.0]] * 1000, request_id="long", step=believed)
    assert engine.sessions.get(T, "s").record.step == MAX_REQUESTS + 1001


def test_requests_in_order_are_one_commit(engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request gets its own answer, as if it were sent alone; so do retries, refusals and faulty inputs."""
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
    assert [result.step for result in answers if isinstance(result, StepResult)] == list(range(1, 21))
    assert (
        b"".join(result.outputs["mean"].tobytes() for result in answers if isinstance(result, StepResult))
        == expected.tobytes()
    )

    mixed = [
        *many[18:],  # resent
        StepRequest("s", [[520], [521]], 20, "r20"),
        StepRequest("s", [["x"]], None, "bad"),
        StepRequest("s", [[1.0]], 7, "conflict"),
        StepRequest("s", [[1.0]], None, "r19"),  # another input than before
        StepRequest("s", [[522]], 22, "r21"),
        StepRequest("s", [[522]], 22, "r21"),  # twice in one call
        StepRequest("s", [[3e38]] * 3, None, "beyond"),
        StepRequest("s", [[523]], None),
    ]
    results = engine.steps.step_in_order(T, mixed)
    kinds = [result.step if isinstance(result, StepResult) else type(result) for result in results]
    assert kinds[:9] == [
        19, 20, 22, InvalidInputError, StepConflictError, RequestReusedError, 23, 23, NotFiniteError,
    ]  # fmt: skip
    assert kinds[9] == 24
    assert engine.sessions.get(T, "s").record.step == 24
    assert engine.steps.step(T, "s", [[522]], request_id="r21").step == 23
    strangers = [replace(request, session_id="nobody") for request in many[:2]]
    assert [type(result) for result in engine.steps.step_in_order(T, strangers)] == [UnknownSessionError] * 2


def test_requests_in_flight_are_answered_again(engine: Engine) -> None:
    """All 32 requests get their own answers again, on every model, also if a step's answer is long."""
    for name in engine.models.by_name:
        engine.create(T, name, session_id=name)
        features = engine.models.named(name).manifest.features
        values = [0.0 if feature.kind == "number" else feature.categories[0] for feature in features]
        many = [StepRequest(name, [values], None, f"r{number}") for number in range(MAX_REQUESTS)]
        first, again = engine.steps.step_in_order(T, many), engine.steps.step_in_order(T, many)
        for number, (result, repeated) in enumerate(zip(first, again, strict=True), 1):
            assert isinstance(result, StepResult)
            assert isinstance(repeated, StepResult)
            assert (result.step, result.outputs.tobytes()) == (number, repeated.outputs.tobytes())
        assert engine.sessions.get(T, name).record.step == MAX_REQUESTS


def test_a_call_names_no_more_requests_than_are_remembered(engine: Engine) -> None:
    """The limit holds for requests of one session with ids: sent again, the first would be applied again."""
    engine.create(T, "pulse", session_id="s")
    engine.create(T, "pulse", session_id="other")
    many = [StepRequest("s", [[500 + number]], None, f"r{number}") for number in range(MAX_REQUESTS + 1)]
    with pytest.raises(InvalidInputError, match="33 of session 's' have one, and its last 32 are known"):
        engine.steps.step_many(T, [StepRequest("other", [[1.0]]), *many])
    assert {engine.sessions.get(T, name).record.step for name in ("s", "other")} == {0}
    engine.steps.step_many(T, [*many[1:], StepRequest("other", [[1.0]], None, "r"), *[StepRequest("s", [[1.0]])] * 5])
    assert engine.sessions.get(T, "s").record.step == MAX_REQUESTS + 5


def test_nothing_overtakes_a_request_that_failed(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The results of requests in order end with a retryable error; also if the requests of a row run one by one,
    because one of them has inputs that the model cannot take.
    """
    engine.create(T, "pulse", session_id="s")
    many = [
        StepRequest("s", [[value]], None, f"r{number}")
        for number, value in enumerate((500.0, 501.0, 3e38, 502.0, 503.0))
    ]
    commit, times = store.commit_many, iter(range(100))

    def failing(changes: Sequence[Change]) -> list[bool]:
        if next(times) == 1:  # the commit of the second request alone
            raise StoreUnavailableError("away")
        return commit(changes)

    monkeypatch.setattr(store, "commit_many", failing)
    results = engine.steps.step_in_order(T, many)
    assert [result.step if isinstance(result, StepResult) else type(result) for result in results] == [
        1,
        StoreUnavailableError,
    ]
    assert engine.sessions.get(T, "s").record.step == 1
    again = engine.steps.step_in_order(T, many)
    assert [result.step if isinstance(result, StepResult) else type(result) for result in again] == [
        1,
        2,
        NotFiniteError,
        3,
        4,
    ]


def test_nothing_overtakes_in_a_call_for_many(
    engine: Engine, store: LmdbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests that follow a retryable error of their session are skipped; those of a session share a row."""
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
    assert [type(result) for result in engine.steps.step_many(T, many)] == [StoreUnavailableError] * 3
    assert {engine.sessions.get(T, name).record.step for name in ("s", "other")} == {0}
    results = engine.steps.step_many(T, many)
    assert [result.step for result in results if isinstance(result, StepResult)] == [1, 2, 2]
    assert commits == [2, 2]


@pytest.mark.parametrize(
    ("of", "broken", "over"),
    [(idempotency, "find", "'bad'"), (Admission, "_accept", "/s'"), (input_parsing, "plain_numbers", "13.0")],
)
def test_a_defect_affects_one_request_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, of: Any, broken: str, over: str
) -> None:
    """Neighbours are answered, later requests of its session are skipped, and earlier ones are applied."""
    for name in "sab":
        engine.create(T, "pulse", session_id=name)
    original = getattr(of, broken)

    def fail(*arguments: Any) -> Any:
        if over in repr(arguments):
            raise KeyError("broken")
        return original(*arguments)

    monkeypatch.setattr(of, broken, fail)
    row = [
        StepRequest("s", [[500.0]], None, "r0"),
        StepRequest("s", [[13.0]], None, "bad"),
        StepRequest("s", [[502.0]], None, "r2"),
    ]
    beside = engine.steps.step_many(T, [StepRequest("a", [[500.0]]), row[1], StepRequest("b", [[500.0]])])
    results = engine.steps.step_in_order(T, row)
    kinds = [
        [result.step if isinstance(result, StepResult) else type(result) for result in answers]
        for answers in (beside, results)
    ]
    expected = [KeyError] if broken == "_accept" else [1, KeyError]
    assert kinds == [[1, KeyError, 1], expected]
    assert "KeyError" in caplog.text
    monkeypatch.undo()
    assert engine.sessions.get(T, "s").record.step == len(expected) - 1
    assert [result.step for result in engine.steps.step_in_order(T, row) if isinstance(result, StepResult)] == [1, 2, 3]
