"""The parts of the HTTP transport that do no I/O: defaults, requests and responses as httpx has them."""

import ssl
import time
from urllib.parse import urlsplit

import httpx

from onward.client.command_flow import NoResponse, Request, Response
from onward.client.transport import address

URL = "http://127.0.0.1:8000"
TIMEOUT_S, RETRY_DEADLINE_S = 35.0, 60.0
"""The limits of one try, a little more than the service gives a request by itself, and of all tries together."""
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""The caller decides how many calls run side by side."""
RETRYABLE = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)
"""Errors that may be absent at the next try. An error of what this client itself may not send is not among them."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def trusted(url: str) -> ssl.SSLContext | bool:
    """Returns httpx's `verify`. For http it is an empty context: reading all certificates takes longer than a call."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if urlsplit(url).scheme == "http" else True


def authorization(api_key: str | None) -> dict[str, str]:
    key = address.key(api_key)
    return {"Authorization": f"Bearer {key}"} if key else {}


def built(http: httpx.Client | httpx.AsyncClient, request: Request) -> httpx.Request:
    media = {"Content-Type": "application/json"} if request.content is not None else {}
    return http.build_request(
        request.method,
        request.path,
        content=request.body,
        params=request.query or None,
        headers={**media, **request.headers},
    )


def response(received: httpx.Response, began: float, body: bytes) -> Response:
    """began: by the monotonic clock."""
    return Response(received.status_code, received.headers, body, time.monotonic() - began)


def no_response(error: Exception, began: float) -> NoResponse:
    return NoResponse(error, not isinstance(error, UNSENT), time.monotonic() - began)
