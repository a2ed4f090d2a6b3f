"""Acknowledged steps are neither lost nor doubled, whatever fails. FAULTS_S makes it longer."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.e2e.faults.campaign import campaign

SECONDS = float(os.environ.get("FAULTS_S", "30"))
STORES = ("lmdb", "redis")


@pytest.mark.timeout(SECONDS + 300)
def test_nothing_acknowledged_is_lost_or_doubled(tmp_path: Path) -> None:
    """Under load from 16 clients that check every answer, while one thing after another fails; both stores at once."""
    for store in STORES:
        (tmp_path / store).mkdir()
    with ProcessPoolExecutor(len(STORES), multiprocessing.get_context("spawn")) as pool:
        reports = list(pool.map(campaign, [tmp_path / store for store in STORES], STORES, [SECONDS] * 2, [5, 5]))
    for report in reports:
        print(report)  # noqa: T201  (for whoever asks pytest for it)
        assert (report.lost, report.doubled, report.wrong) == (0, 0, []), report
        assert not [error for error in report.errors if error.startswith("500")], report
        assert report.acknowledged > 10 * SECONDS, report
        assert report.longest_unavailability_s < 90, report  # a stop and a start, on a busy machine
