"""The assertion that a response is a problem of the documented form."""

from typing import Any

import httpx

from onward.service.http.problems import ALL

TYPES = {kind.type: kind for kind in ALL}


def assert_problem(response: httpx.Response, name: str, field: str | None = None) -> dict[str, Any]:
    """Asserts that the response is the RFC 9457 problem `name` and names `field`, if given; returns its body."""
    kind = TYPES[f"urn:onward:problem:{name}"]
    assert response.status_code == kind.status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert (body["type"], body["status"], body["title"]) == (kind.type, kind.status, kind.title)
    assert body["detail"]
    if field is not None:
        assert field in [error["field"] for error in body["errors"]], body
    if kind.status == 503:
        assert int(response.headers["retry-after"]) >= 1
    return body
