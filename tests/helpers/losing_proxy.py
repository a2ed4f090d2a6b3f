"""Between client and service, something that loses answers: what was asked is done, and nobody hears of it."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit


class Losing:
    """Passes requests on to `url`, one a connection; the answers of the first `count` of each path are lost, but for
    their first `kept` bytes.
    """

    def __init__(self, url: str, count: int = 1, kept: int = 0) -> None:
        parts = urlsplit(url)
        self._to, self._count, self._kept = (parts.hostname or "", parts.port or 0), count, kept
        self.asked: list[str] = []
        """The request lines that came."""
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
                self._pass_on(connection)

    def _pass_on(self, connection: socket.socket) -> None:
        head, body = _whole(connection)
        if not head:
            return
        line = head.partition(b"\r\n")[0].decode()
        self.asked.append(line)
        self.heads.append(head)
        with socket.create_connection(self._to) as service:
            service.sendall(head.replace(b"\r\nConnection: keep-alive", b"\r\nConnection: close") + body)
            answer = b"".join(iter(lambda: service.recv(65_536), b""))
        connection.sendall(answer if self.asked.count(line) > self._count else answer[: self._kept])


def _whole(connection: socket.socket) -> tuple[bytes, bytes]:
    """One request: its head, with the empty line, and its body."""
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
