"""The folder of metric files that the workers of a service share, so that any worker can report the sum.

Owns the folder's name and removal, which files each worker writes, and the removal of folders that killed services
left. Kernel locks tell which services are alive: a lock ends with its process, however the process ends. A process id
would not do, because it is used again later and is the same in different containers. This module imports nothing that
starts a thread, because gunicorn's master calls it before it forks.
"""

import fcntl
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The environment variable in which prometheus-client finds the folder."""
_PREFIX, _UNFINISHED, _ALIVE = "onward-metrics-", ".onward-metrics-", "alive"


def begin(parent: str | None) -> None:
    """Makes the folder of this process and its workers, and removes the folders that killed services left.

    A service is alive until its last worker has ended too. parent: the folder in which it is made; None is the system's
    folder for temporary files.
    """
    parent_folder = Path(parent or tempfile.gettempdir())
    for left in parent_folder.glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    made = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=parent_folder))
    _locked(made / _ALIVE)  # the lock lasts until this process and its workers end
    folder = parent_folder / made.name.removeprefix(".")  # from here on other services see it
    made.rename(folder)
    os.environ[VARIABLE] = str(folder)


def end() -> None:
    """Removes this process's folder."""
    shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)


def worker_index() -> int:
    """The number of the files that this worker writes until it ends: the lowest that no other worker uses.

    A later worker continues the counts in the files of an ended one. So there are never more files than workers at a
    time, and no count is lost.
    """
    return next(index for index in count() if _locked(Path(os.environ[VARIABLE]) / f"{index}.lock"))


def _remove_if_dead(folder: Path) -> None:
    try:
        dead = (folder / _ALIVE).exists() and _locked(folder / _ALIVE, keep=False)
    except OSError:
        return  # it belongs to another user, or was just removed
    if dead:
        shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, *, keep: bool = True) -> bool:
    """True if no other process has the file's lock. keep: this process takes it until it ends. Raises OSError."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        keep = False
        return False
    finally:
        if not keep:
            os.close(opened)
    return True
