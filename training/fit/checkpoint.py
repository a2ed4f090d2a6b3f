"""What a run needs in order to go on after it was killed: one file, written whole or not at all.

Owns the file, and who may go on with it. Knows nothing of what is in a run's state, which is made of tensors, numbers,
texts, lists and dicts: reading it runs no code.
"""

import contextlib
import io
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onward.training.errors import TrainingError

State = dict[str, Any]

_ANEW = "start anew without --resume"
_DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one run, of which `run` says by name all that it depends on."""

    file: Path
    run: State

    def write(self, state: State) -> None:
        """In place of the last one, in one move: whoever is killed leaves that or this."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        with scratch.open("wb") as file:
            torch.save({"run": self.run, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self.file)

    def read(self) -> bytes | None:
        """The file as it is, None where there is none. Raises TrainingError."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainingError(f"{self.file}: cannot be read: {error.strerror}") from error

    def state(self, content: bytes) -> State:
        """The state in the file's content. Raises TrainingError where it is damaged or another run's."""
        try:
            damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()  # torch itself leaves the checksums unread
            kept = {} if damaged else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            was, state = _flat(kept["run"]), State(kept["state"])
        except _DAMAGE as error:
            raise TrainingError(f"{self.file}: no checkpoint, or a damaged one; {_ANEW}") from error
        now = _flat(self.run)
        if other := [name for name in sorted(now | was) if now.get(name) != was.get(name)]:
            told = "; ".join(f"{name} is {now.get(name)!r} and was {was.get(name)!r}" for name in other)
            raise TrainingError(f"{self.file}: is of another run: {told}; put it back, or {_ANEW}")
        return state


def remove(file: Path) -> None:
    """The run's folder with all that is in it, and the folder of all runs if it was the last."""
    shutil.rmtree(file.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run's is in it, or it was never made
        file.parent.parent.rmdir()


def _flat(told: State, prefix: str = "") -> State:
    flat: State = {}
    for name, value in told.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
