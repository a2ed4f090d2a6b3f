"""Retries without a clock and without a network: a flow is given answers, and what it asks for is looked at."""

import json
from collections.abc import Callable, Generator, Iterable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from onward.client.command_flow import NoResponse, Request, Response, RetryPolicy, Sleep
from onward.client.operations import Operations
from onward.errors import Overloaded, Problem, SessionExists, StoreUnavailable, UnreachableError

OPERATIONS = Operations(RetryPolicy(deadline_s=10.0))
SENT, UNSENT = NoResponse(ConnectionResetError(), sent=True), NoResponse(ConnectionRefusedError(), sent=False)
STEP = Response(200, {}, b'{"step": 1, "predictions": {"mean": [[1.0]]}}')


def problem(name: str, status: int, **headers: str) -> Response:
    return Response(status, headers, json.dumps({"type": f"urn:onward:problem:{name}", "status": status}).encode())


BUSY, DOUBT = problem("overloaded", 503), problem("store-unavailable", 503)


def session(created: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> Response:
    result = {"session_id": "s", "model": "m", "version": 1, "step": 0, "ttl_s": 60.0, "surprise": None}
    return Response(
        200,
        {},
        json.dumps(result | dict.fromkeys(("created_at", "last_step_at", "expires_at"), created.isoformat())).encode(),
    )


def run(flow: Generator[Any, Any, Any], answers: Iterable[Any]) -> tuple[Any, list[Request], list[float]]:
    """Returns the result or the error of the flow, and its requests and pauses."""
    coming, requests, pauses = iter(answers), [], []
    answer: Any = None
    try:
        while True:
            command = flow.send(answer)
            if isinstance(command, Sleep):
                pauses.append(command.seconds)
                answer = None
            else:
                requests.append(command)
                answer = next(coming)
    except StopIteration as end:
        assert not list(coming), "not all answers were asked for"
        return end.value, requests, pauses
    except (Problem, UnreachableError) as error:
        return error, requests, pauses


def test_a_step_is_sent_until_it_is_answered() -> None:
    """The same request each time, with one id, whatever it was that failed; pauses grow, each half by chance."""
    failures = [SENT, UNSENT, BUSY, DOUBT, Response(502, {}, b""), Response(504, {}, b"")]
    result, requests, pauses = run(OPERATIONS.steps("s", [[1.0]], None, None), [*failures, STEP])
    assert result.step == 1
    assert len(requests) == 7
    assert all(item == requests[0] for item in requests)
    assert len(requests[0].content["request_id"]) == 32
    for index, pause in enumerate(pauses):
        assert 0.025 * 2**index <= pause <= 0.05 * 2**index


def test_each_step_has_an_id_of_its_own() -> None:
    ids = {run(OPERATIONS.steps("s", [[1.0]], None, None), [STEP])[1][0].content["request_id"] for _ in range(3)}
    assert len(ids) == 3


def test_the_service_says_how_long_to_wait() -> None:
    """The pause is at least Retry-After; a Retry-After beyond the retry deadline raises the problem at once."""
    _, _, (pause,) = run(
        OPERATIONS.steps("s", [[1.0]], None, None), [problem("overloaded", 503, **{"retry-after": "3"}), STEP]
    )
    assert pause >= 3
    error, requests, pauses = run(
        OPERATIONS.steps("s", [[1.0]], None, None), [problem("overloaded", 503, **{"retry-after": "30"})]
    )
    assert isinstance(error, Overloaded)
    assert (len(requests), pauses) == (1, [])


def test_patience_ends() -> None:
    """The time of the tries counts as well as the pauses: where each takes 3 s, none is begun after the fourth."""
    error, requests, _ = run(
        OPERATIONS.steps("s", [[1.0]], None, None), [NoResponse(TimeoutError(), sent=True, took_s=3.0)] * 9
    )
    assert isinstance(error, UnreachableError)
    assert isinstance(error.__cause__, TimeoutError)
    assert len(requests) == 4
    error, _, pauses = run(OPERATIONS.steps("s", [[1.0]], None, None), [DOUBT] * 99)
    assert isinstance(error, StoreUnavailable)
    assert max(pauses) <= 5
    assert sum(pauses) <= 10


@pytest.mark.parametrize(
    "name", ["session-ended 410", "step-conflict 409", "late-request 409", "invalid-request 422", "internal 500"]
)
def test_a_refusal_stands(name: str) -> None:
    kind, _, status = name.partition(" ")
    error, requests, _ = run(OPERATIONS.steps("s", [[1.0]], None, None), [problem(kind, int(status))])
    assert error.name == kind
    assert len(requests) == 1


@pytest.mark.parametrize(("failure", "again"), [(SENT, False), (UNSENT, True), (BUSY, True), (DOUBT, False)])
def test_what_is_not_safe_to_repeat_is_repeated_only_where_nothing_was_done(failure: Any, again: bool) -> None:
    """Taking a session back would also take back what others did since."""
    result, requests, _ = run(OPERATIONS.rewind("s", 0), [failure, session()])
    assert len(requests) == (2 if again else 1)
    assert isinstance(result, Exception) == (not again)


EXISTS = problem("session-exists", 409)


def exists(at: datetime) -> Response:
    return Response(409, {"date": format_datetime(at, usegmt=True)}, EXISTS.body)


def test_a_session_whose_answer_was_lost_is_found() -> None:
    """Under an id that the client made up there is no doubt whose it is."""
    result, requests, _ = run(OPERATIONS.create("m", None, None, None, None), [SENT, EXISTS, session()])
    assert result.session_id == "s"
    made = requests[0].content["session_id"]
    assert [(item.method, item.path) for item in requests[1:]] == [
        ("POST", "/v1/models/m/sessions"),
        ("GET", f"/v1/sessions/{made}"),
    ]


def test_an_id_that_was_taken_is_taken() -> None:
    """The error is raised at the first try, if nothing was sent before, and if the session is older than the tries."""
    now = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for answers in (
        [EXISTS],
        [UNSENT, EXISTS],
        [BUSY, EXISTS],
        [SENT, exists(now), session(now - timedelta(seconds=9))],
    ):
        assert isinstance(run(OPERATIONS.create("m", "s", None, None, None), answers)[0], SessionExists)
    result, _, _ = run(OPERATIONS.create("m", "s", None, None, None), [SENT, exists(now), session(now)])
    assert result.session_id == "s"


def test_what_is_deleted_by_a_lost_try_is_deleted() -> None:
    gone = Response(
        410,
        {},
        b'{"type":"urn:onward:problem:session-ended","status":410,"reason":"deleted","ended_at":"2026-01-01T00:00:00Z"}',
    )
    assert run(OPERATIONS.delete("s"), [SENT, gone])[0] is None
    assert isinstance(run(OPERATIONS.delete("s"), [gone])[0], Problem)


def many(*items: dict[str, Any]) -> Response:
    return Response(200, {}, json.dumps({"items": items}).encode())


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b"[1]", b""])
def test_an_answer_that_is_not_onwards_is_shown(body: bytes) -> None:
    """The body is shown although the status is 200."""
    error, requests, _ = run(OPERATIONS.models(), [Response(200, {}, body)])
    assert (type(error), error.status, len(requests)) == (Problem, 200, 1)
    assert body.decode() in str(error)


