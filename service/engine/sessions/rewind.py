"""Sessions taken back to an earlier step, or moved to another version of their model, by what they keep of the past."""

from collections.abc import Callable

from onward.model.scoring.layout import nominal_coverage
from onward.model.scoring.surprise import NO_SURPRISES
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.models import Models, ref_of, state_of
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.engine.sessions.lifecycle import Lives, Session
from onward.service.errors import Fault, HistoryError, InvalidInputError
from onward.service.store import idempotency
from onward.service.store.record import Record


class Past:
    def __init__(self, lives: Lives, models: Models, dispatch: Dispatch) -> None:
        self._lives, self._models, self._dispatch = lives, models, dispatch

    def rewind(self, tenant: str, session_id: str, step: int, *, has_left: Callable[[], bool] | None = None) -> Session:
        """The session as it was after `step` steps. What came after is forgotten; its requests are known as late.

        Raises as `Lives.session` does, ModelGoneError, HistoryError where it is too long ago, InvalidInputError.
        """
        since = self._dispatch.now()
        while True:  # until no step came in between
            record = self._lives.session(tenant, session_id).record
            model = self._models.of(record)
            if step > record.step:
                raise InvalidInputError(
                    Fault("step", f"the session is at step {record.step}, and has not been at {step}")
                )
            kept = history.from_bytes(record.history).back_to(step, record.step) if record.history else None
            if kept is None:
                raise HistoryError(f"session {session_id!r} cannot be taken back to step {step}")
            point, inputs, past = kept
            state, surprise, accuracy = point.state, point.surprise, point.accuracy
            if len(inputs):
                begun = state_of(model, record._replace(state=state))
                done = self._dispatch.run_free(
                    model, inputs, begun, accuracy=accuracy, surprise=surprise, has_left=has_left, since=since
                )
                assert done.state is not None
                assert done.surprise is not None
                state, surprise = done.state, done.surprise
                accuracy = accuracy if done.accuracy is None else done.accuracy
            before = record._replace(
                step=step, state=state, surprise=surprise, history=past.to_bytes(), accuracy=accuracy
            )
            if session := self._lives.replaced(tenant, session_id, record, _without_answers(before)):
                return session

    def migrate(
        self, tenant: str, session_id: str, version: int | None, *, has_left: Callable[[], bool] | None = None
    ) -> tuple[Session, int]:
        """The session on another version of its model, None: the highest; and how many of its inputs were replayed.

        Its state is what the new version makes of the inputs that are kept, and so are the statistics; the step stays,
        and the share that its intervals are to hold, where the new version has any. Raises as `Lives.session`
        does, UnknownModelError, UnknownVersionError, HistoryError where none are kept or they mean something else.
        """
        since = self._dispatch.now()
        while True:  # until no step came in between
            record = self._lives.session(tenant, session_id).record
            model = self._models.named(record.ref.model, version)
            initial, features = model.layout.initial(1), model.manifest.features
            if not record.history and record.step:
                raise HistoryError(f"session {session_id!r} keeps no inputs to replay")
            start = Point(record.step, NO_SURPRISES, initial.tobytes())
            past = history.from_bytes(record.history) if record.history else history.begun(features, start)
            if past.features != history.meaning(features):
                raise HistoryError(f"version {model.manifest.version} of {record.ref.model!r} has other features")
            state, surprise = initial.tobytes(), NO_SURPRISES
            accuracy = self._dispatch.accuracy(model).initial(nominal_coverage(record.accuracy))
            if len(past.inputs):
                done = self._dispatch.run_free(
                    model, past.inputs, initial, accuracy=accuracy, surprise=surprise, has_left=has_left, since=since
                )
                assert done.state is not None
                assert done.surprise is not None
                state, surprise = done.state, done.surprise
                accuracy = done.accuracy or b""
            past = past._replace(points=(Point(record.step, surprise, state, accuracy),))
            moved = record._replace(
                ref=ref_of(model), state=state, surprise=surprise, history=past.to_bytes(), accuracy=accuracy
            )
            if session := self._lives.replaced(tenant, session_id, record, _without_answers(moved)):
                return session, len(past.inputs)


def _without_answers(record: Record) -> Record:
    """Without the answers of the last requests, which are not this state's: they are known as late."""
    return record._replace(requests=idempotency.without_answers(record.requests))
