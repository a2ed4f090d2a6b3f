"""The parts of the HTTP transport that do no I/O: defaults, requests and responses as httpx has them."""

import os
import ssl
import time
from urllib.parse import urlsplit

import httpx

from onward.client.command_flow import NoResponse, Request, Response
from onward.client.transport import address, proxies

URL = "http://127.0.0.1:8000"
TIMEOUT_S, RETRY_DEADLINE_S = 35.0, 60.0
"""The limits of one try, a little more than the service gives a request by itself, and of all tries together."""
LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100)
"""The caller decides how many calls run side by side."""
RETRYABLE = (httpx.TimeoutException, httpx.NetworkError, httpx.ProxyError, httpx.RemoteProtocolError)
"""Errors that may be absent at the next try. An error of what this client itself may not send is not among them."""
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


def proxy(url: str) -> proxies.Proxy | None:
    """Returns the proxy for the service. Raises ValueError, which names the variable, if it cannot be used."""
    chosen = proxies.choose(url, os.environ)
    if chosen is not None:
        chosen.require("socksio")
    return chosen


def trusted(url: str) -> ssl.SSLContext:
    """Returns httpx's `verify`. For http it is an empty context: reading all certificates takes longer than a call."""
    is_plain = urlsplit(url).scheme == "http"
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_plain else httpx.create_ssl_context()


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


def response(received: httpx.Response, began: float, body: bytes, proxy: proxies.Proxy | None) -> Response:
    """began: by the monotonic clock."""
    took_s = time.monotonic() - began
    return Response(received.status_code, received.headers, body, took_s, proxy.setting if proxy else "")


def no_response(error: Exception, began: float, proxy: proxies.Proxy | None) -> NoResponse:
    took_s = time.monotonic() - began
    return NoResponse(error, not isinstance(error, UNSENT), took_s, proxy.setting if proxy else "")
