"""What a terminal shows of a run, and nothing else does."""

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


def shown(monkeypatch: pytest.MonkeyPatch, kept: Checkpoint, *, quiet: bool | None, terminal: bool) -> str:
    """What one fit, that goes on from `kept`, writes to a standard error of 200 columns, or to a pipe."""
    reading, writing = pty.openpty() if terminal else os.pipe()
    if terminal:
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    with os.fdopen(writing, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        told = settings(epochs=3 if kept.file.exists() else 2, window=8)
        training_loop.fit(make_network(), [series(noise(60).numpy())], told, quiet=quiet, checkpoint=kept, resume=True)
        monkeypatch.undo()
        print(".", file=stderr)  # so that there is something to read
    with os.fdopen(reading, "rb") as screen:
        return b"".join(iter(screen.read1, b"") if not terminal else [screen.read1(65536)]).decode()


def test_a_terminal_shows_how_far_and_how_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps done of all, those of a resumed run counted, speed, time left, losses and the gradient's norm."""
    kept = Checkpoint(tmp_path / "checkpoint.pt", {})
    first = shown(monkeypatch, kept, quiet=None, terminal=True)
    assert re.search(r" 12/12 \[\d\d:\d\d<\d\d:\d\d, +\S+step/s, epoch=2, ", first)
    history = torch.load(kept.file, weights_only=True)["state"]["history"]
    train, mean, largest, validation = (
        history[part][1] for part in ("train", "gradient_mean", "gradient_largest", "validation")
    )
    assert f"train={train:.4f}, gradient={mean:.3g} (largest {largest:.3g}), validation={validation:.4f}]" in first
    second = shown(monkeypatch, kept, quiet=None, terminal=True)
    assert " 18/18 [" in second
    assert " 0/" not in second


@pytest.mark.parametrize(("quiet", "terminal"), [(True, True), (None, False)])
def test_where_nobody_looks_nothing_is_shown(
    quiet: bool | None, terminal: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Told to be quiet, or without a terminal, a run writes nothing."""
    kept = Checkpoint(tmp_path / "checkpoint.pt", {})
    assert shown(monkeypatch, kept, quiet=quiet, terminal=terminal).strip() == "."


def test_the_time_left_follows_the_epochs() -> None:
    """Where an epoch has more or fewer steps than the one before, those that remain are taken to be like it."""
    with open(os.devnull, "w") as nowhere, pytest.MonkeyPatch.context() as patch:  # noqa: PTH123
        patch.setattr(sys, "stderr", nowhere)
        with Progress(3, 10, disable=False) as progress:
            progress.begin_epoch(1, 4)
            assert progress._bar.total == 10 + 2 * 4
            for _ in range(4):
                progress.step(1.0, 1.0)
            progress.begin_epoch(2, 5)
            assert progress._bar.total == 14 + 5
