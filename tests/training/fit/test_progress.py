"""The progress bar of a run, on terminals only."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path

import pytest
import torch

from onward.training.fit import training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.fit.progress import Progress
from tests.helpers.random_bundles import make_network
from tests.training.fit.test_training_loop import noise, series, settings


def screen_of(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, *, quiet: bool | None, terminal: bool) -> str:
    """Returns what a fit resumed from the checkpoint writes to a terminal of 200 columns, or to a pipe."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    with os.fdopen(writer, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        run_settings = settings(epochs=3 if checkpoint.file.exists() else 2, window=8)
        training_loop.fit(
            make_network(), [series(noise(60).numpy())], run_settings, quiet=quiet, checkpoint=checkpoint, resume=True
        )
        monkeypatch.undo()
        print(".", file=stderr)  # so that there is something to read
    with os.fdopen(reader, "rb") as screen:
        return b"".join(iter(screen.read1, b"") if not terminal else [screen.read1(65536)]).decode()


def test_a_terminal_shows_progress_and_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bar shows steps done of all, those before a resume included, speed, time left, losses and gradient norm."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {})
    first = screen_of(monkeypatch, checkpoint, quiet=None, terminal=True)
    assert re.search(r" 12/12 \[\d\d:\d\d<\d\d:\d\d, +\S+step/s, epoch=2, ", first)
    history = torch.load(checkpoint.file, weights_only=True)["state"]["history"]
    train, mean, largest, validation = (
        history[part][1] for part in ("train", "gradient_mean", "gradient_largest", "validation")
    )
    assert f"train={train:.4f}, gradient={mean:.3g} (largest {largest:.3g}), validation={validation:.4f}]" in first
    second = screen_of(monkeypatch, checkpoint, quiet=None, terminal=True)
    assert " 18/18 [" in second
    assert " 0/" not in second


@pytest.mark.parametrize(("quiet", "terminal"), [(True, True), (None, False)])
def test_quiet_or_without_a_terminal_nothing_is_shown(
    quiet: bool | None, terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A quiet run, or one without a terminal, writes nothing."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {})
    assert screen_of(monkeypatch, checkpoint, quiet=quiet, terminal=terminal).strip() == "."


def test_the_time_left_follows_the_epochs() -> None:
    """The remaining epochs are assumed to have as many steps as the current one."""
    with open(os.devnull, "w") as nowhere, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stderr", nowhere)
        with Progress(3, 10, disable=False) as progress:
            progress.begin_epoch(1, 4)
            assert progress._bar.total == 10 + 2 * 4
            for _ in range(4):
                progress.step(1.0, 1.0)
            progress.begin_epoch(2, 5)
            assert progress._bar.total == 14 + 5
