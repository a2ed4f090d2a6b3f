"""Server-Sent Events: what comes step by step, as a response that is sent as it comes (WHATWG HTML, section 9.2).

Owns the framing, and the greenlet that makes events while others are sent. Knows nothing of what they are.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import gevent
from flask import Response
from gevent.queue import Empty, Queue

from onward.service.http.connection import HasLeft

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
BEAT_S = 10.0
"""A comment is sent where nothing else was for so long: proxies close what is silent."""
MOST_AHEAD = 16
"""Events that are made before those before them were sent."""

_BEAT = b": \n\n"


class Event(NamedTuple):
    """data: one line. name: none for what comes with each step."""

    id: str
    data: bytes
    name: str = ""

    def encoded(self) -> bytes:
        name = f"event: {self.name}\n" if self.name else ""
        return f"id: {self.id}\n{name}data: ".encode() + self.data + b"\n\n"


def response(events: Iterator[Event], has_left: HasLeft | None) -> Response:
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold events back
    return Response(stream(events, has_left), headers=headers, content_type=MEDIA_TYPE)


def stream(events: Iterator[Event], has_left: HasLeft | None, *, beat_s: float = BEAT_S) -> Iterator[bytes]:
    """The events' bytes. Closing it, or a client that has left, stops them before the next is made."""
    made: Queue[bytes | None] = Queue(MOST_AHEAD)
    maker = gevent.spawn(_make, events, made, has_left)
    try:
        while True:
            try:
                data = made.get(timeout=beat_s)
            except Empty:
                data = _BEAT
            if data is None:
                return
            yield data
    finally:
        maker.kill()


def _make(events: Iterator[Event], made: "Queue[bytes | None]", has_left: HasLeft | None) -> None:
    try:
        while not (has_left is not None and has_left()) and (event := next(events, None)) is not None:
            made.put(event.encoded())
    except Exception:  # whoever waits for the next event is not left waiting
        log.exception("events ended before their end")
    made.put(None)