DONE = {"status": 200, "step": 1, "predictions": {"mean": [[1.0]]}}


def refused(name: str, status: int) -> dict[str, Any]:
    return {"status": status, "problem": json.loads(problem(name, status).body)}


def sent(requests: Iterable[Request]) -> list[list[tuple[str, Any]]]:
    """Returns the session ids and inputs of the items of each request."""
    return [[(item["session_id"], item["inputs"][0]) for item in request.content["items"]] for request in requests]


@pytest.mark.parametrize(
    ("ask", "foreign_body"),
    [
        (OPERATIONS.models, b'{"status": "ok"}'),
        (OPERATIONS.models, b'{"models": null}'),
        (lambda: OPERATIONS.steps("s", [1], None, None), b'{"page": "hello"}'),
        (lambda: OPERATIONS.steps("s", [1], None, None), b'{"predictions": []}'),
        (lambda: OPERATIONS.info("s"), b'{"page": "hello"}'),
        (lambda: OPERATIONS.info("s"), session().body.replace(b"2026", b"then")),
        (lambda: OPERATIONS.predict("m", [[1]], 0, None), b'{"sequences": [{"a": 1}]}'),
        (lambda: OPERATIONS.delete_sessions(None, None, None), b'{"ended": 3}'),
        (lambda: OPERATIONS.step_many([("s", [1])]), b'{"items": []}'),
        (lambda: OPERATIONS.step_many([("s", [1])]), b'{"items": [{}]}'),
        (lambda: OPERATIONS.step_many([("s", [1])]), b'{"items": null}'),
    ],
)
def test_another_services_success_is_shown(ask: Callable[[], Generator[Any, Any, Any]], foreign_body: bytes) -> None:
    """JSON, and a 200, of something that is not Onward: a Problem that shows it, once."""
    error, requests, _ = run(ask(), [Response(200, {}, foreign_body)])
    assert isinstance(error, Problem)
    assert f"not Onward's: {foreign_body.decode()[:200]}" in str(error)
    assert len(requests) == 1


