"""Recurrent models served with their memory: `Client` and `AsyncClient` of a service, and `load` for a bundle in
process.

Each is imported when it is used: `import onward` needs no httpx, and `onward serve` imports no client.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onward.client.async_client import AsyncClient
    from onward.client.local import load
    from onward.client.sync_client import Client

__all__ = ["AsyncClient", "Client", "load"]

_LAZY = {
    "AsyncClient": "onward.client.async_client",
    "Client": "onward.client.sync_client",
    "load": "onward.client.local",
}


def __getattr__(name: str) -> Any:
    """Raises ImportError, with the way out, where the extra `client` is not installed."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in ("httpx", "websockets"):
            raise
        raise ImportError(f"onward.{name} needs {error.name}: pip install 'onward[client]'", name=error.name) from error
