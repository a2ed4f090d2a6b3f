"""A choice of the preset: the value of a key of the configuration, and the reason for it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Document = dict[str, dict[str, Any]]
"""The sections of a configuration: values by section and key."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The value of a key such as `data.period`, and why it was chosen, in words."""

    key: str
    value: Any
    reason: str


def document(choices: Iterable[Choice]) -> Document:
    """Returns the sections that the choices make; a later choice of a key replaces an earlier one."""
    sections: Document = {}
    for choice in choices:
        section, _, name = choice.key.partition(".")
        sections.setdefault(section, {})[name] = choice.value
    return sections


def merged(choices: Iterable[Choice], settings: Mapping[str, Any], reason: str) -> list[Choice]:
    """Returns the choices with other values for some keys."""
    result = {choice.key: choice for choice in choices}
    for key, value in settings.items():
        result[key] = Choice(key, value, reason)
    return list(result.values())
