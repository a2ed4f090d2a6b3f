"""Server-Sent Events: a response that is sent event by event (WHATWG HTML, section 9.2).

Owns the framing, and the greenlet that makes events while earlier events are sent. Knows nothing of their content.
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
"""The seconds without an event after which a comment is sent: proxies close silent connections."""
MOST_AHEAD = 16
"""The most events that are made ahead of the events that were sent."""

_BEAT = b": \n\n"


class Event(NamedTuple):
    """An event. data: a single line. name: empty for the event of a step."""

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
    """The events' bytes. If the iterator is closed or the client has left, no further event is made."""
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
    except Exception:  # `stream` must not wait for ever for the next event
        log.exception("events ended before their end")
    made.put(None)
