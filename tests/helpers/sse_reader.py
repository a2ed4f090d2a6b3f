"""A reader of Server-Sent Events as the specification defines them: an empty line ends an event."""

import json
from typing import Any, NamedTuple


class ReceivedEvent(NamedTuple):
    """An event; its `name` is `message` if the server sent no name, as in a browser."""

    name: str
    id: str
    data: Any


def read(text: str) -> list[ReceivedEvent]:
    """Returns all complete events of a stream, without comments."""
    return [
        ReceivedEvent(fields.get("event", "message"), fields["id"], json.loads(fields["data"]))
        for fields in fields_of(text)
    ]


def fields_of(text: str) -> list[dict[str, str]]:
    """Returns the fields of each complete event as the server sent them."""
    events = []
    for block in text.split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name:
                assert name in {"id", "event", "data"}, line
                assert name not in fields, block
                fields[name] = value.removeprefix(" ")
        if fields:
            events.append(fields)
    return events
