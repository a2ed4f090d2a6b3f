"""The bundles that every worker of this service serves: those in the folder at the start or at the last reload.

gunicorn's master reads the files into memory; workers inherit the bytes with the fork, whenever they are started, and
open nothing else. So a change of the folder has no effect before the next reload. This module imports nothing that
starts a thread, because the master calls it before it forks.
"""

import fcntl
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from onward.model.errors import BundleError
from onward.model.repository import BundleFiles, Opened, open_bundles, read_all

log = logging.getLogger("gunicorn.error")

_SUPERSEDED = 1


class DisagreementError(Exception):
    """A worker cannot open a bundle that other workers of the service serve."""


class Catalogue:
    """The bundles of one generation. The master makes it before it forks; each worker calls `open`."""

    def __init__(self, bundles: Sequence[BundleFiles], generation: int = 1) -> None:
        """generation: 1 at the start of the service, increased by each reload."""
        self.bundles, self.generation = bundles, generation
        self._flag = mmap.mmap(-1, 1)  # shared with the workers
        self._refusals = tempfile.TemporaryFile()  # noqa: SIM115  (shared too; the system removes it with its last user)

    def open(self, *, threads: int = 1) -> Opened:
        """The opened models. All workers refuse the bundles that the first worker refuses. Raises DisagreementError."""
        opened = open_bundles(self.bundles, threads=threads)
        agreed = self._agreed(opened.refused)
        refused = {error.folders for error in agreed}
        if differing := [str(error) for error in opened.refused if error.folders not in refused]:
            raise DisagreementError(f"this worker cannot open bundles that other workers serve: {'; '.join(differing)}")
        models = {
            name: served
            for name, versions in opened.models.items()
            if (served := {number: model for number, model in versions.items() if (name, str(number)) not in refused})
        }
        names = ", ".join(f"{name} {' '.join(map(str, sorted(versions)))}" for name, versions in sorted(models.items()))
        log.info("Serves the models of generation %d: %s", self.generation, names or "none")
        return Opened(models, agreed)

    def is_superseded(self) -> bool:
        """True if the service has been reloaded since, so that other workers serve a later generation."""
        return self._flag[0] == _SUPERSEDED

    def supersede(self) -> None:
        """Notifies the workers that serve this catalogue, and closes the master's part of it."""
        self._flag[0] = _SUPERSEDED
        self.close()

    def close(self) -> None:
        self._flag.close()
        self._refusals.close()

    def changes(self, before: "Catalogue") -> list[str]:
        """The differences from the catalogue `before`, a sentence each: `pulse/2 is new`."""
        old, new = ({bundle.folder: bundle for bundle in catalogue.bundles} for catalogue in (before, self))
        found = []
        for folder in sorted(old.keys() | new.keys()):
            if old.get(folder) != new.get(folder):
                what = "is new" if folder not in old else "is gone" if folder not in new else "has changed"
                found.append(f"{folder.parent.name}/{folder.name} {what}")
        return found

    def _agreed(self, refused: list[BundleError]) -> list[BundleError]:
        """The bundles that the first worker refused. The first worker to call this decides."""
        with self._locked():
            file = self._refusals.fileno()
            if text := os.pread(file, os.fstat(file).st_size, 0):
                return [BundleError(Path(file), reason) for file, reason in json.loads(text)]
            refusals = json.dumps([(str(error.file), error.reason) for error in refused])
            os.pwrite(file, refusals.encode(), 0)
        for error in refused:
            log.error("A bundle is refused: %s", error)
        return refused

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Excludes other workers. The lock belongs to the process, not to the descriptor, which all workers share."""
        fcntl.lockf(self._refusals, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._refusals, fcntl.LOCK_UN)


_current: list[Catalogue] = []
"""The catalogue that the next workers inherit; empty before `begin`."""


def begin(root: Path) -> None:
    """Reads the models when the service starts. Raises as `read_all` does."""
    _current[:] = [Catalogue(read_all(root))]


def renew(root: Path) -> None:
    """Reads the models again for new workers. If no bundle can be read, the current catalogue stays."""
    try:
        found = read_all(root)
    except (BundleError, OSError) as error:
        log.error("The models are not reloaded, and the previous ones are served: %s", error)  # noqa: TRY400
        return
    if not found:
        log.error("The models are not reloaded, and the previous ones are served: %s has no bundle", root)
        return
    before = current()
    catalogue = Catalogue(found, before.generation + 1)
    changes = ", ".join(catalogue.changes(before)) or "nothing has changed"
    log.info("Models, generation %d: %s", catalogue.generation, changes)
    _current[:] = [catalogue]
    before.supersede()


def current() -> Catalogue:
    """The catalogue to serve, in the master and in the workers that it forks."""
    (catalogue,) = _current
    return catalogue
