"""Opening of the store that a URI names. A store's library is imported only if the store is used."""

import os
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit

from onward.service.errors import StoreUnavailableError
from onward.service.store.contract import RESTORE, Store


def open_store(uri: str, *, fsync: bool = False) -> Store:
    """Returns the store that the URI's scheme names. Call it after a fork. Raises StoreUnavailableError.

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
    """Opens an LMDB store in a child process, which a damaged file may kill; does nothing for another store.

    Raises StoreUnavailableError if the store cannot be opened. Call it before any thread is started, as it forks.
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
    """Returns the URI without user, password and query, any of which may hold a secret, for display."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
