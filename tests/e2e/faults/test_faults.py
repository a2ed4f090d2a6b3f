"""Acknowledged steps are neither lost nor applied twice, whatever fails. FAULTS_S sets how long the campaign runs."""

import os
from pathlib import Path

import pytest

from tests.e2e.faults.campaign import campaign

SECONDS = float(os.environ.get("FAULTS_S", "30"))


@pytest.mark.timeout(SECONDS + 240)
@pytest.mark.parametrize("store", ["lmdb", "redis"])
def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path, store: str) -> None:
    """Sixteen clients check every response while one fault after another is caused."""
    report = campaign(tmp_path, store, SECONDS, seed=5)
    print(report)  # noqa: T201  (shown with pytest -s)
    assert (report.lost, report.doubled, report.strayed, report.wrong) == (0, 0, 0, []), report
    assert not [error for error in report.errors if error.startswith("500")], report
    assert report.faults["upload with a length cut"] > 0
    assert report.acknowledged > 20 * SECONDS, report
    assert report.longest_unavailability_s < 30, report
