"""An engine with an LMDB store in this process, and sessions of an LSTM 2x128."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.__main__ import Bench
from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore

TENANT, MODEL = "public", "model"


@contextmanager
def local_engine(sessions: int) -> Iterator[Engine]:
    """An engine without housekeeping, with sessions s0, s1, ... of TENANT on MODEL."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Bench(Path(folder), 1).bundle(2, 128)
        engine = Engine(open_all(bundle.parents[1]), LmdbStore(Path(folder) / "store"), Limits())
        engine.start(flush_s=1e6, sweep_s=1e6)
        for number in range(sessions):
            engine.create(TENANT, MODEL, session_id=f"s{number}")
        yield engine
        engine.close()
