"""The models that are served: by name and version, and by the record of a session."""

from collections.abc import Callable, Mapping, Sequence

from onward.model.manifest import BundleError
from onward.model.repository import Opened
from onward.model.runner import StepModel
from onward.model.state import State, StateError
from onward.service.errors import (
    DamagedRecordError,
    ModelGoneError,
    OnwardError,
    ReloadedError,
    UnknownModelError,
    UnknownVersionError,
)
from onward.service.store.record import BundleRef, Record


class Models:
    def __init__(self, opened: Opened, is_superseded: Callable[[], bool] = bool) -> None:
        """is_superseded: whether other workers serve models that were read later, so that these ones are not all."""
        self.by_name: Mapping[str, Mapping[int, StepModel]] = opened.models
        self.refused: Sequence[BundleError] = opened.refused
        self._is_superseded = is_superseded

    def named(self, name: str, version: int | None = None) -> StepModel:
        """That version, the highest if None. Raises UnknownModelError, UnknownVersionError, ReloadedError."""
        versions = self.by_name.get(name)
        if versions is None:
            raise self._missing(UnknownModelError(name, sorted(self.by_name)))
        if version is None:
            version = max(versions)
        if version not in versions:
            refused = self._why_refused(name, version)
            raise self._missing(UnknownVersionError(name, version, sorted(versions), refused))
        return versions[version]

    def of(self, record: Record) -> StepModel:
        """The model that the session runs on. Raises ModelGoneError, ReloadedError."""
        ref = record.ref
        model = self.by_name.get(ref.model, {}).get(ref.version)
        if model is None:
            refused = self._why_refused(ref.model, ref.version)
            why = f"whose bundle was refused ({refused})" if refused else "which is not served here"
            raise self._missing(ModelGoneError(ref.model, ref.version, why))
        if ref_of(model) != ref:
            why = "whose bundle was replaced by another under the same version"
            raise self._missing(ModelGoneError(ref.model, ref.version, why))
        return model

    def unserved(self, live: Mapping[tuple[str, int], int]) -> dict[str, int]:
        """Of living sessions, counted by model and version, those whose version is not served: `{"pulse/1": 5}`."""
        return {
            f"{name}/{version}": sessions
            for (name, version), sessions in sorted(live.items())
            if sessions and version not in self.by_name.get(name, {})
        }

    def _why_refused(self, name: str, version: int) -> str | None:
        return next((error.reason for error in self.refused if error.place == (name, str(version))), None)

    def _missing(self, error: OnwardError) -> OnwardError:
        """A worker with later models may well have what this one has not."""
        return ReloadedError() if self._is_superseded() else error


def ref_of(model: StepModel) -> BundleRef:
    return BundleRef(model.manifest.name, model.manifest.version, model.digest)


def state_of(model: StepModel, record: Record) -> State:
    """(1,) the state that the record holds. Raises DamagedRecordError."""
    try:
        return model.layout.stack([record.state])
    except StateError as error:
        raise DamagedRecordError(str(error)) from error
