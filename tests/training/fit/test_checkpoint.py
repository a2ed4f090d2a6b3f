"""The file that a killed run goes on from."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from onward.training.errors import TrainingError
from onward.training.fit import checkpoint
from onward.training.fit.checkpoint import Checkpoint

RUN = {"name": "tide", "train": {"seed": 1, "window": 8}, "data": {"targets": ["a", "b"], "period": None}}


def content(kept: Checkpoint) -> bytes:
    found = kept.read()
    assert found is not None
    return found


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    """Tensors, numbers, texts, lists and dicts; the last state that was written, and one file alone."""
    kept = Checkpoint(tmp_path / ".training" / "tide" / "checkpoint.pt", RUN)
    assert kept.read() is None
    kept.write({"weights": torch.zeros(3)})
    state = {
        "weights": torch.tensor([0.1, float("nan")]),
        "losses": [0.1, 1e-300],
        "best": 2**70,
        "by": {1: {"x": "y"}},
    }
    kept.write(state)
    again = kept.state(content(kept))
    assert again["weights"].view(torch.int32).tolist() == state["weights"].view(torch.int32).tolist()  # type: ignore[attr-defined]
    assert {**again, "weights": None} == {**state, "weights": None}
    assert [file.name for file in kept.file.parent.iterdir()] == ["checkpoint.pt"]


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    """Every key that differs is said, with what it is and was; so is one that only one of them has."""
    file = tmp_path / "checkpoint.pt"
    Checkpoint(file, RUN).write({})
    other = Checkpoint(file, {**RUN, "train": {"seed": 2, "clip": 1.0}})
    with pytest.raises(TrainingError) as refused:
        other.state(content(other))
    assert str(refused.value) == (
        f"{file}: is of another run: train.clip is 1.0 and was None; train.seed is 2 and was 1; "
        "train.window is None and was 8; restore the old values, or start anew without --resume"
    )


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text", "other", "code"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    """A file that is cut short, changed by a bit or something else is said to be so; and none of its code is run."""
    kept = Checkpoint(tmp_path / "checkpoint.pt", RUN)
    kept.write({"weights": torch.arange(2000.0)})
    good, trap = content(kept), tmp_path / "trapped"
    other = tmp_path / "other"
    torch.save([1, 2], other)
    torch.save({"run": RUN, "state": Trap(trap)}, tmp_path / "code")
    bad = {
        "cut": good[:-200],
        "bit": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
        "empty": b"",
        "text": b"weights",
        "other": other.read_bytes(),
        "code": (tmp_path / "code").read_bytes(),
    }[damage]
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint, or a damaged one; start anew without"):
        kept.state(bad)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # it would have sprung


def test_a_folder_in_its_place_is_said(tmp_path: Path) -> None:
    """What cannot be read is the run's own error, not a traceback."""
    with pytest.raises(TrainingError, match="cannot be read: Is a directory"):
        Checkpoint(tmp_path, RUN).read()


def test_removal_leaves_other_runs(tmp_path: Path) -> None:
    """A finished run takes its own folder away with what kills left in it, and the common one with the last run."""
    files = [tmp_path / ".training" / name / "checkpoint.pt" for name in ("one", "two")]
    for file in files:
        Checkpoint(file, RUN).write({})
    files[0].with_name("checkpoint.pt.123").touch()
    checkpoint.remove(files[0])
    assert [path.name for path in (tmp_path / ".training").iterdir()] == ["two"]
    checkpoint.remove(files[1])
    checkpoint.remove(files[1])
    assert not (tmp_path / ".training").exists()
