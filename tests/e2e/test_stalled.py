"""Clients that stop where something is to come are cut off, and their sessions stay; who may take its time is not."""

import contextlib
import socket
import time
from pathlib import Path

from service.handed import STALLED_S
from tests.e2e.server import Server

MARGIN_S = 20.0


def connected(server: Server, head: str, body: bytes, *more: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=STALLED_S + MARGIN_S)
    connection.sendall("\r\n".join([f"POST {head} HTTP/1.1", "Host: x", *more, "", ""]).encode() + body)
    return connection


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_to(connection: socket.socket, end: bytes) -> bytes:
    said = b""
    while end not in said and (data := connection.recv(65536)):
        said += data
    return said


def test_who_stalls_is_cut_off_and_who_may_wait_is_not(tmp_path: Path) -> None:
    """In the middle of a body, in the lane and in Flask, and where nothing is read; an upload may be silent."""
    lines = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    half = ("Content-Type: application/json", "Content-Length: 1000")
    with Server(tmp_path) as server, server.client() as client, contextlib.ExitStack() as open_:
        for name in ("half", "deaf", "slow"):
            client.post("/v1/models/pulse/sessions", json={"session_id": name})
        slow = open_.enter_context(connected(server, "/v1/sessions/slow/steps", chunk(b"500\n"), *lines))
        assert b'{"step":1,' in read_to(slow, b"}\n")
        began = time.monotonic()
        stopped = [
            open_.enter_context(connected(server, path, b'{"inputs": [', *half))
            for path in ("/v1/sessions/half/steps", "/v1/models/pulse/predict")
        ]
        deaf = open_.enter_context(connected(server, "/v1/sessions/deaf/steps", b"", *lines))
        with contextlib.suppress(ConnectionError):
            while True:  # until the service, which nobody listens to, has had enough
                deaf.sendall(chunk(b"500\n" * 1000))
        assert STALLED_S < time.monotonic() - began < STALLED_S + MARGIN_S
        in_lane, in_flask = (read_to(one, b"no end") for one in stopped)
        assert in_lane == b""
        assert b"400 BAD REQUEST" in in_flask
        assert b"the body is not whole: nothing moved for 30 s" in in_flask
        assert time.monotonic() - began < STALLED_S + MARGIN_S
        slow.sendall(chunk(b"500\n") + b"0\r\n\r\n")
        assert b'{"step":2,' in read_to(slow, b"\r\n0\r\n\r\n")
        assert client.get("/v1/sessions/half").json()["step"] == 0
        done = client.get("/v1/sessions/deaf").json()["step"]
        assert client.post("/v1/sessions/deaf/steps", json={"inputs": [500]}).json()["step"] == done + 1
