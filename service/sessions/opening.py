"""Which store a URI means. A store's library is imported when the store is chosen."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from service.errors import StoreUnavailableError
from service.sessions.store import Store


def open_store(uri: str, *, fsync: bool = False) -> Store:
    """The store that the URI names, by its scheme. Open it after a fork. Raises StoreUnavailableError.

    fsync: each commit of an LMDB store is on disk before it is acknowledged.
    """
    if urlsplit(uri).scheme == "lmdb":
        from service.sessions.lmdb import LmdbStore  # noqa: PLC0415

        return LmdbStore(Path(unquote(urlsplit(uri).path)), fsync=fsync)
    try:
        from service.sessions.redis import RedisStore  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailableError(f"{error}; pip install 'onward[redis]'") from error
    return RedisStore(uri)


def without_secrets(uri: str) -> str:
    """The URI as it may be shown: what stands before the host, and the query, may hold a password."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
