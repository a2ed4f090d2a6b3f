import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.valkey_server import Server


class _FullNamesOnly(MetaPathFinder):
    """Refuses `import model` for `import onward.model`.

    The repository's root is on the path of the tests. A bare name would load a second copy of a module, and a test
    could change or patch that copy in the place of the module that runs.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> None:
        if fullname in {"client", "model", "service", "training"}:
            raise ImportError(f"import onward.{fullname}, not {fullname}")


sys.meta_path.insert(0, _FullNamesOnly())

# the duration of an example depends on the machine
settings.register_profile("onward", settings(), deadline=None)
settings.load_profile("onward")


E2E = Path(__file__).with_name("e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of real servers, which lie in one folder."""
    for item in items:
        if E2E in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Networks this small are faster on one thread, and leave the other cores free."""
    if find_spec("torch") is None:  # an environment without the extra `train`
        yield
        return
    import torch  # noqa: PLC0415

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey server for all tests; each test empties it first."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A cluster of one node, which has all slots and refuses what a cluster refuses."""
    server = Server(tmp_path_factory.mktemp("cluster"), cluster=True)
    yield server
    server.kill()
