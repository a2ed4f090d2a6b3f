"""The assertion that a response is a problem of the documented form."""

from typing import Any

import httpx

from onward.service.http.problems import ALL

TYPES = {kind.type: kind for kind in ALL}


def assert_problem(answer: httpx.Response, name: str, field: str | None = None) -> dict[str, Any]:
    """An RFC 9457 problem of that type, with its status, which names the field where one is at fault."""
    kind = TYPES[f"urn:onward:problem:{name}"]
    assert answer.status_code == kind.status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["type"], body["status"], body["title"]) == (kind.type, kind.status, kind.title)
    assert body["detail"]
    if field is not None:
        assert field in [error["field"] for error in body["errors"]], body
    if kind.status == 503:
        assert int(answer.headers["retry-after"]) >= 1
    return body
