"""A killed run that is resumed ends with the weights that it would have had."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training import config
from onward.training.errors import TrainingError
from onward.training.run import fit, train
from tests.training.test_run import ROOT, project

pytestmark = pytest.mark.slow

__all__ = ["project"]

WINDOWS = """
layers = 2
dropout = 0.3
[train]
sampling = "windows"
burn_in = 5
warmup = 20
schedule = "cosine"
weight_decay = 0.01
averaging = 0.9
seed = 3
epochs = 6
"""
STREAMS = """
layers = 2
dropout = 0.3
input_dropout = 0.1
[train]
schedule = "plateau"
patience = 3
seed = 3
epochs = 9
"""
"""Settings with every kind of randomness, and of state that is carried from epoch to epoch."""

KILLED = """
import os, signal, sys
from onward.training.fit.optimisation import AdamW
what, left = sys.argv.pop(1), int(sys.argv.pop(1))

def moment(seen):
    global left
    left -= seen == what
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

step = AdamW.step

def counted(self, rate):
    step(self, rate)
    moment("step")

AdamW.step = counted
def watch(event, arguments):
    if event == "os.rename" and ".training" in str(arguments[0]):
        moment("replace")

sys.addaudithook(watch)

from onward.__main__ import main
main()
"""
"""The command `onward` with a kill -9 at the n-th optimiser step, or before the rename of the n-th checkpoint."""


def killed(folder: Path, what: str, after: int) -> None:
    command = [sys.executable, "-c", KILLED, what, str(after), "train", "tide.toml", "--resume"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


def write(folder: Path, hard: str) -> config.Config:
    file = folder / "tide.toml"
    text = file.read_text().replace("[train]", hard, 1)
    file.write_text(text.replace("seed = 3\nepochs = 3\n", ""))
    return config.read(file)


@pytest.mark.parametrize(
    ("hard", "moments"),
    [
        (WINDOWS, [("step", 1), ("step", 14), ("replace", 2)]),
        (STREAMS, [("step", 14)]),
    ],
    ids=["windows", "streams"],
)
def test_a_killed_run_goes_on_to_the_same_weights(hard: str, moments: list[tuple[str, int]], project: Path) -> None:
    """A run that is killed at its first step, within epochs and while it writes, gives the same graph once resumed."""
    settings = write(project, hard)
    _, whole = train(settings, quiet=True)
    assert not (project / ".training").exists()
    for what, after in moments:
        killed(project, what, after)
    assert settings.checkpoint_file.exists()
    done = CliRunner().invoke(main, ["train", str(project / "tide.toml"), "--resume", "--quiet"])
    assert (done.exit_code, done.stderr) == (0, "")
    resumed = open_bundle(project / "models" / "tide" / "2")
    assert resumed.digest == whole.digest
    assert resumed.manifest.provenance == whole.manifest.provenance
    assert not (project / ".training").exists()
    assert sorted(path.name for path in (project / "models" / "tide").iterdir()) == ["1", "2"]


def test_the_checkpoint_of_another_run_is_refused(project: Path) -> None:
    """Other settings and other data are refused by name, and the checkpoint is kept; without --resume it is ignored."""
    settings = write(project, STREAMS)
    killed(project, "replace", 2)
    before = settings.checkpoint_file.read_bytes()
    faster = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 0.03})})
    with pytest.raises(
        TrainingError, match=r"another run: train\.learning_rate is 0\.03 and was 0\.02; restore the old values, or"
    ):
        train(faster, quiet=True, resume=True)
    data = settings.data_file.read_text()
    settings.data_file.write_text(data.replace("north,0,", "north,0,1", 1))
    with pytest.raises(
        TrainingError, match=r"another run: data\.sha256 is '\w+' and was '\w+'; restore the old values, or"
    ):
        train(settings, quiet=True, resume=True)
    assert settings.checkpoint_file.read_bytes() == before
    settings.data_file.write_text(data)
    done = CliRunner().invoke(main, ["train", str(project / "tide.toml"), "--quiet"])
    assert done.exit_code == 0
    assert done.stderr == (
        f"onward: {settings.checkpoint_file}: a stopped run exists; this run starts anew, --resume would continue it\n"
    )
    assert not (project / ".training").exists()
    _, whole = train(settings, quiet=True)
    assert open_bundle(project / "models" / "tide" / "1").digest == whole.digest


@pytest.mark.parametrize("patience", [1, 9])
def test_a_finished_run_is_not_trained_further(patience: int, project: Path) -> None:
    """A run that is killed between its last epoch and the export is exported as it was, stopped early or not."""
    written = write(project, STREAMS)
    settings = written.model_copy(
        update={"train": written.train.model_copy(update={"patience": patience, "learning_rate": 1.0})}
    )
    whole = fit(settings, quiet=True)
    assert (len(whole.history.train) == 9) == (patience == 9)
    assert whole.history.best < len(whole.history.train) - 1 or patience == 9
    content = settings.checkpoint_file.read_bytes()
    resumed = fit(settings, quiet=True, resume=True)
    assert resumed.history == whole.history
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], tensor)
    assert settings.checkpoint_file.read_bytes() == content
