"""Onward serves recurrent models with their memory: clients of a service, and `load` for a bundle in this process.

Every exception and every result type of theirs can be imported from here. A name is imported when it is first used:
`import onward` needs no httpx, and `onward serve` imports no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward import errors
    from onward.client.async_client import AsyncClient, AsyncSession, PendingSession
    from onward.client.generation import GenerationOptions
    from onward.client.inputs import Step, Steps
    from onward.client.local import LocalModel, LocalSession, load
    from onward.client.operations import StepResult
    from onward.client.results import (
        Accuracy,
        Done,
        Forecast,
        Generated,
        Interval,
        IntervalInfo,
        Outputs,
        Prediction,
        Predictions,
        RecentAccuracy,
        SequencePrediction,
        SessionInfo,
        StatelessStep,
        Surprise,
    )
    from onward.client.step_files import SeriesSteps, read_steps
    from onward.client.sync_client import Client, Session
    from onward.errors import (
        Abandoned,
        BadRequest,
        BodyTooLarge,
        BundleError,
        DamagedRecord,
        DataError,
        Deadline,
        DrawMoved,
        ForeignOrigin,
        ForeignRecord,
        HeadersTooLarge,
        Internal,
        InvalidRequest,
        LateRequest,
        MalformedJson,
        MethodNotAllowed,
        ModelGone,
        NoForecast,
        NoHistory,
        NoSecret,
        NoStream,
        NotFinite,
        NotFound,
        NotReady,
        OnwardError,
        Overloaded,
        Problem,
        Reloaded,
        RequestReused,
        RetryableError,
        RetryableProblem,
        SessionEnded,
        SessionExists,
        SlowReader,
        StateExpired,
        StepConflict,
        Stopping,
        StoreFull,
        StoreUnavailable,
        UnknownModel,
        UnknownSession,
        UnknownVersion,
        UnreachableError,
        UnsupportedMediaType,
        UpgradeRequired,
        UriTooLong,
    )

_MODULES = {
    "onward.client.async_client": ("AsyncClient", "AsyncSession", "PendingSession"),
    "onward.client.generation": ("GenerationOptions",),
    "onward.client.inputs": ("Step", "Steps"),
    "onward.client.local": ("LocalModel", "LocalSession", "load"),
    "onward.client.operations": ("StepResult",),
    "onward.client.results": (
        "Accuracy", "Done", "Forecast", "Generated", "Interval", "IntervalInfo", "Outputs", "Prediction", "Predictions",
        "RecentAccuracy", "SequencePrediction", "SessionInfo", "StatelessStep", "Surprise",
    ),
    "onward.client.step_files": ("SeriesSteps", "read_steps"),
    "onward.client.sync_client": ("Client", "Session"),
}  # fmt: skip
"""The modules of the public names; the names that are not listed are in `onward.errors`."""
_LAZY = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Abandoned", "Accuracy", "AsyncClient", "AsyncSession", "BadRequest", "BodyTooLarge", "BundleError", "Client",
    "DamagedRecord", "DataError", "Deadline", "Done", "DrawMoved", "Forecast", "ForeignOrigin", "ForeignRecord",
    "Generated", "GenerationOptions", "HeadersTooLarge", "Internal", "Interval", "IntervalInfo", "InvalidRequest",
    "LateRequest", "LocalModel", "LocalSession", "MalformedJson", "MethodNotAllowed", "ModelGone", "NoForecast",
    "NoHistory", "NoSecret", "NoStream", "NotFinite", "NotFound", "NotReady", "OnwardError", "Outputs", "Overloaded",
    "PendingSession", "Prediction", "Predictions", "Problem", "RecentAccuracy", "Reloaded", "RequestReused",
    "RetryableError", "RetryableProblem", "SequencePrediction", "SeriesSteps", "Session", "SessionEnded",
    "SessionExists", "SessionInfo", "SlowReader", "StateExpired", "StatelessStep", "Step", "StepConflict", "StepResult",
    "Steps", "Stopping", "StoreFull", "StoreUnavailable", "Surprise", "UnknownModel", "UnknownSession",
    "UnknownVersion", "UnreachableError", "UnsupportedMediaType", "UpgradeRequired", "UriTooLong", "errors", "load",
    "read_steps",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name. Raises ImportError, with the way out, if the extra `client` is not installed."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_LAZY.get(name, "onward.errors"))
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "websockets"):
            raise
        raise ImportError(f"onward.{name} needs {error.name}: pip install 'onward[client]'", name=error.name) from error
    return module if name == "errors" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
