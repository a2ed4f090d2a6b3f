"""The served models, found by name and version, or by the record of a session."""

from collections.abc import Callable, Mapping, Sequence

from onward.model.errors import BundleError
from onward.model.repository import Opened
from onward.model.runner import StepModel
from onward.model.state import State, StateError
from onward.service.errors import (
    DamagedRecordError,
    ModelGoneError,
    ReloadedError,
    ServiceError,
    UnknownModelError,
    UnknownVersionError,
)
from onward.service.store.record import BundleRef, Record


class Models:
    def __init__(self, opened: Opened, is_superseded: Callable[[], bool] = bool) -> None:
        """is_superseded: returns whether other workers serve models that were opened later, so that some may be missing
        here.
        """
        self.by_name: Mapping[str, Mapping[int, StepModel]] = opened.models
        self.refused: Sequence[BundleError] = opened.refused
        self._is_superseded = is_superseded

    def named(self, name: str, version: int | None = None) -> StepModel:
        """Returns that version of the model, the highest if None.

        Raises UnknownModelError, UnknownVersionError, ReloadedError.
        """
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
        """Returns the model that the session runs on. Raises ModelGoneError, ReloadedError."""
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
        """Returns the number of live sessions on each version that is not served: `{"pulse/1": 5}`.

        live: the number of live sessions by model and version.
        """
        return {
            f"{name}/{version}": sessions
            for (name, version), sessions in sorted(live.items())
            if sessions and version not in self.by_name.get(name, {})
        }

    def _why_refused(self, name: str, version: int) -> str | None:
        return next((error.reason for error in self.refused if error.folders == (name, str(version))), None)

    def _missing(self, error: ServiceError) -> ServiceError:
        """Returns the error to raise. If other workers have later models, a retry may find the model with them."""
        return ReloadedError() if self._is_superseded() else error


def ref_of(model: StepModel) -> BundleRef:
    return BundleRef(model.manifest.name, model.manifest.version, model.digest)


def state_of(model: StepModel, record: Record) -> State:
    """Returns the state (1,) of the record. Raises DamagedRecordError."""
    try:
        return model.layout.stack([record.state])
    except StateError as error:
        raise DamagedRecordError(str(error)) from error
