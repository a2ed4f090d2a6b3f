"""The folders that a run writes to: whether they can be written, before anything is computed.

Owns the check and its bounds on free space. Knows nothing of what is written.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from onward.training.errors import TrainingError

FREE_BYTES, FREE_BYTES_PER_WEIGHT = 2**24, 64
"""The free space that a run needs, for the report and the manifest, and for each weight.

A checkpoint has four numbers of four bytes for each weight, and the last checkpoint is deleted after the next is
written; the graph has one more number.
"""


def require_writable(folder: Path, weights: int = 0) -> None:
    """Creates a file in the folder and removes it, with all folders that were made for it.

    Raises TrainingError if that fails, or if there is too little space for a network of that many weights.
    """
    needed = FREE_BYTES + FREE_BYTES_PER_WEIGHT * weights
    made = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writable-", dir=folder) as scratch:
            (Path(scratch) / "file").write_bytes(b"\0")
        free = shutil.disk_usage(folder).free
    except FileExistsError as error:
        raise TrainingError(f"{folder}: cannot be written: it is not a folder") from error
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be written: {error.strerror}") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):  # another run has written to it since, or it could not be made
                path.rmdir()
    if free < needed:
        raise TrainingError(
            f"{folder}: {free / 1e6:,.0f} MB are free on this disk, and the run needs {needed / 1e6:,.0f} MB"
        )
