"""A worker reuses the memory of earlier batches."""

from pathlib import Path

import pytest

from tests.e2e.server import Server

ROWS, CALLS = 256, 20


def page_faults(pid: int) -> int:
    """Returns the number of minor page faults of the process so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


@pytest.mark.train
def test_a_batch_uses_the_memory_of_the_one_before(tmp_path: Path) -> None:
    """The states, 128 pages in each of several arrays, are not allocated from the system in each call."""
    from tests.helpers import random_bundles  # noqa: PLC0415  (needs the train extra; its graph is too large to record)

    random_bundles.make_bundle(tmp_path / "models", name="wide", layers=2, units=128)
    with Server(tmp_path, ONWARD_WORKERS="1", ONWARD_MODELS=str(tmp_path / "models")) as server:
        (worker,) = server.workers()
        names = [f"s{number}" for number in range(ROWS)]
        call = {"session_ids": names, "inputs": [[0.5]] * ROWS}
        with server.client() as client:
            for name in names:
                client.post("/v1/models/wide/sessions", json={"session_id": name}).raise_for_status()
            for _ in range(3):
                client.post("/v1/steps", json=call).raise_for_status()
            before = page_faults(worker)
            for _ in range(CALLS):
                assert set(client.post("/v1/steps", json=call).raise_for_status().json()["statuses"]) == {200}
            pages = (page_faults(worker) - before) / CALLS
    assert pages < 100, f"{pages} pages a batch"
