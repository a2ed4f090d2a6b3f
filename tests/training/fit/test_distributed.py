"""Two real processes, started by torchrun on the loopback interface, train a network together."""

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
folder = Path.cwd().resolve()


def watch(event, arguments):
    if event == "os.rename" and Path(os.fsdecode(arguments[1])).resolve().is_relative_to(folder):
        written.append(str(arguments[1]))  # in other folders Python stores the modules that it compiles


sys.addaudithook(watch)
for file in sys.argv[1:]:
    written.clear()
    sys.stderr = io.StringIO()
    try:
        fitted = fit(config.read(Path(file)), quiet=False)
        result = {"losses": [fitted.history.train, fitted.history.validation, fitted.history.gradient_mean],
                "weights": fitted.network.state_dict(),
                "written": list(written), "shown": sys.stderr.getvalue()}
    except TrainingError as error:
        result = {"error": str(error)}
    torch.save(result, f"{file}.{os.environ['RANK']}")
torch.distributed.destroy_process_group()
"""


def torchrun(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs the command in each of two processes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run([*launch, *command], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


KINDS = {
    "streams": (
        "batch = 4",
        "batch = 5",
    ),  # three streams for the first process, two for the second; or a single stream and none
    "windows": ("batch = 4", 'batch = 3\nsampling = "windows"\nburn_in = 4\nschedule = "cosine"\nweight_decay = 0.1'),
    "single": ("batch = 4", 'batch = 1\nsampling = "windows"'),  # no stream for the second process
    "diverging": ("learning_rate = 0.02", "learning_rate = 1e30"),
}


def test_two_processes_train_as_a_single_one(project: Path) -> None:
    """Losses, gradients and weights agree to rounding with a single process, and to the bit between the two.

    Only the first process shows progress and writes.
    """
    for kind, (old, new) in KINDS.items():
        text = CONFIG.replace(old, new)
        (project / kind).write_text(text.replace('cell = "gru"', 'cell = "rnn_relu"') if kind == "diverging" else text)
    (project / "all.py").write_text(ALL)
    done = torchrun("all.py", *KINDS, cwd=project)
    assert done.returncode == 0, done.stderr
    for kind in KINDS:
        results: list[Any] = [torch.load(project / f"{kind}.{rank}", weights_only=True) for rank in (0, 1)]
        if kind == "diverging":
            assert results[0] == results[1]
            assert "the loss is" in results[0]["error"] or "the gradient's norm is" in results[0]["error"]
            continue
        single = fit(config.read(project / kind), quiet=True)
        for name, tensor in single.network.state_dict().items():
            assert torch.equal(results[0]["weights"][name], results[1]["weights"][name])
            torch.testing.assert_close(results[0]["weights"][name], tensor, rtol=1e-3, atol=1e-5)
        assert results[0]["losses"] == results[1]["losses"]
        assert [(len(result["written"]), "step/s" in result["shown"]) for result in results] == [(3, True), (0, False)]
        losses = [single.history.train, single.history.validation, single.history.gradient_mean]
        for got, expected in zip(results[0]["losses"], losses, strict=True):
            assert got == pytest.approx(expected, rel=1e-5)


def test_two_processes_publish_a_single_bundle(project: Path) -> None:
    """Two processes resume a single process' checkpoint; only the first prints, and publishes the same bundle."""
    _, whole = train(config.read(project / "tide.toml"), quiet=True)
    killed(project, "step", 8)
    done = torchrun("-m", "onward", "train", "tide.toml", "--resume", cwd=project)
    assert (done.returncode, done.stderr.count("data: tide.csv")) == (0, 1)
    assert done.stdout.count("one step ahead") == 1
    assert not (project / ".training").exists()
    assert sorted(path.name for path in (project / "models" / "tide").iterdir()) == ["1", "2"]
    shared = open_bundle(project / "models" / "tide" / "2")
    provenance: list[Any] = [model.manifest.provenance for model in (whole, shared)]
    for part in ("train", "validation"):
        assert provenance[1]["losses"][part] == pytest.approx(provenance[0]["losses"][part], rel=1e-5)
    graphs = [onnx.load(str(project / "models" / "tide" / version / "model.onnx")).graph for version in "12"]
    for left_tensor, right_tensor in zip(*(graph.initializer for graph in graphs), strict=True):
        left, right = (
            torch.from_numpy(onnx.numpy_helper.to_array(part).copy()) for part in (left_tensor, right_tensor)
        )
        torch.testing.assert_close(right, left, rtol=1e-3, atol=1e-5)
