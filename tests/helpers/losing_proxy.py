"""A proxy between client and service that loses responses: the service handles the request, the client sees nothing."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class LosingProxy:
    """Forwards requests to `url`, one a connection, and loses the first `count` responses of each request line.

    Of a lost response the client receives the first `delivered_bytes` bytes.
    """

    def __init__(self, url: str, count: int = 1, delivered_bytes: int = 0) -> None:
        parts = urlsplit(url)
        self._address, self._count, self._delivered_bytes = (
            (parts.hostname or "", parts.port or 0),
            count,
            delivered_bytes,
        )
        self.request_lines: list[str] = []
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._forward(connection)

    def _forward(self, connection: socket.socket) -> None:
        head, body = read_request(connection)
        if not head:
            return
        line = head.partition(b"\r\n")[0].decode()
        self.request_lines.append(line)
        self.heads.append(head)
        with socket.create_connection(self._address) as service:
            service.sendall(head.replace(b"\r\nConnection: keep-alive", b"\r\nConnection: close") + body)
            response = b"".join(iter(lambda: service.recv(65_536), b""))
        connection.sendall(
            response if self.request_lines.count(line) > self._count else response[: self._delivered_bytes]
        )


def read_request(connection: socket.socket) -> tuple[bytes, bytes]:
    """Returns the head of the next request, with the empty line, and its body; two empty strings at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65_536)):
            return b"", b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    while len(body) < length:
        body += connection.recv(65_536)
    return head + b"\r\n\r\n", body
