"""The load: connections that each send a request, wait for its answer, check it, and send the next.

Runs in a process of its own, on a core of its own, over bare sockets. Reads a `Load` as JSON from stdin, writes
`{"latencies_s": [...], "wall_s": ...}`. Ends with status 1 where an answer is not 2xx.
"""

import json
import select
import socket
import sys
import time
from itertools import cycle
from typing import Any


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
        """Takes in what has come; whether the answer is whole."""
        data = self.socket.recv(1 << 20)
        if not data:
            sys.exit("the server closed a connection")
        if self._missing:
            self._missing -= len(data)
            return self._missing == 0
        self._answer.append(data)
        data = b"".join(self._answer) if len(self._answer) > 1 else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._answer.clear()
        if not data.startswith(b"HTTP/1.1 2"):
            sys.exit(f"not a success: {data[:2000]!r}")
        head = data[:end].lower()
        start = head.index(b"content-length:") + len(b"content-length:")
        self._missing = end + 4 + int(head[start:].partition(b"\r\n")[0]) - len(data)
        return self._missing == 0


def request(path: str, body: Any) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def run(address: tuple[str, int], calls: list[list[tuple[str, Any]]], seconds: float) -> dict[str, Any]:
    """`calls`: a list a connection of the path and body of its requests, sent in turn and over again."""
    connections = [Connection(address, [request(path, body) for path, body in own]) for own in calls]
    poll = select.epoll()
    by_file = {connection.socket.fileno(): connection for connection in connections}
    for file in by_file:
        poll.register(file, select.EPOLLIN)
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
    told = json.load(sys.stdin)
    print(json.dumps(run((told["host"], told["port"]), told["calls"], told["seconds"])))
