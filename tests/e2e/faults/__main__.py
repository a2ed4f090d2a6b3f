"""Runs a longer campaign than the test suite does."""

import argparse
import tempfile
from pathlib import Path

from tests.e2e.faults.campaign import campaign

parser = argparse.ArgumentParser(prog="python -m tests.e2e.faults", description=__doc__)
parser.add_argument("--store", choices=["lmdb", "redis"], default="lmdb")
parser.add_argument("--seconds", type=float, default=600)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
with tempfile.TemporaryDirectory() as folder:
    report = campaign(Path(folder), options.store, options.seconds, options.seed)
print(report)  # noqa: T201
raise SystemExit(report.lost + report.doubled + report.strayed + len(report.wrong) > 0)
