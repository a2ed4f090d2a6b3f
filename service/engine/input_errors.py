"""What the rules of `model` refuse, as the service's own errors."""

from contextlib import AbstractContextManager
from types import TracebackType

from onward.model.inputs import InputError
from onward.model.sampling.rollout import NonFiniteError, RolloutUnsupportedError
from onward.service.errors import Fault, InvalidInputError, NoForecastError, NotFiniteError


class _Refusing(AbstractContextManager[None]):
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, (InputError, RolloutUnsupportedError, NonFiniteError)):
            error.with_traceback(None)  # the cause of what is raised may be kept with it, but no frames
        if isinstance(error, InputError):
            raise InvalidInputError(*(Fault(*fault) for fault in error.faults)) from error
        if isinstance(error, RolloutUnsupportedError):
            raise NoForecastError(error.model, error.why) from error
        if isinstance(error, NonFiniteError):
            raise NotFiniteError from error


_REFUSING = _Refusing()


def refusing() -> AbstractContextManager[None]:
    """Raises InvalidInputError, NoForecastError or NotFiniteError in the place of what is raised inside."""
    return _REFUSING
