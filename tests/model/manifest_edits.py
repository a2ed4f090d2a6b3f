"""Changes to a manifest's JSON document, as tests make them."""

from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def put(*path: str | int, to: object) -> Callable[[Document], None]:
    """Sets what is at that path."""

    def change(document: Document) -> None:
        _owner(document, path)[path[-1]] = to

    return change


def drop(*path: str | int) -> Callable[[Document], None]:
    """Takes away what is at that path."""

    def change(document: Document) -> None:
        del _owner(document, path)[path[-1]]

    return change


def _owner(document: Document, path: tuple[str | int, ...]) -> Any:
    owner: Any = document
    for part in path[:-1]:
        owner = owner[part]
    return owner
