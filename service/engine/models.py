"""The models that are served: by name and version, and by the record of a session."""

from collections.abc import Mapping, Sequence

from model.manifest import BundleError
from model.repository import Opened
from model.runner import StepModel
from model.state import State, StateError
from service.errors import DamagedRecordError, ModelGoneError, UnknownModelError, UnknownVersionError
from service.sessions.record import Record, Ref


class Models:
    def __init__(self, opened: Opened) -> None:
        self.by_name: Mapping[str, Mapping[int, StepModel]] = opened.models
        self.refused: Sequence[BundleError] = opened.refused

    def named(self, name: str, version: int | None = None) -> StepModel:
        """That version, the highest if None. Raises UnknownModelError, UnknownVersionError."""
        versions = self.by_name.get(name)
        if versions is None:
            raise UnknownModelError(name, sorted(self.by_name))
        if version is None:
            version = max(versions)
        if version not in versions:
            raise UnknownVersionError(name, version, sorted(versions))
        return versions[version]

    def of(self, record: Record) -> StepModel:
        """The model that the session runs on. Raises ModelGoneError."""
        ref = record.ref
        model = self.by_name.get(ref.model, {}).get(ref.version)
        if model is None:
            raise ModelGoneError(ref.model, ref.version, "which is not served any more")
        if ref_of(model) != ref:
            raise ModelGoneError(ref.model, ref.version, "whose bundle was replaced by another under the same version")
        return model


def ref_of(model: StepModel) -> Ref:
    return Ref(model.manifest.name, model.manifest.version, model.digest)


def state_of(model: StepModel, record: Record) -> State:
    """(1,) the state that the record holds. Raises DamagedRecordError."""
    try:
        return model.layout.stack([record.state])
    except StateError as error:
        raise DamagedRecordError(str(error)) from error
