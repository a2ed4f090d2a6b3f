"""The functions of Onward that a step over the fast path crosses, from the socket to the answer.

Each function is a place where a step can cost time, and one that a reader must know. Run with `-s` to see the lists.
"""

import _socket
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import gevent
import gevent.socket
import greenlet
import pytest
from gunicorn.config import Config

from onward.model.repository import open_all
from onward.service.engine.batching import batcher
from onward.service.engine.engine import Engine, Limits
from onward.service.metrics.prometheus import Metrics
from onward.service.server.fast_path import FastPath
from onward.service.store.lmdb import LmdbStore
from tests.helpers.reference_loop import ROOT, ZOO

MOST_FUNCTIONS = {1: 50, 64: 66}
"""The limits by the number of clients whose steps are one batch."""
ROOTS = tuple(str(ROOT / folder) for folder in ("onward", "service", "model"))
BODY = b'{"inputs": [[500]]}'
HEAD = (
    b"POST /v1/sessions/s%d/steps HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>"}
"""Names of code that belongs to the function around it."""


class Crossed:
    """The code that runs until so many answers have been sent by the given sockets."""

    def __init__(self, sockets: Sequence[Any], answers: int) -> None:
        self._files, self._left = {connection.fileno() for connection in sockets}, answers
        self._code: set[CodeType] = set()

    def profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if not self._left:
            return
        if event == "call":
            self._code.add(frame.f_code)
        elif event == "c_call" and self._is_answer(argument):
            self._left -= 1
            sender: FrameType | None = frame
            while sender is not None:  # also what was called before, such as the function of the batcher's greenlet
                self._code.add(sender.f_code)
                sender = sender.f_back

    def _is_answer(self, function: Any) -> bool:
        owner = function.__self__
        return function.__name__ == "send" and isinstance(owner, _socket.socket) and owner.fileno() in self._files

    @property
    def functions(self) -> dict[str, list[str]]:
        """The names of the functions of Onward by file."""
        assert not self._left
        functions = defaultdict(list)
        for code in self._code:
            if code.co_filename.startswith(ROOTS) and code.co_name not in COMPREHENSIONS:
                functions[str(Path(code.co_filename).resolve().relative_to(ROOT))].append(code.co_qualname)
        return {file: sorted(names) for file, names in sorted(functions.items())}


@contextmanager
def profiled(crossed: Crossed) -> Iterator[None]:
    """Profiles all greenlets of this thread: each has its own switch for it."""
    greenlet.settrace(lambda event, greenlets: sys.setprofile(crossed.profile))
    sys.setprofile(crossed.profile)
    try:
        yield
    finally:
        greenlet.settrace(None)
        sys.setprofile(None)


@pytest.fixture
def fast_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastPath]:
    monkeypatch.setattr(batcher, "DISCONNECT_CHECK_S", 1e6)
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(), observer=Metrics())
    engine.start(flush_s=1e6, sweep_s=1e6)
    yield FastPath(engine, Config(), most_body=1000, alive=lambda: True)
    engine.close()


@pytest.mark.parametrize("clients", MOST_FUNCTIONS)
def test_a_step_crosses_few_functions(fast_path: FastPath, clients: int) -> None:
    """A plain step alone, and the steps of many clients in one batch, stay within the limits."""
    pairs = [gevent.socket.socketpair() for _ in range(clients)]
    for number, (_, remote) in enumerate(pairs):
        fast_path.engine.create("public", "pulse", session_id=f"s{number}")
        gevent.spawn(fast_path.serve, remote, b"")
    crossed = Crossed([remote for _, remote in pairs], clients)
    for step in range(3):
        if step == 2:  # the caches are filled
            with profiled(crossed):
                answers = _step(pairs)
        else:
            answers = _step(pairs)
        assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
    for local, remote in pairs:
        local.close()
        remote.close()
    functions = crossed.functions
    count = sum(len(names) for names in functions.values())
    listed = [f"{clients} clients: {count} functions in {len(functions)} files"]
    listed += [f"  {file} {len(names)}: {', '.join(names)}" for file, names in functions.items()]
    print("\n" + "\n".join(listed))  # noqa: T201  (shown with pytest -s)
    assert count <= MOST_FUNCTIONS[clients], "\n".join(listed)


def _step(pairs: Sequence[tuple[Any, Any]]) -> list[bytes]:
    """Sends a step on each connection in one turn of the event loop; returns the answers."""
    for number, (local, _) in enumerate(pairs):
        local.sendall(HEAD % (number, len(BODY)) + BODY)
    return [local.recv(65_536) for local, _ in pairs]
