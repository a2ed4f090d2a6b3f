"""Clients that never give a step up, and compare each answer with a bare ONNX Runtime loop of their own."""

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

ANSWER_S = 2.0
CUT, CUT_BODY, BULK, FLASK = 0.03, 0.03, 0.2, 0.1
"""Shares of requests: cut off before the answer, and before the announced end of the body; of several sessions at once;
with a head that is not the fast path's.
"""
NUMBER = 1000
"""An upload of lines is cut within a number: what came of it is a number too, and must not be applied."""
AGAIN_S = 0.02


@dataclass
class Tally:
    """What all clients saw."""

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
    """One session as its client knows it: how far it is, and what its answers must be."""

    def __init__(self, name: str, loop: BareLoop, rows: list[list[float]]) -> None:
        self.name, self.step = name, 0
        self._loop, self._rows = copy(loop), rows

    def ask(self, steps: int, *, says_step: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """A request for the next steps, and the answer that is right."""
        rows = [self._rows[(self.step + step) % len(self._rows)] for step in range(steps)]
        body: dict[str, Any] = {"inputs": rows, "request_id": f"from-{self.step}"}
        if says_step:
            body["step"] = self.step
        told = self._loop.run(rows)
        self.step += steps
        surprise = told.pop("surprise")
        return body, {"step": self.step, "predictions": told, "surprise": surprise}


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
                some = chance.sample(self.sessions, min(4, len(self.sessions)))
                asked = [session.ask(chance.randint(1, 3), says_step=chance.random() < 0.5) for session in some]
                items = [{"session_id": one.name, **body} for one, (body, _) in zip(some, asked, strict=True)]
                answers = self._deliver_all(items)
                for one, (_, right) in zip(some, asked, strict=True):
                    self._check(one.name, answers[one.name], right)
            else:
                session = chance.choice(self.sessions)
                body, right = session.ask(chance.randint(1, 3), says_step=chance.random() < 0.5)
                answer = self._deliver(f"/v1/sessions/{session.name}/steps", body)
                self._check(session.name, answer, right)
        if self._connection is not None:
            self._connection.close()

    def _check(self, name: str, answer: dict[str, Any], right: dict[str, Any]) -> None:
        told = {**answer["predictions"], "surprise": answer["surprise"]}
        same = answer["step"] == right["step"] and all(
            np.array(told[output], np.float32).tobytes() == value.tobytes()
            for output, value in {**right["predictions"], "surprise": right["surprise"]}.items()
        )
        with self._tally.lock:
            self._tally.acknowledged += len(right["surprise"])
            self._tally.answered_at.append(time.monotonic())
            if not same:
                self._tally.wrong.append(f"{name} at {right['step']}: {answer}")

    def _deliver_all(self, items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Sends what was not answered again, until all of it is; the answers by session."""
        answers: dict[str, dict[str, Any]] = {}
        while left := [item for item in items if item["session_id"] not in answers]:
            for told in self._deliver("/v1/steps", {"items": left})["items"]:
                if told["status"] == 200:
                    answers[told["session_id"]] = told
                else:
                    self._failed(f"{told['status']} {told['problem']['type'].rpartition('/')[2]}")
        return answers

    def _deliver(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer, however often it takes to get one."""
        while True:
            try:
                status, answer = self._once(path, body)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                self._failed(type(error).__name__)
                continue
            if status == 200 or status == 201 or (status == 409 and path.startswith("/v1/models")):
                return answer
            self._failed(f"{status} {answer['type'].rpartition('/')[2]}")

    def _once(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self._connection is None:
            address = urlsplit(self._chance.choice(self._urls()))
            self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_S)
            self._connection.connect()
            self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"Content-Type": "application/json"} | ({"X-Odd": "1"} if self._chance.random() < FLASK else {})
        if self._chance.random() < CUT_BODY:
            self._cut(path, json.dumps(body).encode(), headers)
        self._connection.request("POST", path, json.dumps(body), headers)
        if self._chance.random() < CUT:
            raise ConnectionAbortedError
        answer = self._connection.getresponse()
        told = answer.read()
        if answer.will_close:
            self._drop()
        return answer.status, json.loads(told)

    def _cut(self, path: str, body: bytes, headers: dict[str, str]) -> NoReturn:
        """Announces a length, of the request or of an upload of lines beside it, and ends before that is reached."""
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

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _failed(self, what: str) -> None:
        with self._tally.lock:
            self._tally.errors[what] += 1
        time.sleep(AGAIN_S)


def clients(
    count: int, sessions: int, urls: Callable[[], list[str]], tally: Tally, over: threading.Event
) -> list[Client]:
    """That share the sessions out among them."""
    loop, rows = BareLoop(ZOO / "pulse/1"), pulse(50 * count)
    owned = [
        [Session(f"s{number}", loop, rows[50 * client : 50 * client + 50]) for number in range(client, sessions, count)]
        for client in range(count)
    ]
    return [Client(number, owned[number], urls, tally, over) for number in range(count)]
