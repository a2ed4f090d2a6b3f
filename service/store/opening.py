"""Which store a URI means. A store's library is imported when the store is chosen."""

import os
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit

from onward.service.errors import StoreUnavailableError
from onward.service.store.contract import RESTORE, Store


def open_store(uri: str, *, fsync: bool = False) -> Store:
    """The store that the URI names, by its scheme. Open it after a fork. Raises StoreUnavailableError.

    fsync: each commit of an LMDB store is on disk before it is acknowledged.
    """
    if urlsplit(uri).scheme == "lmdb":
        from onward.service.store.lmdb import LmdbStore  # noqa: PLC0415

        return LmdbStore(Path(unquote(urlsplit(uri).path)), fsync=fsync)
    try:
        from onward.service.store.redis import RedisStore  # noqa: PLC0415
    except ImportError as error:
        raise StoreUnavailableError(f"{error}; pip install 'onward[redis]'") from error
    return RedisStore(uri)


def probe_lmdb(uri: str) -> None:
    """Opens an LMDB store in a process of its own, which what is damaged may kill; another store is let be.

    Raises StoreUnavailableError where it cannot be opened. Call it before any thread is started: it forks.
    """
    if urlsplit(uri).scheme != "lmdb":
        return
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            open_store(uri).close()
        except StoreUnavailableError as error:
            os.write(writing, str(error.why).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        why = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        why = f"{uri}: opening it ends in {signal.Signals(os.WTERMSIG(status)).name}; {RESTORE}"
    if why:
        raise StoreUnavailableError(why)


def redact_uri(uri: str) -> str:
    """The URI as it may be shown: what stands before the host, and the query, may hold a password."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
