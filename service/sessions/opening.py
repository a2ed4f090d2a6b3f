"""Which store a URI means. A store's library is imported when the store is chosen."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.sessions.store import Store


def open_store(uri: str) -> Store:
    """The store that the URI names, by its scheme. Open it after a fork. Raises StoreUnavailableError."""
    from service.sessions.lmdb import LmdbStore  # noqa: PLC0415

    return LmdbStore(Path(unquote(urlsplit(uri).path)))
