from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.valkey import Server

# how long an example takes is the machine's
settings.register_profile("onward", settings(), deadline=None)
settings.load_profile("onward")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, and leave the machine to others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests; each empties it first."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of one node, which has all slots, and refuses what a cluster refuses."""
    server = Server(tmp_path_factory.mktemp("cluster"), cluster=True)
    yield server
    server.kill()
