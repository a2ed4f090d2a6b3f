"""Clients that stall are disconnected and their sessions stay; clients that may wait are not disconnected."""

import contextlib
import select
import socket
import time
from pathlib import Path

from tests.e2e.server import Server
from tests.helpers.reference_loop import ROOT
from tests.helpers.websocket_client import WebSocket

STALLED_S, MARGIN_S = 5.0, 30.0
"""The time that a client may stall in these tests, in place of the default, and the tolerance of measured times."""


def connected(server: Server, path: str, body: bytes, *headers: str) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=2 * STALLED_S + MARGIN_S)
    connection.sendall(request(path, body, *headers))
    return connection


def request(path: str, body: bytes, *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def shorten_stall_limit(folder: Path) -> None:
    """Makes services whose Python path has this folder wait STALLED_S."""
    setting = f"import onward.service.http.connection as connection\nconnection.STALLED_S = {STALLED_S}\n"
    (folder / "sitecustomize.py").write_text(setting)


def read_to(connection: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received and (data := connection.recv(65536)):
        received += data
    return received


def test_stalled_clients_are_disconnected_and_waiting_ones_are_not(tmp_path: Path) -> None:
    """A client that stalls in a body or reads nothing is disconnected, on any path; uploads may wait."""
    half = ("Content-Type: application/json", "Content-Length: 1000")
    one_line = ("Content-Type: application/x-ndjson", "Content-Length: 4")
    lines = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    shorten_stall_limit(tmp_path)
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
            stopped.append(open_.enter_context(connected(server, "/v1/sessions/half/steps", b"500\n", *one_line)))
            assert b'{"step":1,' in read_to(stopped[-1], b"0\r\n\r\n")
            stopped[-1].sendall(request("/v1/models/pulse/predict", b'{"inputs": [', *half))
            silent.append(open_.enter_context(WebSocket(server.url, "silent")))
        slow = open_.enter_context(connected(server, "/v1/sessions/slow/steps", chunk(b"500\n"), *lines))
        assert b'{"step":1,' in read_to(slow, b"}\n")
        deaf = open_.enter_context(connected(server, "/v1/sessions/deaf/steps", b"", *lines))
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while True:  # until the service, whose responses nobody reads, disconnects
                deaf.sendall(chunk(b"500\n" * 1000))
        for connection in stopped:
            response = read_to(connection, b"no end")
            assert b"400 BAD REQUEST" in response
            assert b"the body is not whole: too little was received or read in time" in response
        assert STALLED_S < time.monotonic() - began < 2 * STALLED_S + MARGIN_S
        for stream in silent:
            stream.send({"inputs": [500]})
            assert stream.receive()["step"] == 1
        slow.sendall(chunk(b"500\n") + b"0\r\n\r\n")
        assert b'{"step":2,' in read_to(slow, b"\r\n0\r\n\r\n")
        assert client.get("/v1/sessions/half").json()["step"] == 1
        done = client.get("/v1/sessions/deaf").json()["step"]
        assert client.post("/v1/sessions/deaf/steps", json={"inputs": [500]}).json()["step"] == done + 1


def test_dripping_clients_are_disconnected_and_slow_ones_are_not(tmp_path: Path) -> None:
    """A request sent byte by byte never stalls, so heads, bodies and started lines have a limit on their whole time."""
    shorten_stall_limit(tmp_path)
    json = ("Content-Type: application/json", "Content-Length: 12000")
    lines = ("Content-Type: application/x-ndjson", "Content-Length: 12000")
    chunks = ("Content-Type: application/x-ndjson", "Transfer-Encoding: chunked")
    steps, predict = "/v1/sessions/s/steps", "/v1/models/pulse/predict"
    whole = b'{"inputs": [500]}'.ljust(12_000)
    with contextlib.ExitStack() as open_:
        drips, slow = dict[socket.socket, str](), list[socket.socket]()
        servers = [
            open_.enter_context(Server(tmp_path / lane, ONWARD_LANE=lane, PYTHONPATH=f"{tmp_path}:{ROOT}"))
            for lane in "01"
        ]
        for server in servers:
            with server.client() as client:
                assert client.post("/v1/models/pulse/sessions", json={"session_id": "s"}).status_code == 201
            head = open_.enter_context(connected(server, steps, b"", "Content-Length: 0"))
            assert b" 415 " in read_to(head, b"}")
            head.sendall(request(steps, b"", *json)[:-4])
            drips[head] = "head"
            for path, headers, begun, ends in (
                (steps, json, b'{"inputs": [5', "body"), (predict, json, b'{"inputs": [5', "body"),
                (steps, lines, b"5", "line"), (steps, lines, b"500\n5", "line"), (steps, chunks, b"fff\r\n5", "line"),
                (steps, lines, b"x\n5", "rest"),
            ):  # fmt: skip
                drips[open_.enter_context(connected(server, path, begun, *headers))] = ends
            slow.append(open_.enter_context(connected(server, steps, b"", *json)))
        began, sent, received = time.monotonic(), 0, dict.fromkeys(drips, b"")
        while drips or sent < len(whole):
            due = min(len(whole), int(2000 * (time.monotonic() - began)))  # four times the pace that is asked for
            for connection in slow:
                connection.sendall(whole[sent:due])
            sent = due
            for connection in select.select(list(drips), [], [], 0.1)[0]:
                if data := connection.recv(65536):
                    received[connection] += data
                else:
                    ends, answer = drips.pop(connection), received[connection]
                    assert (b" 400 BAD REQUEST" in answer) is (ends == "body"), (ends, answer)
                    assert (b"the body is not whole: too little was received" in answer) is (
                        ends in {"body", "line"}
                    ), (
                        ends,
                        answer,
                    )
                    assert (b'"line":' in answer) is (ends in {"line", "rest"}), (ends, answer)
                    assert bool(answer) is (ends != "head")
            assert time.monotonic() - began < 2 * STALLED_S + MARGIN_S, drips
            for connection in drips:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"1")
        assert time.monotonic() - began > STALLED_S
        for connection in slow:
            assert read_to(connection, b"}").startswith(b"HTTP/1.1 200 ")
