"""The tenant and the session id that a request names."""

from pydantic import TypeAdapter, ValidationError

from onward.service.errors import Fault, InvalidInputError
from onward.service.http.request_schemas import SessionId

TENANT = "public"
"""The tenant of every session, until keys tell callers apart."""

_SESSION_ID: TypeAdapter[str] = TypeAdapter(SessionId)


def checked(session_id: str, field: str = "session_id") -> str:
    """Returns the id if it is valid.

    Raises InvalidInputError for the field otherwise: an id that no session can have is an invalid request, not an
    unknown session.
    """
    try:
        return _SESSION_ID.validate_python(session_id)
    except ValidationError:
        raise InvalidInputError(Fault(field, "expected 1 to 128 letters, digits and . _ ~ : -")) from None
