"""The sync client is generated from the async client."""

import pytest

from tests.contracts.sync_client import GENERATED, generated
from tests.helpers.reference_loop import ROOT


@pytest.mark.parametrize("path", GENERATED)
def test_the_sync_client_is_up_to_date(path: str) -> None:
    """After a change to the async client, `python -m tests.contracts.sync_client` generates the sync client again."""
    assert (ROOT / path).read_text() == generated(path)
