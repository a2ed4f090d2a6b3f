"""Clients that repeat each step until it is answered, and compare each response with a bare ONNX Runtime loop."""

import http.client
import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from random import Random
from typing import Any, NoReturn
from urllib.parse import urlsplit

import numpy as np

from tests.e2e.faults.repository import FIRST
from tests.helpers.reference_loop import ZOO, BareLoop, pulse

RESPONSE_S = 2.0
CUT, CUT_BODY, BULK, FLASK = 0.03, 0.03, 0.2, 0.1
"""Shares of requests: cut off before the response; cut off before the announced end of the body; for several sessions
in one call; with a header that the fast path does not handle.
"""
NUMBER = 1000
"""The least number in an upload of lines that is cut: its beginning is a number too, and must not be applied."""
RETRY_S = 0.02


@dataclass
class Tally:
    """The counts and errors of all clients together."""

    acknowledged: int = 0
    cut: int = 0
    """Requests whose body ended before its announced length."""
    wrong: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    answered_at: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def longest_unavailability_s(self) -> float:
        times = np.sort(self.answered_at)
        return float(np.diff(times).max()) if len(times) > 1 else float("inf")


class Session:
    """A session as its client expects it: the step that it has reached, and its next responses."""

    def __init__(self, name: str, loop: BareLoop, rows: list[list[float]]) -> None:
        self.name, self.step = name, 0
        self._loop, self._rows = copy(loop), rows

    def next_request(self, steps: int, *, with_step: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the body of a request for the next steps, and the response that it must have."""
        rows = [self._rows[(self.step + step) % len(self._rows)] for step in range(steps)]
        body: dict[str, Any] = {"inputs": rows, "request_id": f"from-{self.step}"}
        if with_step:
            body["step"] = self.step
        predictions = self._loop.run(rows)
        self.step += steps
        surprise = predictions.pop("surprise")
        return body, {"step": self.step, "predictions": predictions, "surprise": surprise}


class Client(threading.Thread):
    def __init__(
        self, number: int, sessions: Sequence[Session], urls: Callable[[], list[str]], tally: Tally,
        over: threading.Event,
    ) -> None:  # fmt: skip
        super().__init__(name=f"client {number}")
        self._chance, self._urls, self._tally, self._over = Random(number), urls, tally, over
        self.sessions = sessions
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        for session in self.sessions:
            self._deliver("/v1/models/pulse/sessions", {"session_id": session.name, "version": FIRST})
        while not self._over.is_set():
            chance = self._chance
            if chance.random() < BULK:
                chosen = chance.sample(self.sessions, min(4, len(self.sessions)))
                requests = [
                    session.next_request(chance.randint(1, 3), with_step=chance.random() < 0.5) for session in chosen
                ]
                items = [
                    {"session_id": session.name, **body} for session, (body, _) in zip(chosen, requests, strict=True)
                ]
                responses = self._deliver_all(items)
                for session, (_, expected) in zip(chosen, requests, strict=True):
                    self._check(session.name, responses[session.name], expected)
            else:
                session = chance.choice(self.sessions)
                body, expected = session.next_request(chance.randint(1, 3), with_step=chance.random() < 0.5)
                response = self._deliver(f"/v1/sessions/{session.name}/steps", body)
                self._check(session.name, response, expected)
        if self._connection is not None:
            self._connection.close()

    def _check(self, name: str, response: dict[str, Any], expected: dict[str, Any]) -> None:
        outputs = {**response["predictions"], "surprise": response["surprise"]}
        same = response["step"] == expected["step"] and all(
            np.array(outputs[output], np.float32).tobytes() == value.tobytes()
            for output, value in {**expected["predictions"], "surprise": expected["surprise"]}.items()
        )
        with self._tally.lock:
            self._tally.acknowledged += len(expected["surprise"])
            self._tally.answered_at.append(time.monotonic())
            if not same:
                self._tally.wrong.append(f"{name} at {expected['step']}: {response}")

    def _deliver_all(self, items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Repeats the items without a response until every item has one; returns the responses by session."""
        responses: dict[str, dict[str, Any]] = {}
        while left := [item for item in items if item["session_id"] not in responses]:
            for result in self._deliver("/v1/steps", {"items": left})["items"]:
                if result["status"] == 200:
                    responses[result["session_id"]] = result
                else:
                    self._record_error(f"{result['status']} {result['problem']['type'].rpartition('/')[2]}")
        return responses

    def _deliver(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Repeats a request until it succeeds; returns the response."""
        while True:
            try:
                status, response = self._send_once(path, body)
            except (OSError, http.client.HTTPException) as error:
                self._disconnect()
                self._record_error(type(error).__name__)
                continue
            if status == 200 or status == 201 or (status == 409 and path.startswith("/v1/models")):
                return response
            self._record_error(f"{status} {response['type'].rpartition('/')[2]}")

    def _send_once(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            address = urlsplit(self._chance.choice(self._urls()))
            self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=RESPONSE_S)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"Content-Type": "application/json"} | ({"X-Odd": "1"} if self._chance.random() < FLASK else {})
        if self._chance.random() < CUT_BODY:
            self._cut(path, json.dumps(body).encode(), headers)
        self._connection.request("POST", path, json.dumps(body), headers)
        if self._chance.random() < CUT:
            raise ConnectionAbortedError
        response = self._connection.getresponse()
        content = response.read()
        if response.will_close:
            self._disconnect()
        return response.status, json.loads(content)

    def _cut(self, path: str, body: bytes, headers: dict[str, str]) -> NoReturn:
        """Sends a part of the request, or of an upload of lines in its place, and disconnects."""
        assert self._connection is not None
        if path.startswith("/v1/sessions/") and self._chance.random() < 0.5:
            body, headers = b"%d" % self._chance.randint(NUMBER, 10 * NUMBER), {"Content-Type": "application/x-ndjson"}
        self._connection.putrequest("POST", path)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self._connection.putheader(name, value)
        self._connection.endheaders(body[: self._chance.randrange(len(body))])
        if self._chance.random() < 0.5:
            self._connection.sock.shutdown(socket.SHUT_WR)
            self._connection.getresponse().read()
        elif self._chance.random() < 0.5:
            self._connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with self._tally.lock:
            self._tally.cut += 1
        raise ConnectionAbortedError

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _record_error(self, what: str) -> None:
        with self._tally.lock:
            self._tally.errors[what] += 1
        time.sleep(RETRY_S)


def clients(
    count: int, sessions: int, urls: Callable[[], list[str]], tally: Tally, over: threading.Event
) -> list[Client]:
    """Returns `count` clients among which the sessions are divided."""
    loop, rows = BareLoop(ZOO / "pulse/1"), pulse(50 * count)
    owned = [
        [Session(f"s{number}", loop, rows[50 * client : 50 * client + 50]) for number in range(client, sessions, count)]
        for client in range(count)
    ]
    return [Client(number, owned[number], urls, tally, over) for number in range(count)]
