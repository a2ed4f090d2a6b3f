"""Settings: `ONWARD_*` environment variables, one frozen class, a description each."""

import math
import os
import sys
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from onward.model import ZOO

PREFIX = "ONWARD_"
OF_CLIENTS = frozenset({"ONWARD_URL", "ONWARD_API_KEY"})
"""Read by the commands that talk to a service, which may run beside one in the same environment."""
LEAST_SECRET = 32
NETWORKED = {"redis", "rediss", "redis+cluster", "rediss+cluster"}


class SettingsError(Exception):
    """Environment variables that do not fit; the message names each."""


def _default_store() -> str:
    data = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return f"lmdb://{data}/onward/sessions"


def _cores() -> int:
    """The cores that this process may use, by its affinity and by a container's limit on CPU time."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit: the file is absent, or says "max"
        return cores


class Settings(BaseSettings):
    """The settings of the service, read from its environment."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    bind: Annotated[str, Field(description="address to listen on: host:port, or unix:/path")] = "127.0.0.1:8000"
    allow_anyone: Annotated[
        bool,
        Field(description="listen beyond this machine: anyone who reaches the port may use the service"),
    ] = False
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default_factory=_cores, description="number of worker processes; default: the number of available cores"
    )
    connections: Annotated[
        int, Field(ge=1, le=1_000_000, description="maximum number of open connections of a worker process")
    ] = 4000
    store: str = Field(
        default_factory=_default_store,
        description="store of the sessions: lmdb:///path or redis://host:port/0; default: the user's data folder",
    )
    models: Annotated[Path, Field(description="folder of the model repository; default: the bundles that ship")] = ZOO
    threads: Annotated[
        int, Field(ge=1, le=256, description="number of threads that ONNX Runtime uses for one call")
    ] = 1
    exact: Annotated[
        bool,
        Field(description="run models whose kernels round differently in a batch row by row: exact, but slower"),
    ] = False
    lane: Annotated[
        bool, Field(description="answer step requests ahead of Flask: the same responses at several times the rate")
    ] = True
    ttl_s: Annotated[
        float, Field(gt=0, le=31_536_000, description="seconds without a step after which a session expires")
    ] = 3600
    timeout_s: Annotated[
        float, Field(gt=0, le=3600, description="seconds that a request may take before it is answered 503")
    ] = 30
    max_body_bytes: Annotated[int, Field(ge=1024, description="maximum size of a request body in bytes")] = 8 * 2**20
    max_steps: Annotated[
        int,
        Field(
            ge=1,
            description="maximum number of steps of one call: inputs and horizons of all its sequences or items",
        ),
    ] = 100_000
    max_horizon: Annotated[int, Field(ge=1, description="maximum number of steps of a forecast")] = 10_000
    max_sequences: Annotated[
        int,
        Field(ge=1, description="maximum number of sequences in one predict call, and of sample paths in one forecast"),
    ] = 1024
    max_waiting: Annotated[int, Field(ge=1, description="maximum number of requests that wait in a worker process")] = (
        10_000
    )
    flush_s: Annotated[float, Field(gt=0, le=3600, description="seconds between flushes of the LMDB store to disk")] = (
        1.0
    )
    fsync: Annotated[
        Literal["interval", "always"],
        Field(description="LMDB: a commit is on disk after the next flush (interval) or before its answer (always)"),
    ] = "interval"
    history: Annotated[
        int,
        Field(
            ge=0,
            le=10_000,
            description="number of steps by which a session can be rewound; its record stores at least as many inputs",
        ),
    ] = 0
    accuracy: Annotated[
        bool, Field(description="score the predictions of each session, and return the scores with each step")
    ] = True
    secret: Annotated[
        SecretStr | None,
        Field(description="key that signs exported states: 32 characters or more; several by commas, newest first"),
    ] = None
    state_age_s: Annotated[
        float, Field(gt=0, description="maximum age in seconds of a state that its client holds")
    ] = 86_400
    sweep_s: Annotated[float, Field(gt=0, le=3600, description="seconds between sweeps of expired sessions")] = 5.0

    @field_validator("bind")
    @classmethod
    def _an_address(cls, bind: str) -> str:
        if bind.startswith("unix:") and len(bind) > len("unix:"):
            return bind
        host, _, port = bind.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("expected host:port, such as 127.0.0.1:8000, or unix:/path")
        return bind

    @field_validator("store")
    @classmethod
    def _a_store(cls, store: str) -> str:
        parts = urlsplit(store)
        is_path = not parts.netloc.rpartition("@")[2] and len(parts.path) > 1
        is_host = bool(parts.hostname) and parts.port != 0  # a port that is no number is said to be none
        if not (is_path if parts.scheme in {"lmdb", "unix"} else is_host and parts.scheme in NETWORKED):
            raise ValueError(
                "expected lmdb:///path/of/a/folder, redis://host:port/0, rediss://..., redis+cluster://host:port, "
                "rediss+cluster://... or unix:///path/of/a/socket"
            )
        return store

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and any(len(part) < LEAST_SECRET for part in secret.get_secret_value().split(",")):
            raise ValueError(f"each secret has {LEAST_SECRET} characters or more; `openssl rand -hex 32` makes one")
        return secret

    @model_validator(mode="after")
    def _closed_by_default(self) -> Self:
        if not self.allow_anyone and not _is_local(self.bind):
            raise ValueError(
                f"ONWARD_BIND={self.bind} is open to other machines, and no keys protect it; "
                "bind 127.0.0.1, or set ONWARD_ALLOW_ANYONE=1 if something in front of it decides who may come in"
            )
        return self


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings in the environment. Raises SettingsError, also for an ONWARD_ variable that is none of them."""
    names = {PREFIX + name.upper() for name in Settings.model_fields}
    given = {name for name in environ if name.upper().startswith(PREFIX)} - OF_CLIENTS
    if unknown := sorted(name for name in given if name.upper() not in names):
        raise SettingsError(f"{', '.join(unknown)}: no such setting; there are {', '.join(sorted(names))}")
    try:
        return Settings()
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            name = PREFIX + str(fault["loc"][0]).upper() + ": " if fault["loc"] else ""
            faults.append(name + fault["msg"].removeprefix("Value error, "))
        raise SettingsError("; ".join(faults)) from error


def _is_local(bind: str) -> bool:
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
