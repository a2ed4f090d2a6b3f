"""Clients that stop where something is to come are cut off, and their sessions stay; who may take its time is not."""

import contextlib
import socket
import time
from pathlib import Path

from tests.e2e.server import Server
from tests.reference import ROOT
from tests.websocket import WebSocket

STALLED_S, MARGIN_S = 5.0, 30.0
"""How long a client may stall here, where a minute would be long."""


def connected(server: Server, path: str, body: bytes, *headers: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=2 * STALLED_S + MARGIN_S)
    connection.sendall(request(path, body, *headers))
    return connection


def request(path: str, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_to(connection: socket.socket, end: bytes) -> bytes:
    said = b""
    while end not in said and (data := connection.recv(65536)):
        said += data
    return said


def test_who_stalls_is_cut_off_and_who_may_wait_is_not(tmp_path: Path) -> None:
    """In the middle of a body, with the lane and without, and where nothing is read; uploads and streams may wait."""
    half = ("Content-Type: application/json", "Content-Length: 1000")
    one = ("Content-Type: application/x-ndjson", "Content-Length: 4")
    lines = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    setting = f"import service.http.connection as connection\nconnection.STALLED_S = {STALLED_S}\n"
    (tmp_path / "sitecustomize.py").write_text(setting)
    with contextlib.ExitStack() as open_:
        stopped, silent = list[socket.socket](), list[WebSocket]()
        for lane in "01":
            server = open_.enter_context(Server(tmp_path / lane, ONWARD_LANE=lane, PYTHONPATH=f"{tmp_path}:{ROOT}"))
            client = open_.enter_context(server.client())
            for name in ("half", "deaf", "slow", "silent"):
                client.post("/v1/models/pulse/sessions", json={"session_id": name})
            stopped += [
                open_.enter_context(connected(server, path, b'{"inputs": [', *half))
                for path in ("/v1/sessions/half/steps", "/v1/models/pulse/predict")
            ]
            stopped.append(open_.enter_context(connected(server, "/v1/sessions/half/steps", b"500\n", *one)))
            assert b'{"step":1,' in read_to(stopped[-1], b"0\r\n\r\n")
            stopped[-1].sendall(request("/v1/models/pulse/predict", b'{"inputs": [', *half))
            silent.append(open_.enter_context(WebSocket(server.url, "silent")))
        slow = open_.enter_context(connected(server, "/v1/sessions/slow/steps", chunk(b"500\n"), *lines))
        assert b'{"step":1,' in read_to(slow, b"}\n")
        deaf = open_.enter_context(connected(server, "/v1/sessions/deaf/steps", b"", *lines))
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:  # until the service, which nobody listens to, has had enough
                deaf.sendall(chunk(b"500\n" * 1000))
        for connection in stopped:
            told = read_to(connection, b"no end")
            assert b"400 BAD REQUEST" in told
            assert b"the body is not whole: nothing came or was read in time" in told
        assert STALLED_S < time.monotonic() - began < 2 * STALLED_S + MARGIN_S
        for stream in silent:
            stream.say({"inputs": [500]})
            assert stream.hear()["step"] == 1
        slow.sendall(chunk(b"500\n") + b"0\r\n\r\n")
        assert b'{"step":2,' in read_to(slow, b"\r\n0\r\n\r\n")
        assert client.get("/v1/sessions/half").json()["step"] == 1
        done = client.get("/v1/sessions/deaf").json()["step"]
        assert client.post("/v1/sessions/deaf/steps", json={"inputs": [500]}).json()["step"] == done + 1
