"""Facts about the service that the client has as constants: the problem types, and the limits of requests."""

import pickle

import pytest

from onward.client import operations
from onward.client.command_flow import problem as to_problem
from onward.errors import PREFIX, Problem, RetryableProblem, SessionEnded, StepConflict
from onward.service.http import request_schemas
from onward.service.http.problems import ALL
from onward.service.settings import Settings
from onward.service.store import idempotency


def test_every_type_is_a_class() -> None:
    """Every problem type has a class with its name, status and title, and every class is of a type of the service."""
    classes = {
        PREFIX + problem_class.name: (problem_class.code, (problem_class.__doc__ or "").split(".")[0])
        for problem_class in Problem.by_type.values()
    }
    assert classes == {kind.type: (kind.status, kind.title) for kind in ALL}


def test_a_call_has_what_the_service_remembers_and_takes() -> None:
    """More of a session would be applied again where the answer was lost; more in all would be refused."""
    assert (operations.REMEMBERED, operations.MOST_ITEMS) == (idempotency.MAX_REQUESTS, request_schemas.MOST_ITEMS)
    assert Settings().max_steps == operations.MOST_STEPS


def test_members_are_attributes() -> None:
    """Both the members of all problems and the members of a single type are attributes."""
    body = (
        b'{"type":"urn:onward:problem:step-conflict","title":"T","status":409,"detail":"d","expected_step":7,'
        b'"errors":[{"field":"step","message":"m"}]}'
    )
    problem = to_problem(409, body)
    assert isinstance(problem, StepConflict)
    assert (problem.status, problem.title, problem.detail, problem.expected_step) == (409, "T", "d", 7)
    assert problem.errors == [{"field": "step", "message": "m"}]
    assert str(problem) == "d"
    assert pickle.loads(pickle.dumps(problem)).expected_step == 7
    ended = to_problem(
        410,
        b'{"type":"urn:onward:problem:session-ended","status":410,"reason":"expired","ended_at":"2026-01-02T03:04:05.678Z"}',
    )
    assert isinstance(ended, SessionEnded)
    assert (ended.reason, ended.ended_at.year, ended.ended_at.utcoffset()) == (
        "expired",
        2026,
        ended.ended_at.resolution * 0,
    )


def test_what_is_not_known_is_still_a_problem() -> None:
    """A newer service's type, and a proxy's page."""
    newer = to_problem(418, b'{"type":"urn:onward:problem:new","title":"New","status":418,"detail":"tea"}')
    assert (type(newer), newer.type, str(newer)) == (Problem, "urn:onward:problem:new", "tea")
    page = to_problem(502, b"<html>Bad Gateway</html>")
    assert (type(page), page.type, page.status, page.title) == (RetryableProblem, "about:blank", 502, "Bad Gateway")
    assert "<html>" in str(page)


@pytest.mark.parametrize(
    "body", [b'{"type":"x","status":"down"}', b'{"type":"x","status":true}', b'{"type":7}', b'{"type":"x","errors":7}']
)
def test_another_services_error_is_told_as_it_is(body: bytes) -> None:
    """The response looks like a problem and is none."""
    foreign = to_problem(404, body)
    assert (type(foreign), foreign.type, foreign.status, foreign.errors) == (Problem, "about:blank", 404, [])
    assert body.decode() in str(foreign)


def test_a_problem_need_not_repeat_its_status() -> None:
    assert to_problem(418, b'{"type":"urn:onward:problem:new"}').status == 418