def test_of_many_what_is_held_up_is_overtaken_by_nothing() -> None:
    """The item is sent again, with its id and with the later items of its session; other refusals are final."""
    busy, wrong = refused("overloaded", 503), refused("invalid-request", 422)
    flow = OPERATIONS.step_many([("a", [1]), ("b", [2]), ("a", [3]), ("c", [4]), ("a", [5]), ("a", [6])])
    result, requests, pauses = run(flow, [many(DONE, wrong, busy, busy, busy, wrong), many(DONE, wrong, DONE)])
    assert sent(requests) == [
        [("a", 1), ("a", 3), ("a", 5), ("a", 6), ("b", 2), ("c", 4)],
        [("a", 5), ("a", 6), ("b", 2)],
    ]
    kinds = ["Predictions", "Predictions", "InvalidRequest", "InvalidRequest", "Predictions", "InvalidRequest"]
    assert [type(item).__name__ for item in result] == kinds
    assert len(pauses) == 1
    assert requests[1].content["items"][0] == requests[0].content["items"][2]


def test_of_many_no_more_of_a_session_than_are_remembered() -> None:
    """Later items are sent once these are answered, and never if the retry deadline passes before."""
    items = [("a", [number]) for number in range(40)]
    first, rest = many(*[DONE] * 31, refused("overloaded", 503)), many(*[DONE] * 9)
    result, requests, _ = run(OPERATIONS.step_many(items), [SENT, first, rest])
    assert [len(item) for item in sent(requests)] == [32, 32, 9]
    assert sent(requests)[2] == [("a", number) for number in range(31, 40)]
    assert {type(item).__name__ for item in result} == {"Predictions"}
    slow = Response(200, {}, first.body, took_s=11.0)
    result, requests, pauses = run(OPERATIONS.step_many(items), [slow])
    assert [type(item).__name__ for item in result] == ["Predictions"] * 31 + ["Overloaded"] * 9
    assert (len(requests), pauses) == (1, [])


def test_of_more_than_a_call_takes_the_rest_goes_in_another() -> None:
    """A call has at most 10,000 items, and 100,000 steps."""
    items = [(str(number), [number]) for number in range(10_001)]
    result, requests, _ = run(OPERATIONS.step_many(items), [many(*[DONE] * 10_000), many(DONE)])
    assert [item for request in sent(requests) for item in request] == [(name, item) for name, (item,) in items]
    assert ([len(item) for item in sent(requests)], len(result)) == ([10_000, 1], 10_001)
    long = [("a", [1] * 60_000), ("b", [2] * 40_000), ("c", [3]), ("d", [4] * 200_000), ("e", [5])]
    _, requests, _ = run(OPERATIONS.step_many(long), [many(DONE, DONE), many(DONE), many(DONE), many(DONE)])
    assert [[name for name, *_ in item] for item in sent(requests)] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_of_many_sessions_go_on_where_one_cannot() -> None:
    """RetryPolicy that has ended on one is no reason to leave the others' items unsent."""
    busy = refused("overloaded", 503)
    flow = OPERATIONS.step_many([("a", [0])] + [("b", [number]) for number in range(33)])
    slow = Response(200, {}, many(busy, *[DONE] * 32).body, took_s=11.0)
    result, requests, _ = run(flow, [slow, many(DONE)])
    assert [type(item).__name__ for item in result] == ["Overloaded"] + ["Predictions"] * 33
    assert sent(requests)[1] == [("b", 32)]


def test_of_many_what_was_answered_stays() -> None:
    """If a later request fails as a whole, its items have the failure; the failure of the first request is raised."""
    items = [("a", [number]) for number in range(40)]
    gone = NoResponse(ConnectionRefusedError(), sent=False, took_s=11.0)
    result, _, _ = run(OPERATIONS.step_many(items), [many(*[DONE] * 32), gone])
    assert [type(item).__name__ for item in result] == ["Predictions"] * 32 + ["UnreachableError"] * 8
    error, _, _ = run(OPERATIONS.step_many(items), [gone])
    assert isinstance(error, UnreachableError)


def test_of_many_patience_is_for_all_rounds() -> None:
    """The time of lost answers and that of answers which refuse count together."""
    busy = Response(200, {}, many(refused("overloaded", 503)).body, took_s=3.0)
    lost = NoResponse(TimeoutError(), sent=True, took_s=3.0)
    result, requests, _ = run(OPERATIONS.step_many([("a", [1])]), [busy, lost, busy, busy])
    assert [type(item).__name__ for item in result] == ["Overloaded"]
    assert len(requests) == 4
