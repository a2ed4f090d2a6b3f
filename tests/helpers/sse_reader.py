"""Server-Sent Events, read as the specification has it: fields to the first colon, events to an empty line."""

import json
from typing import Any, NamedTuple


class Told(NamedTuple):
    """One event; `name` is `message` where none was sent, as for a browser."""

    name: str
    id: str
    data: Any


def read(text: str) -> list[Told]:
    """All whole events of a stream; comments are passed over."""
    return [Told(one.get("event", "message"), one["id"], json.loads(one["data"])) for one in fields_of(text)]


def fields_of(text: str) -> list[dict[str, str]]:
    """The same, by the fields as they were sent."""
    found = []
    for block in text.split("\n\n")[:-1]:
        fields: dict[str, str] = {}
        for line in block.split("\n"):
            name, _, value = line.partition(":")
            if name:
                assert name in {"id", "event", "data"}, line
                assert name not in fields, block
                fields[name] = value.removeprefix(" ")
        if fields:
            found.append(fields)
    return found
