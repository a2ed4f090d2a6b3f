"""The load: connections that each send a request, wait for its response, check it, and send the next.

Runs in its own process, on its own core, over bare sockets. Reads its task as a line of JSON from stdin, reports that
it is connected, begins at the next line, and writes `{"latencies_s": [...], "wall_s": ...}`. Exits with status 1 if a
response is not 2xx.
"""

import json
import select
import socket
import sys
import time
from functools import lru_cache
from itertools import cycle
from typing import Any

READ = 65_536


class Connection:
    def __init__(self, address: tuple[str, int], requests: list[bytes]) -> None:
        self.socket = socket.create_connection(address, timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._requests = cycle(requests)
        self._answer: list[bytes] = []
        self._missing = 0
        self.sent = 0.0

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.socket.sendall(next(self._requests))

    def receive(self) -> bool:
        """Reads the bytes that have arrived. True if the response is complete."""
        data = self.socket.recv(READ)
        if not data:
            sys.exit("the server closed a connection")
        if self._missing:
            self._missing -= len(data)
            return self._missing == 0
        if self._answer:
            self._answer.append(data)
            data = b"".join(self._answer)
        end = data.find(b"\r\n\r\n") + 4
        if end < 4:
            self._answer = [data]
            return False
        self._answer = []
        self._missing = end + body_length(data[:end]) - len(data)
        return self._missing == 0


@lru_cache(1000)
def body_length(head: bytes) -> int:
    """The length of the body by the head of a response; most heads within a second are the same."""
    if not head.startswith(b"HTTP/1.1 2"):
        sys.exit(f"not a success: {head!r}")
    lower = head.lower()
    start = lower.index(b"content-length:") + len(b"content-length:")
    return int(lower[start:].partition(b"\r\n")[0])


class Stream(Connection):
    """A connection whose requests are messages of a WebSocket."""

    def __init__(self, address: tuple[str, int], path: str, messages: list[bytes]) -> None:
        super().__init__(address, messages)
        key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        head = f"GET {path} HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{key}"
        self.socket.sendall(head.encode())
        response = b""
        while not response.endswith(b"\r\n\r\n"):
            response += self.socket.recv(1)
        if not response.startswith(b"HTTP/1.1 101"):
            sys.exit(f"no stream: {response!r}")

    def receive(self) -> bool:
        self._answer.append(self.socket.recv(READ))
        data = b"".join(self._answer)
        if len(data) < 4:
            return False
        length, start = (data[1], 2) if data[1] < 126 else (int.from_bytes(data[2:4]), 4)
        if len(data) < start + length:
            return False
        if not data.startswith(b'{"step":', start):
            sys.exit(f"not a success: {data!r}")
        self._answer.clear()
        return True


def opened(address: tuple[str, int], calls: list[tuple[str, Any]]) -> Connection:
    path = calls[0][0]
    if path.endswith("/stream"):
        return Stream(address, path, [message(body) for _, body in calls])
    return Connection(address, [request(path, body) for path, body in calls])


def message(body: Any) -> bytes:
    """A text frame of less than 126 bytes, masked as those of a client are."""
    data = json.dumps(body, separators=(",", ":")).encode()
    mask = bytes((1, 2, 3, 4))
    return bytes((0x81, 0x80 | len(data))) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))


def request(path: str, body: Any) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def run(address: tuple[str, int], calls: list[list[tuple[str, Any]]], seconds: float) -> dict[str, Any]:
    """Sends requests for some seconds; returns their latencies and the time that passed.

    calls: for each connection, the path and the body of its requests, which are sent in turn and repeated. If the path
    ends in /stream, the connection is a WebSocket and the bodies are its messages.
    """
    connections = [opened(address, own) for own in calls]
    poll = select.epoll()
    by_file = {connection.socket.fileno(): connection for connection in connections}
    for file in by_file:
        poll.register(file, select.EPOLLIN)
    print("connected", flush=True)
    sys.stdin.readline()
    latencies: list[float] = []
    began = time.perf_counter()
    for connection in connections:
        connection.send()
    open_ = len(connections)
    while open_:
        for file, _ in poll.poll(60):
            connection = by_file[file]
            if connection.receive():
                now = time.perf_counter()
                latencies.append(now - connection.sent)
                if now - began < seconds:
                    connection.send()
                else:
                    open_ -= 1
    wall = time.perf_counter() - began
    for connection in connections:
        connection.socket.close()
    return {"latencies_s": latencies, "wall_s": wall}


if __name__ == "__main__":
    task = json.loads(sys.stdin.readline())
    print(json.dumps(run((task["host"], task["port"]), task["calls"], task["seconds"])))
