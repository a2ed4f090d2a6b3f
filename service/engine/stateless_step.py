"""Steps without a session: the client holds the encrypted state, and sends it with each step.

Owns what a state must be to be taken back: unaltered, of the tenant and the model that it was issued for, and not too
old. The service stores nothing.
"""

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from onward.model.inputs import Inputs
from onward.model.runner import Outputs, StepModel
from onward.service.engine.batching.batcher import Batchers
from onward.service.engine.input_parsing import InputParser
from onward.service.engine.models import Models
from onward.service.errors import (
    Fault,
    InvalidInputError,
    ModelGoneError,
    NoSecretError,
    StateExpiredError,
    UnknownVersionError,
)

if TYPE_CHECKING:
    from onward.service.store.signed_tokens import SignedTokens

_HEAD = struct.Struct("<dQ")  # the time of issue in seconds since 1970 UTC, and the step that the state is at


class StatelessResult(NamedTuple):
    """The result of a step without a session.

    outputs: (steps,). step: the step reached. state: the token to send with the next step.
    """

    model: StepModel
    step: int
    outputs: Outputs
    state: str


class StatelessSteps:
    def __init__(
        self,
        models: Models,
        parser: InputParser,
        batchers: Batchers,
        seal: "SignedTokens | None",
        *,
        clock: Callable[[], float],
        max_age_s: float,
    ) -> None:
        """`clock` gives seconds since 1970 UTC. max_age_s: how old a state may be when its client sends it."""
        self._models, self._parser, self._batchers, self._seal = models, parser, batchers, seal
        self._clock, self._max_age_s = clock, max_age_s

    def step(
        self,
        tenant: str,
        name: str,
        version: int | None,
        inputs: Inputs,
        token: str | None,
        *,
        has_left: Callable[[], bool] | None = None,
    ) -> StatelessResult:
        """Advances the state in the token by `inputs`. token: None starts from the model's initial state.

        Raises InvalidInputError if the token was altered or is another tenant's, StateExpiredError, ModelGoneError,
        NoSecretError, and the errors of a prediction.
        """
        if self._seal is None:
            raise NoSecretError
        if token is None:
            model, step = self._models.named(name, version), 0
            state = model.layout.initial(1)
        else:
            model, step, state_bytes = self._opened(self._seal, tenant, name, version, token)
            state = model.layout.stack([state_bytes])
        result = self._batchers.run_standalone(model, self._parser.parse(model, inputs), state, has_left=has_left)
        assert result.state is not None
        step += len(result.outputs)
        content = _HEAD.pack(self._clock(), step) + result.state
        sealed = self._seal.encrypt(content, _context(tenant, model))
        return StatelessResult(model, step, result.outputs, f"{model.manifest.version}.{sealed}")

    def _opened(
        self, seal: "SignedTokens", tenant: str, name: str, version: int | None, token: str
    ) -> tuple[StepModel, int, bytes]:
        """Returns the model, the step and the bytes of the state in a client's token."""
        token_version, _, sealed = token.partition(".")
        if not token_version.isdecimal() or len(token_version) > 9:
            raise InvalidInputError(Fault("state", "not a state that this service gave"))
        self._models.named(name, None)  # raises if there is no model of that name
        if version not in (None, int(token_version)):
            message = f"the state is of version {token_version}; leave the version out, or begin anew"
            raise InvalidInputError(Fault("version", message))
        try:
            model = self._models.named(name, int(token_version))
        except UnknownVersionError:
            raise ModelGoneError(name, int(token_version), "which is not served any more") from None
        try:
            content = seal.decrypt(sealed, _context(tenant, model))
        except ValueError:
            raise InvalidInputError(Fault("state", "not a state that this service gave for this model")) from None
        issued_at, step = _HEAD.unpack_from(content)
        if self._clock() > issued_at + self._max_age_s:
            raise StateExpiredError(issued_at, self._max_age_s)
        return model, step, content[_HEAD.size :]


def _context(tenant: str, model: StepModel) -> bytes:
    """Returns what a token is valid for. The encryption authenticates it, so a token fits no other tenant or model."""
    return f"{tenant}/{model.manifest.name}/{model.manifest.version}/".encode() + model.digest
