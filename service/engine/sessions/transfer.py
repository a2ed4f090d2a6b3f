"""What clients carry: whole sessions as signed records, and states that stand for no session at all.

Owns what a record or a state must be to be taken back: unaltered, its tenant's, and of a model that is still served.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from onward.model.runner import Outputs, StepModel
from onward.service.engine.batching.batcher import Dispatch
from onward.service.engine.input_parsing import Inputs, Intake
from onward.service.engine.models import Models
from onward.service.engine.sessions.lifecycle import Lives, Session
from onward.service.errors import (
    Fault,
    InvalidInputError,
    ModelGoneError,
    NoSecretError,
    StateExpiredError,
    UnknownVersionError,
    UnreadableRecordError,
)
from onward.service.store import record as records

if TYPE_CHECKING:
    from onward.service.store.signed_tokens import SignedTokens

_HEAD = struct.Struct("<dQ")  # when it was issued, in seconds since 1970 UTC, and the step it is at


class Held(NamedTuple):
    """A step without a session: the outputs (steps,), the step reached, and the state to send with the next."""

    model: StepModel
    step: int
    outputs: Outputs
    state: str


class Carried:
    def __init__(
        self,
        lives: Lives,
        models: Models,
        intake: Intake,
        dispatch: Dispatch,
        seal: "SignedTokens | None",
        *,
        clock: Callable[[], float],
        age_s: float,
    ) -> None:
        """`clock` gives seconds since 1970 UTC. age_s: how old a state that its client holds may be."""
        self._lives, self._models, self._intake, self._dispatch = lives, models, intake, dispatch
        self._secrets, self._clock, self._age_s = seal, clock, age_s

    @property
    def _seal(self) -> "SignedTokens":
        if self._secrets is None:
            raise NoSecretError
        return self._secrets

    def exported(self, tenant: str, session_id: str) -> tuple[Session, bytes]:
        """The session, and its record signed. Raises as `Lives.session` does, and NoSecretError."""
        session = self._lives.session(tenant, session_id)
        return session, self._seal.sign(session.record.to_bytes())

    def restored(self, tenant: str, session_id: str, signed: bytes) -> Session:
        """A session from what `exported` gave, wherever that was, with its last request and answer.

        Raises InvalidInputError where it was altered or is another's, ModelGoneError, NoSecretError, and as
        `Lives.claim` does.
        """
        try:
            record = records.from_bytes(self._seal.verify(signed))
        except ValueError:
            raise InvalidInputError(Fault("state", "not a record that this service's secret has signed")) from None
        except UnreadableRecordError as error:
            raise InvalidInputError(Fault("state", f"a record that cannot be read: {error.why}")) from None
        if not isinstance(record, records.Record):
            raise InvalidInputError(Fault("state", "not the record of a living session"))
        if record.tenant != tenant:
            raise InvalidInputError(Fault("state", "the record of another tenant's session"))
        self._models.of(record)
        return self._lives.begin(self._lives.claim(tenant, session_id), record, record.ttl_s)

    def step(
        self,
        tenant: str,
        name: str,
        version: int | None,
        inputs: Inputs,
        token: str | None,
        *,
        has_left: Callable[[], bool] | None = None,
    ) -> Held:
        """Advances the state that the token holds, None: the first one, and keeps nothing.

        Raises InvalidInputError where the token is altered or another's, StateExpiredError, ModelGoneError,
        NoSecretError, and what a prediction raises.
        """
        seal = self._seal
        if token is None:
            model, step = self._models.named(name, version), 0
            state = model.layout.initial(1)
        else:
            model, step, memory = self._opened(tenant, name, version, token)
            state = model.layout.stack([memory])
        done = self._dispatch.run_free(model, self._intake.array(model, inputs), state, has_left=has_left)
        assert done.state is not None
        step += len(done.outputs)
        content = _HEAD.pack(self._clock(), step) + done.state
        sealed = seal.encrypt(content, _bound_to(tenant, model))
        return Held(model, step, done.outputs, f"{model.manifest.version}.{sealed}")

    def _opened(self, tenant: str, name: str, version: int | None, token: str) -> tuple[StepModel, int, bytes]:
        """The model, the step and the memory of a state that a client holds."""
        its, _, sealed = token.partition(".")
        if not its.isdecimal() or len(its) > 9:
            raise InvalidInputError(Fault("state", "not a state that this service gave"))
        self._models.named(name, None)  # the name must be one
        if version not in (None, int(its)):
            message = f"the state is of version {its}; leave the version out, or begin anew"
            raise InvalidInputError(Fault("version", message))
        try:
            model = self._models.named(name, int(its))
        except UnknownVersionError:
            raise ModelGoneError(name, int(its), "which is not served any more") from None
        try:
            content = self._seal.decrypt(sealed, _bound_to(tenant, model))
        except ValueError:
            raise InvalidInputError(Fault("state", "not a state that this service gave for this model")) from None
        issued_at, step = _HEAD.unpack_from(content)
        if self._clock() > issued_at + self._age_s:
            raise StateExpiredError(issued_at, self._age_s)
        return model, step, content[_HEAD.size :]


def _bound_to(tenant: str, model: StepModel) -> bytes:
    return f"{tenant}/{model.manifest.name}/{model.manifest.version}/".encode() + model.digest
