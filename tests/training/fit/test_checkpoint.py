"""The checkpoint from which a killed run is resumed."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from onward.training.errors import TrainingError
from onward.training.fit import checkpoint as checkpoints
from onward.training.fit.checkpoint import FORMAT, Checkpoint

RUN = {"name": "tide", "train": {"seed": 1, "window": 8}, "data": {"targets": ["a", "b"], "period": None}}


def content(checkpoint: Checkpoint) -> bytes:
    data = checkpoint.read()
    assert data is not None
    return data


def test_a_state_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    """The last written state is restored, of tensors, numbers, strings, lists and dicts; no other file is left."""
    checkpoint = Checkpoint(tmp_path / ".training" / "tide" / "checkpoint.pt", RUN)
    assert checkpoint.read() is None
    checkpoint.write({"weights": torch.zeros(3)})
    state = {
        "weights": torch.tensor([0.1, float("nan")]),
        "losses": [0.1, 1e-300],
        "best": 2**70,
        "by": {1: {"x": "y"}},
    }
    checkpoint.write(state)
    restored = checkpoint.state(content(checkpoint))
    assert restored["weights"].view(torch.int32).tolist() == state["weights"].view(torch.int32).tolist()  # type: ignore[attr-defined]
    assert {**restored, "weights": None} == {**state, "weights": None}
    assert [file.name for file in checkpoint.file.parent.iterdir()] == ["checkpoint.pt"]


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    """The error names every key that differs, with both values; also a key that only one of the runs has."""
    file = tmp_path / "checkpoint.pt"
    Checkpoint(file, RUN).write({})
    checkpoint = Checkpoint(file, {**RUN, "train": {"seed": 2, "clip": 1.0}})
    with pytest.raises(TrainingError) as refused:
        checkpoint.state(content(checkpoint))
    assert str(refused.value) == (
        f"{file}: is of another run: train.clip is 1.0 and was None; train.seed is 2 and was 1; "
        "train.window is None and was 8; restore the old values, or start anew without --resume"
    )


def test_another_format_is_refused(tmp_path: Path) -> None:
    """A checkpoint whose weights have the names of another version is refused, not loaded in part."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", RUN)
    for content_of_version in ({"run": RUN, "state": {}}, {"format": FORMAT + 1, "run": RUN, "state": {}}):
        torch.save(content_of_version, checkpoint.file)
        with pytest.raises(TrainingError, match=r"was written by another version of onward; start anew without"):
            checkpoint.state(content(checkpoint))


class Trap:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "text", "other", "code"])
def test_a_damaged_checkpoint_is_refused(damage: str, tmp_path: Path) -> None:
    """A file that is cut short, changed by a bit or not a checkpoint is refused; and none of its code is run."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", RUN)
    checkpoint.write({"weights": torch.arange(2000.0)})
    good, trap = content(checkpoint), tmp_path / "trapped"
    other_file = tmp_path / "other"
    torch.save([1, 2], other_file)
    torch.save({"run": RUN, "state": Trap(trap)}, tmp_path / "code")
    bad = {
        "cut": good[:-200],
        "bit": good[: len(good) // 2] + bytes([good[len(good) // 2] ^ 1]) + good[len(good) // 2 + 1 :],
        "empty": b"",
        "text": b"weights",
        "other": other_file.read_bytes(),
        "code": (tmp_path / "code").read_bytes(),
    }[damage]
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a checkpoint, or a damaged one; start anew without"):
        checkpoint.state(bad)
    assert not trap.exists()
    pickle.loads(pickle.dumps(Trap(trap)))
    assert trap.exists()  # the trap works when it is unpickled


def test_a_folder_instead_of_a_file_is_refused(tmp_path: Path) -> None:
    """A file that cannot be read is a TrainingError, not a traceback."""
    with pytest.raises(TrainingError, match="cannot be read: Is a directory"):
        Checkpoint(tmp_path, RUN).read()


def test_removal_leaves_other_runs(tmp_path: Path) -> None:
    """Removal deletes the run's folder with the files of killed runs, and the common folder with the last run."""
    files = [tmp_path / ".training" / name / "checkpoint.pt" for name in ("one", "two")]
    for file in files:
        Checkpoint(file, RUN).write({})
    files[0].with_name("checkpoint.pt.123").touch()
    checkpoints.remove(files[0])
    assert [path.name for path in (tmp_path / ".training").iterdir()] == ["two"]
    checkpoints.remove(files[1])
    checkpoints.remove(files[1])
    assert not (tmp_path / ".training").exists()
