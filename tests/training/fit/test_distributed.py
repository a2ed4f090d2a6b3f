"""Two real processes, found by torchrun on this machine's loopback, that train one network."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from onward.model.repository import open_bundle
from onward.training import config
from onward.training.run import fit, train
from tests.training.fit.test_resume import killed
from tests.training.test_run import CONFIG, ROOT, project

__all__ = ["project"]

pytestmark = pytest.mark.slow

ALL = """
import io, os, sys, torch
from pathlib import Path
from onward.training import config
from onward.training.errors import TrainingError
from onward.training.run import fit

torch.distributed.init_process_group("gloo")
written = []
here = Path.cwd().resolve()


def look(event, told):
    if event == "os.rename" and Path(os.fsdecode(told[1])).resolve().is_relative_to(here):
        written.append(str(told[1]))  # elsewhere Python keeps what it has compiled, if it has not before


sys.addaudithook(look)
for file in sys.argv[1:]:
    written.clear()
    sys.stderr = io.StringIO()
    try:
        fitted = fit(config.read(Path(file)), quiet=False)
        told = {"losses": [fitted.history.train, fitted.history.validation, fitted.history.gradient_mean],
                "weights": fitted.network.state_dict(),
                "written": list(written), "shown": sys.stderr.getvalue()}
    except TrainingError as error:
        told = {"error": str(error)}
    torch.save(told, f"{file}.{os.environ['RANK']}")
torch.distributed.destroy_process_group()
"""


def torchrun(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in each of two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launch, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


KINDS = {
    "streams": ("batch = 4", "batch = 5"),  # three streams for the one, two for the other, or one and none
    "windows": ("batch = 4", 'batch = 3\nsampling = "windows"\nburn_in = 4\nschedule = "cosine"\nweight_decay = 0.1'),
    "single": ("batch = 4", 'batch = 1\nsampling = "windows"'),  # nothing for the second
    "diverging": ("learning_rate = 0.02", "learning_rate = 1e30"),
}


def test_two_processes_do_what_one_does(project: Path) -> None:
    """The same losses, gradients and weights to rounding, both to the bit; the first alone shows and writes."""
    for kind, (old, new) in KINDS.items():
        text = CONFIG.replace(old, new)
        (project / kind).write_text(text.replace('cell = "gru"', 'cell = "rnn_relu"') if kind == "diverging" else text)
    (project / "all.py").write_text(ALL)
    done = torchrun("all.py", *KINDS, cwd=project)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        told: list[Any] = [torch.load(project / f"{kind}.{rank}", weights_only=True) for rank in (0, 1)]
        if kind == "diverging":
            assert told[0] == told[1]
            assert "the loss is" in told[0]["error"] or "the gradient's norm is" in told[0]["error"]
            continue
        one = fit(config.read(project / kind), quiet=True)
        for name, tensor in one.network.state_dict().items():
            assert torch.equal(told[0]["weights"][name], told[1]["weights"][name])
            torch.testing.assert_close(told[0]["weights"][name], tensor, rtol=1e-3, atol=1e-5)
        assert told[0]["losses"] == told[1]["losses"]
        assert [(len(one["written"]), "step/s" in one["shown"]) for one in told] == [(3, True), (0, False)]
        mine = [one.history.train, one.history.validation, one.history.gradient_mean]
        for got, expected in zip(told[0]["losses"], mine, strict=True):
            assert got == pytest.approx(expected, rel=1e-5)


def test_two_processes_end_in_one_bundle(project: Path) -> None:
    """They go on from one process' checkpoint; the first alone speaks, and publishes what one would have."""
    _, whole = train(config.read(project / "tide.toml"), quiet=True)
    killed(project, "step", 8)
    done = torchrun("-m", "onward", "train", "tide.toml", "--resume", cwd=project)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("one step ahead") == 1
    assert not (project / ".training").exists()
    assert sorted(path.name for path in (project / "models" / "tide").iterdir()) == ["1", "2"]
    shared = open_bundle(project / "models" / "tide" / "2")
    told: list[Any] = [model.manifest.provenance for model in (whole, shared)]
    for part in ("train", "validation"):
        assert told[1]["losses"][part] == pytest.approx(told[0]["losses"][part], rel=1e-5)
    graphs = [onnx.load(str(project / "models" / "tide" / version / "model.onnx")).graph for version in "12"]
    for one, two in zip(*(graph.initializer for graph in graphs), strict=True):
        left, right = (torch.from_numpy(onnx.numpy_helper.to_array(part).copy()) for part in (one, two))
        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-5)
