"""The folder in which a service's workers count, for any of them to add up: whose it is, and who writes which files.

Owns its name, its end, and what of a killed service is left for the next to remove. Locks of the kernel say who is
alive: they end with their process, however it ends, and unlike its number are nobody else's later, nor the same in
each container. Imports nothing that starts a thread, as gunicorn's master calls it before it forks.
"""

import fcntl
import os
import shutil
import tempfile
from itertools import count
from pathlib import Path

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Of the environment, where prometheus-client finds the folder."""
_PREFIX, _UNFINISHED, _ALIVE = "onward-metrics-", ".onward-metrics-", "alive"


def begin(parent: str | None) -> None:
    """Makes this process's folder, for it and the workers that it forks, and removes what killed services left.

    One counts as alive until its last worker has ended too. parent: None is the system's for temporary files.
    """
    place = Path(parent or tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        _remove_if_dead(left)
    made = Path(tempfile.mkdtemp(prefix=f"{_UNFINISHED}{os.getpid()}-", dir=place))
    _locked(made / _ALIVE)  # held, by workers too, until the process ends
    folder = place / made.name.removeprefix(".")  # only now may others look at it
    made.rename(folder)
    os.environ[VARIABLE] = str(folder)


def end() -> None:
    """Removes this process's folder."""
    shutil.rmtree(os.environ[VARIABLE], ignore_errors=True)


def place() -> int:
    """Which files in the folder this worker writes, until it ends: the first that no other does.

    Whoever comes after it counts on in them, so that there are never more than workers at a time, and none is lost.
    """
    return next(one for one in count() if _locked(Path(os.environ[VARIABLE]) / f"{one}.lock"))


def _remove_if_dead(folder: Path) -> None:
    try:
        dead = (folder / _ALIVE).exists() and _locked(folder / _ALIVE, keep=False)
    except OSError:
        return  # another user's, or just removed
    if dead:
        shutil.rmtree(folder, ignore_errors=True)


def _locked(path: Path, *, keep: bool = True) -> bool:
    """Whether nobody else has the file's lock; `keep`: it is this process's until it ends. Raises OSError."""
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
