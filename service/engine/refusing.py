"""What the rules of `model` refuse, as the service's own errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from model.inputs import InputError
from model.rolling import NonFiniteError, NoRollingError
from service.errors import Fault, InvalidInputError, NoForecastError, NotFiniteError


@contextmanager
def refusing() -> Iterator[None]:
    """Raises InvalidInputError, NoForecastError or NotFiniteError in the place of what is raised inside."""
    try:
        yield
    except InputError as error:
        raise InvalidInputError(*(Fault(*fault) for fault in error.faults)) from error
    except NoRollingError as error:
        raise NoForecastError(error.model, error.why) from error
    except NonFiniteError as error:
        raise NotFiniteError from error
