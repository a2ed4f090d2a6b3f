"""The checkpoint from which a killed run is resumed: one file, written whole or not at all.

Owns the file, and the check that it belongs to the run. Knows nothing of what a run's state is, except that it is made
of tensors, numbers, strings, lists and dicts: reading it runs no code.
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

FORMAT = 3
"""The version of the state's layout. It counts up when the names of weights, of the history or of the run change."""

_ADVICE = "start anew without --resume"
_DAMAGE = (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The file of one run. `run` holds, by name, all that the run depends on: its configuration and its data."""

    file: Path
    run: State

    def write(self, state: State) -> None:
        """Replaces the file by one rename, so that a killed run leaves either the last checkpoint or this one.

        Raises TrainingError if the file cannot be written, as on a full disk; the last checkpoint stays.
        """
        content = io.BytesIO()  # a stream of torch's own reports no reason if it cannot be written
        torch.save({"format": FORMAT, "run": self.run, "state": state}, content)
        scratch = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise TrainingError(
                f"{self.file}: cannot be written: {error.strerror}; the last checkpoint, if there is any, stays, and "
                "--resume continues from it"
            ) from error

    def read(self) -> bytes | None:
        """Returns the file's content, None if there is no file. Raises TrainingError."""
        try:
            return self.file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise TrainingError(f"{self.file}: cannot be read: {error.strerror}") from error

    def state(self, content: bytes) -> State:
        """Returns the state in the file's content. Raises TrainingError if it is damaged, or of another run."""
        try:
            damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()  # torch itself does not verify the checksums
            stored = {} if damaged else torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            stored_run, state, version = _flat(stored["run"]), State(stored["state"]), stored.get("format", 1)
        except _DAMAGE as error:
            raise TrainingError(f"{self.file}: not a checkpoint, or a damaged one; {_ADVICE}") from error
        if version != FORMAT:
            raise TrainingError(f"{self.file}: was written by another version of onward; {_ADVICE}")
        run = _flat(self.run)
        if differing := [name for name in sorted(run | stored_run) if run.get(name) != stored_run.get(name)]:
            changes = "; ".join(f"{name} is {run.get(name)!r} and was {stored_run.get(name)!r}" for name in differing)
            raise TrainingError(f"{self.file}: is of another run: {changes}; restore the old values, or {_ADVICE}")
        return state


def remove(file: Path) -> None:
    """Removes the run's folder with all its files, and the folder of all runs if it is empty then."""
    shutil.rmtree(file.parent, ignore_errors=True)
    with contextlib.suppress(OSError):  # it holds another run's folder, or it was never made
        file.parent.parent.rmdir()


def _flat(nested: State, prefix: str = "") -> State:
    flat: State = {}
    for name, value in nested.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
