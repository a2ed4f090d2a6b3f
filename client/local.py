"""The same sessions in process: a bundle's model, its state in this process's memory, and no service.

Answers are the service's own, to the bit where the model is exact, and so are the errors of what does not fit.
"""

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from client import values
from client.calls import new_id
from client.errors import InvalidRequest, NoForecast, NotFinite, StepConflict
from client.infos import SessionInfo
from client.values import Forecast, Predicted, Prediction, Predictions, Step, Steps
from model.answers import said
from model.inputs import InputError, to_array
from model.repository import open_bundle
from model.runner import Outputs, StepModel
from model.state import State


def load(path: str | PathLike[str], *, threads: int = 1) -> "Local":
    """The bundle in the folder `path`, verified. Raises `model.manifest.BundleError`."""
    return Local(open_bundle(Path(path), threads=threads))


class Local:
    """One version of one model, in process."""

    def __init__(self, model: StepModel) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"<Local {self.model.manifest.name} {self.model.manifest.version}>"

    def session(self, session_id: str | None = None, inputs: Steps | None = None) -> "LocalSession":
        """A new session; `inputs` seed its state."""
        session = LocalSession(self.model, session_id or new_id())
        if inputs is not None:
            session.steps(inputs)
        return session

    def predict(self, sequences: Sequence[Steps], horizon: int = 0) -> list[Predicted]:
        """Of sequences that stand alone, each from the initial state, and rolled `horizon` steps forward."""
        found = []
        for sequence in sequences:
            session = self.session()
            told = session.steps(sequence)
            found.append(Predicted(told, session.forecast(horizon) if horizon else None))
        return found


class LocalSession:
    """A session whose state is here. It has no `with` block to live beyond: its end is this object's."""

    def __init__(self, model: StepModel, session_id: str) -> None:
        self._model, self._state = model, model.layout.initial(1)
        self.id, self.model, self.version = session_id, model.manifest.name, model.manifest.version
        self.step_count = 0
        self._began = self._stepped = datetime.now(UTC)

    def __repr__(self) -> str:
        return f"<LocalSession {self.id!r} of {self.model} {self.version} at step {self.step_count}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """There is nothing to end."""

    @property
    def prediction(self) -> Prediction | None:
        """Of the next input, where the model keeps it."""
        manifest = self._model.manifest
        told = said(self._model, self._model.last_prediction(self._state)[0], manifest.head.last)
        return Prediction(values.outputs(told), None, self.step_count) if told else None

    def info(self) -> SessionInfo:
        """Without `surprise`: those statistics are the service's."""
        return SessionInfo(self.id, self.model, self.version, self.step_count, self._began, self._stepped)

    def step(self, step: Step, *, at: int | None = None) -> Prediction:
        return self._advanced(values.step(step), at).last

    def steps(self, inputs: Steps, *, at: int | None = None) -> Predictions:
        return self._advanced(values.steps(inputs), at)

    def stream(self, inputs: Iterable[Step]) -> Iterator[Prediction]:
        return map(self.step, inputs)

    def forecast(self, horizon: int, *, inputs: Steps | None = None) -> Forecast:
        """Rolls predictions forward; the session stays. inputs: consumed first."""
        if inputs is not None:
            ahead = self.fork()
            ahead.steps(inputs)
            return ahead.forecast(horizon)
        manifest = self._model.manifest
        if not manifest.forecasts:
            raise NoForecast.here(f"model {self.model!r} cannot be rolled forward")
        told = said(self._model, np.concatenate(list(self._ahead(horizon))), manifest.head.outputs[:1])
        likeliest = {name: [row[:1] for row in rows] for name, rows in told.items()} if manifest.head.ranks else told
        return Forecast(values.outputs(likeliest), self.step_count)

    def fork(self, session_id: str | None = None) -> "LocalSession":
        """A session of its own in the same state."""
        other = copy(self)
        other.id = session_id or new_id()
        return other

    def _ahead(self, horizon: int) -> Iterator[Outputs]:
        """(1,) predictions, each fed back as the next input."""
        outputs, state = self._model.last_prediction(self._state), self._state
        _hold_finite(outputs)
        yield outputs
        for _ in range(horizon - 1):
            outputs, state = self._run(self._model.fed_back(outputs), state)
            yield outputs

    def _advanced(self, inputs: Any, at: int | None) -> Predictions:
        """inputs: as JSON has them."""
        if at is not None and at != self.step_count:
            detail = f"session {self.id!r} is at step {self.step_count}, not {at}"
            raise StepConflict.here(detail, [("step", detail)], expected_step=self.step_count)
        try:
            array = to_array(inputs, self._model.manifest.features)
        except InputError as error:
            raise InvalidRequest.here(str(error), error.faults) from error
        outputs, self._state = self._run(array, self._state)
        self.step_count += len(array)
        self._stepped = datetime.now(UTC)
        head = self._model.manifest.head
        surprise = None if head.surprise is None else np.asarray(outputs[head.surprise], np.float32)
        told = values.outputs(said(self._model, outputs, head.outputs))
        return Predictions(told, surprise, self.step_count)

    def _run(self, inputs: NDArray[np.float32], state: State) -> tuple[Outputs, State]:
        outputs, after = self._model.run_row(inputs, state)
        _hold_finite(outputs)
        _hold_finite(after)
        return outputs, after


def _hold_finite(rows: Outputs | State) -> None:
    if not all(np.isfinite(rows[name]).all() for name in rows.dtype.names or ()):
        raise NotFinite.here("these inputs drive the model beyond finite numbers; the session is unmoved")
