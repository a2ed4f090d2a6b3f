"""A forward proxy, as companies have them: requests with an absolute URL, and tunnels by CONNECT."""

import contextlib
import socket
import socketserver
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from tests.helpers.losing_proxy import read_request


class ForwardProxy:
    """Answers for every host with the service at `url`, or with `answer` if it is set.

    `heads` has the heads of all requests that it received.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.service = (parts.hostname or "", parts.port or 0)
        self.heads: list[str] = []
        self.answer = b""
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                proxy.forward(self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def forward(self, client: socket.socket) -> None:
        """Passes one request and its response on, or whatever is sent through a tunnel."""
        head, body = read_request(client)
        if not head:
            return
        self.heads.append(head.decode())
        if self.answer:
            client.sendall(self.answer)
            return
        method, target, rest = head.split(b" ", 2)
        with socket.create_connection(self.service) as service, contextlib.suppress(OSError):
            if method == b"CONNECT":
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                upward = threading.Thread(target=_copy, args=(client, service))
                upward.start()
                _copy(service, client)
                upward.join()
            else:
                path = b"/" + target.partition(b"://")[2].partition(b"/")[2]
                rest = rest.replace(b"\r\nConnection: keep-alive", b"\r\nConnection: close")
                service.sendall(b" ".join([method, path, rest]) + body)
                _copy(service, client)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while received := source.recv(65_536):
            target.sendall(received)
        target.shutdown(socket.SHUT_WR)
