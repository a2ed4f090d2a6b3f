from collections.abc import Iterator

import pytest

from onward.client.sync_client import Client
from tests.client.both_clients import Twin
from tests.e2e.server import Server

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with two workers for the tests of a module."""
    with Server(tmp_path_factory.mktemp("service"), ONWARD_SECRET=SECRET, ONWARD_HISTORY="100") as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    """Both kinds of client, in turn."""
    made = Twin(request.param)
    yield made
    made.loop.close()


@pytest.fixture
def client(server: Server, twin: Twin) -> Iterator[Client]:
    with twin(server.url) as connected:
        yield connected
