"""gunicorn's gevent worker with the engine's lifetime, and problems where gunicorn would answer with HTML.

gunicorn's master imports this module before it forks. So it must not import ONNX Runtime, even indirectly: that starts
a thread, which the fork does not copy, and a worker would abort at its end when it joins it.
"""

import logging
import socket
from typing import Any

from gunicorn.http import errors as parsing
from gunicorn.util import write_nonblock
from gunicorn.workers.ggevent import GeventWorker

from service.errors import Fault
from service.http import problems
from service.http.problems import HTTP_KINDS, INTERNAL, Kind

log = logging.getLogger(__name__)

_STATUS = {parsing.LimitRequestLine: 414, parsing.LimitRequestHeaders: 431}


class Worker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    def run(self) -> None:
        try:
            super().run()
        finally:
            self.wsgi.extensions["onward"].close()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answers a request that never became one."""
        del req, addr
        kind, detail = _kind_of(exc)
        if kind is INTERNAL:
            log.error("a request failed outside the application", exc_info=exc)
        fault = [Fault("path", detail)] if kind.status == 414 else []
        body = problems.document(kind, detail, fault)
        head = (
            f"HTTP/1.1 {kind.status} {kind.title}\r\nConnection: close\r\n"
            f"Content-Type: {problems.MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            write_nonblock(client, head.encode() + body)
            _linger(client)
        except OSError as error:
            log.debug("the client had gone: %s", error)


def _linger(client: Any) -> None:
    """Reads what the client is still sending, within bounds: closing at once would reset the connection, and the answer
    could be lost on its way.
    """
    client.shutdown(socket.SHUT_WR)
    client.settimeout(1.0)
    for _ in range(64):
        if not client.recv(65536):
            break


def _kind_of(error: BaseException) -> tuple[Kind, str]:
    if isinstance(error, parsing.ParseException):
        kind = HTTP_KINDS[next((status for of, status in _STATUS.items() if isinstance(error, of)), 400)]
        return kind, str(error)[:200] or kind.title
    return INTERNAL, "this is our fault and is in the log"
