"""Transfer of sessions: a session's record leaves the service signed, and is restored here or in another service.

Owns what a record must be to be restored: unaltered, of the tenant's own session, and of a model that is served.
"""

from typing import TYPE_CHECKING

from onward.service.engine.models import Models
from onward.service.engine.sessions.lifecycle import Session, SessionLifecycle
from onward.service.errors import Fault, InvalidInputError, NoSecretError, UnreadableRecordError
from onward.service.store import record as records

if TYPE_CHECKING:
    from onward.service.store.signed_tokens import SignedTokens


class SessionTransfer:
    def __init__(self, sessions: SessionLifecycle, models: Models, seal: "SignedTokens | None") -> None:
        self._sessions, self._models, self._seal = sessions, models, seal

    def export(self, tenant: str, session_id: str) -> tuple[Session, bytes]:
        """Returns the session, and its signed record. Raises as `SessionLifecycle.get` does, and NoSecretError."""
        session = self._sessions.get(tenant, session_id)
        return session, self._secret_seal().sign(session.record.to_bytes())

    def restore(self, tenant: str, session_id: str, signed: bytes) -> Session:
        """Creates a session from what `export` of any service with the same secret returned.

        The session keeps its last requests and their answers. Raises InvalidInputError if the record was altered or is
        another tenant's, ModelGoneError, NoSecretError, and as `SessionLifecycle.claim` does.
        """
        try:
            record = records.from_bytes(self._secret_seal().verify(signed))
        except ValueError:
            raise InvalidInputError(Fault("state", "not a record that this service's secret has signed")) from None
        except UnreadableRecordError as error:
            raise InvalidInputError(Fault("state", f"a record that cannot be read: {error.why}")) from None
        if not isinstance(record, records.Record):
            raise InvalidInputError(Fault("state", "not the record of a living session"))
        if record.tenant != tenant:
            raise InvalidInputError(Fault("state", "the record of another tenant's session"))
        self._models.of(record)
        return self._sessions.begin(self._sessions.claim(tenant, session_id), record, record.ttl_s)

    def _secret_seal(self) -> "SignedTokens":
        if self._seal is None:
            raise NoSecretError
        return self._seal
