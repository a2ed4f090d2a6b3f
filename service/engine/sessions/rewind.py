"""Rewind and migration: a session is taken back to an earlier step, or moved to another version of its model, by
replaying inputs from its history.
"""

from collections.abc import Callable
from contextlib import suppress

from onward.model.scoring.layout import nominal_coverage
from onward.model.scoring.surprise import NO_SURPRISES
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.models import Models, ref_of, state_of
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import Session, SessionLifecycle
from onward.service.errors import Fault, HistoryError, InvalidInputError, ModelGoneError
from onward.service.store import idempotency
from onward.service.store.record import Record


class SessionRewind:
    def __init__(self, sessions: SessionLifecycle, models: Models, batchers: Batchers) -> None:
        self._sessions, self._models, self._batchers = sessions, models, batchers

    def rewind(self, tenant: str, session_id: str, step: int, *, has_left: Callable[[], bool] | None = None) -> Session:
        """Returns the session as it was after `step` steps. Later steps are undone; a retry of one of their requests is
        refused as late.

        Raises as `SessionLifecycle.get` does, ModelGoneError, HistoryError if the history does not reach back so far,
        InvalidInputError.
        """
        started_at = self._batchers.now()
        while True:  # until no step was committed in between
            record = self._sessions.get(tenant, session_id).record
            model = self._models.of(record)
            if step > record.step:
                raise InvalidInputError(
                    Fault("step", f"the session is at step {record.step}, and has not been at {step}")
                )
            origin = history.from_bytes(record.history).back_to(step, record.step) if record.history else None
            if origin is None:
                raise HistoryError(f"session {session_id!r} cannot be taken back to step {step}")
            point, inputs, past = origin
            state, surprise, accuracy = point.state, point.surprise, point.accuracy
            if len(inputs):
                initial = state_of(model, record.replace(state=state))
                result = self._batchers.run_standalone(
                    model,
                    inputs,
                    initial,
                    accuracy=accuracy,
                    surprise=surprise,
                    has_left=has_left,
                    started_at=started_at,
                )
                assert result.state is not None
                assert result.surprise is not None
                state, surprise = result.state, result.surprise
                accuracy = accuracy if result.accuracy is None else result.accuracy
            rewound = record.replace(
                step=step, state=state, surprise=surprise, history=past.to_bytes(), accuracy=accuracy
            )
            if session := self._sessions.replace(tenant, session_id, record, _without_answers(rewound)):
                return session

    def migrate(
        self, tenant: str, session_id: str, version: int | None, *, has_left: Callable[[], bool] | None = None
    ) -> tuple[Session, int]:
        """Returns the session on another version of its model, None: the highest; and how many inputs were replayed.

        Its state and its statistics are those of the new version after the inputs in the history. The step stays, and
        so does the nominal coverage of its intervals, if the new version has any, and what its anomaly is, if its
        version before is still served. Raises as `SessionLifecycle.get`
        does, UnknownModelError, UnknownVersionError, HistoryError if the history has no inputs, or if the new version
        has other features.
        """
        started_at = self._batchers.now()
        while True:  # until no step was committed in between
            record = self._sessions.get(tenant, session_id).record
            model = self._models.named(record.ref.model, version)
            initial, features = model.layout.initial(1), model.manifest.features
            if not record.history and record.step:
                raise HistoryError(f"session {session_id!r} keeps no inputs to replay")
            start = Point(record.step, NO_SURPRISES, initial.tobytes())
            past = history.from_bytes(record.history) if record.history else history.begun(features, start)
            if past.features != history.meaning(features):
                raise HistoryError(f"version {model.manifest.version} of {record.ref.model!r} has other features")
            past = past._replace(inputs=past.inputs.astype(model.input_dtype))
            state, surprise = initial.tobytes(), NO_SURPRISES
            kind = None
            with suppress(ModelGoneError):
                kind = self._batchers.accuracy(self._models.of(record)).anomaly_kind(record.accuracy)
            accuracy = self._batchers.accuracy(model).initial(nominal_coverage(record.accuracy), kind)
            if len(past.inputs):
                result = self._batchers.run_standalone(
                    model,
                    past.inputs,
                    initial,
                    accuracy=accuracy,
                    surprise=surprise,
                    has_left=has_left,
                    started_at=started_at,
                )
                assert result.state is not None
                assert result.surprise is not None
                state, surprise = result.state, result.surprise
                accuracy = result.accuracy or b""
            past = past._replace(points=(Point(record.step, surprise, state, accuracy),))
            migrated = record.replace(
                ref=ref_of(model), state=state, surprise=surprise, history=past.to_bytes(), accuracy=accuracy
            )
            if session := self._sessions.replace(tenant, session_id, record, _without_answers(migrated)):
                return session, len(past.inputs)


def _without_answers(record: Record) -> Record:
    """Returns the record without the answers of its last requests, which do not belong to its new state.

    A retry of such a request is refused as late.
    """
    return record.replace(requests=idempotency.without_answers(record.requests))
