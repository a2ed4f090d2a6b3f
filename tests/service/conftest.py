"""An engine in process, over the models that come with Onward, with a clock that the test sets."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from onward.model.repository import open_all
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore
from tests.helpers.reference_loop import ZOO


class Clock:
    """A clock in seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> LmdbStore:
    """The store of the engine."""
    return LmdbStore(tmp_path)


@pytest.fixture
def engine(store: LmdbStore, clock: Clock) -> Iterator[Engine]:
    started = Engine(open_all(ZOO), store, Limits(), clock=clock, monotonic=clock)
    started.start(flush_s=1000, sweep_s=1000)
    yield started
    started.close()
