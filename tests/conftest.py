import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
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

# the time of an example depends on the machine
settings.register_profile("onward", settings(), deadline=None)
settings.load_profile("onward")


TESTS = Path(__file__).parent
MARKED_FOLDERS = {"e2e": ("e2e",), "train": ("training", "model")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks all tests of a folder, so that none of them can be forgotten."""
    for item in items:
        for marker, folders in MARKED_FOLDERS.items():
            if item.path.relative_to(TESTS).parts[0] in folders:
                item.add_marker(marker)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey server for all tests; each test empties it first."""
    server = Server(tmp_path_factory.mktemp("valkey"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Valkey cluster of one node that has all slots; it refuses the commands that a larger cluster would refuse."""
    server = Server(tmp_path_factory.mktemp("cluster"), cluster=True)
    yield server
    server.kill()
