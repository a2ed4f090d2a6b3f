"""Writes a store and exported sessions of the present format of records, with an account of what they hold.

    .venv/bin/python -m tests.service.store.write_fixtures tests/service/store/fixtures/format-7

`test_fixtures.py` reads such folders. Write one for each new format, and for each new layout of the statistics within a
format, with the version that introduces it, and never write it again: later versions must read what that version wrote.
`fixtures/format-6-recent` was written by the version that introduced statistics over recent inputs, and
`fixtures/format-7` by the one that introduced the kinds of anomalies. The sessions run on the bundles in
`fixtures/models`, which stay as they are too. Onward 0.2.0 wrote `fixtures/format-4` and the bundle tiny/1; the bundle
tiny/2 was written by the version that introduced format 6. Revisions of records are random; all else is the same each
time.
"""

import json
import lzma
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gevent
import numpy as np

from onward.model.repository import open_all
from onward.model.scoring.anomaly import KINDS, AnomalyKind
from onward.model.scoring.conformal import BLOCK
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.recorded_bundles import draw

FIXTURES = Path(__file__).with_name("fixtures")
MODELS = FIXTURES / "models"
STORE, EXPORTS, ACCOUNT = "data.mdb.xz", "exports", "account.json"
TENANT, MODEL, SECRET = "public", "tiny", "a secret of the stored fixtures, no other one"
WRITTEN_AT, TTL_S, HISTORY, COVERAGE = 1_800_000_000.0, 3600.0, 4, 0.8
SHORT_TTL_S = 10.0
TOGETHER = 12
"""The number of sessions that are stepped together, enough to be advanced as columns."""

LONG = 2 * BLOCK + 30

Inputs = list[list[float]]


@dataclass
class StoredRequest:
    """A request with an id. outputs: the values that answered it, by name; None if a retry is refused as late."""

    request_id: str
    inputs: Inputs
    step: int
    outputs: dict[str, Any] | None


@dataclass
class StoredSession:
    """A session. inputs: all that its state has consumed. scored: whether its predictions were scored from the start.

    anomaly: the option; None: it was left out. ended: why, if it has ended; "due" if it has expired and was not swept.
    """

    session_id: str
    version: int
    inputs: Inputs = field(default_factory=list)
    requests: list[StoredRequest] = field(default_factory=list)
    interval: float | None = None
    history: bool = False
    scored: bool = True
    ended: str | None = None
    anomaly: AnomalyKind | None = None


def write(folder: Path) -> None:
    """Writes the fixtures of the present format into a new folder."""
    (folder / EXPORTS).mkdir(parents=True)
    now = WRITTEN_AT
    versions = sorted(open_all(MODELS).models[MODEL])
    sessions: list[StoredSession] = []
    with TemporaryDirectory() as store_folder:

        def run(use: Callable[[Engine, int], list[StoredSession]], **limits: Any) -> None:
            engine = start(Path(store_folder), lambda: now, **limits)
            for version in versions:
                sessions.extend(use(engine, version))
            engine.close()

        run(_ended)
        now += SHORT_TTL_S + 1
        run(_swept_and_due)
        now += SHORT_TTL_S + 1
        run(_plain)
        run(_together)
        run(_with_history, history=HISTORY)
        run(_unscored, accuracy=False)
        run(_long)
        engine = start(Path(store_folder), lambda: now)
        for session in sessions:
            if not session.ended and "together" not in session.session_id:
                _, signed = engine.transfer.export(TENANT, session.session_id)
                (folder / EXPORTS / session.session_id).write_bytes(signed)
        engine._store.flush()
        engine.close()
        (folder / STORE).write_bytes(lzma.compress((Path(store_folder) / "data.mdb").read_bytes()))
    account = {"written_at": now, "sessions": [asdict(session) for session in sessions]}
    (folder / ACCOUNT).write_text(json.dumps(account) + "\n")


def start(store_folder: Path, clock: Callable[[], float], **limits: Any) -> Engine:
    """Returns a running engine with the fixtures' models, whose housekeeping never runs by itself."""
    opened, store = open_all(MODELS), LmdbStore(store_folder)
    engine = Engine(opened, store, Limits(ttl_s=TTL_S, **limits), seal=SignedTokens([SECRET]), clock=clock)
    engine.start(flush_s=1e6, sweep_s=1e6)
    return engine


def _create(engine: Engine, name: str, version: int, **options: Any) -> StoredSession:
    session = StoredSession(
        f"{name}-{version}", version, interval=options.get("interval"), anomaly=options.get("anomaly")
    )
    engine.create(TENANT, MODEL, version=version, session_id=session.session_id, **options)
    session.inputs += options.get("inputs") or []
    return session


def _step(engine: Engine, session: StoredSession, inputs: Inputs, request_id: str = "") -> None:
    result = engine.steps.step(TENANT, session.session_id, inputs, request_id=request_id)
    session.inputs += inputs
    if request_id:
        outputs = {name: result.outputs[name].tolist() for name in result.outputs.dtype.names or ()}
        session.requests.append(StoredRequest(request_id, inputs, result.step, outputs))


def _inputs(steps: int, seed: int) -> Inputs:
    inputs: Inputs = draw(1, steps, 2, seed=seed)[0].tolist()
    return inputs


def _ended(engine: Engine, version: int) -> list[StoredSession]:
    expired, deleted = (_create(engine, name, version, ttl_s=SHORT_TTL_S) for name in ("expired", "deleted"))
    _step(engine, deleted, _inputs(2, 1), "d")
    engine.sessions.delete(TENANT, deleted.session_id)
    expired.ended, deleted.ended = "expired", "deleted"
    return [expired, deleted]


def _swept_and_due(engine: Engine, version: int) -> list[StoredSession]:
    engine._sweep()
    due = _create(engine, "due", version, ttl_s=SHORT_TTL_S)
    _step(engine, due, _inputs(2, 2))
    due.ended = "due"
    return [due]


def _plain(engine: Engine, version: int) -> list[StoredSession]:
    fresh = _create(engine, "fresh", version)
    stepped = _create(engine, "stepped", version)
    for row in _inputs(5, 3):
        _step(engine, stepped, [row])
    retried = _create(engine, "retried", version)
    inputs = _inputs(6, 4)
    for request_id, start_at, end in (("a", 0, 1), ("b", 1, 3), ("c", 3, 6)):
        _step(engine, retried, inputs[start_at:end], request_id)
    seeded = _create(engine, "seeded", version, inputs=_inputs(4, 5))
    _step(engine, seeded, _inputs(1, 6))
    interval = _create(engine, "interval", version, interval=COVERAGE)
    for number, row in enumerate(_inputs(15, 7)):
        _step(engine, interval, [row], f"r{number}")
    of_kinds = [_create(engine, f"anomaly-{kind}", version, anomaly=kind) for kind in KINDS]
    for number, session in enumerate(of_kinds):
        for row in _inputs(110, 30 + number):
            _step(engine, session, [row])
    return [fresh, stepped, retried, seeded, interval, *of_kinds]


def _together(engine: Engine, version: int) -> list[StoredSession]:
    sessions = [_create(engine, f"together-{number}", version) for number in range(TOGETHER)]
    for turn in range(3):
        tasks: list[Any] = []
        for number, session in enumerate(sessions):
            request_id = f"t{turn}" if number % 2 else ""
            tasks.append(gevent.spawn(_step, engine, session, _inputs(1, 100 + 10 * number + turn), request_id))
        gevent.joinall(tasks, raise_error=True)
    return sessions


def _with_history(engine: Engine, version: int) -> list[StoredSession]:
    history, rewound = (_create(engine, name, version) for name in ("history", "rewound"))
    for number, row in enumerate(_inputs(7, 8)):
        _step(engine, history, [row], f"h{number}")
        _step(engine, rewound, [row], f"h{number}")
    engine.history.rewind(TENANT, rewound.session_id, 5)
    rewound.inputs = rewound.inputs[:5]
    for request in rewound.requests:
        request.outputs = None
    history.history = rewound.history = True
    return [history, rewound]


def _long(engine: Engine, version: int) -> list[StoredSession]:
    """A session of more inputs than two blocks of the recent statistics."""
    long = _create(engine, "long", version, interval=COVERAGE)
    _step(engine, long, _inputs(LONG, 10))
    return [long]


def _unscored(engine: Engine, version: int) -> list[StoredSession]:
    unscored = _create(engine, "unscored", version)
    for number, row in enumerate(_inputs(4, 9)):
        _step(engine, unscored, [row], f"u{number}")
    unscored.scored = False
    return [unscored]


def read_account(folder: Path) -> tuple[float, list[StoredSession]]:
    """Returns when the fixtures in a folder were written, in seconds since 1970 UTC, and the sessions in them."""
    account = json.loads((folder / ACCOUNT).read_text())
    sessions = [
        StoredSession(**{**content, "requests": [StoredRequest(**request) for request in content["requests"]]})
        for content in account["sessions"]
    ]
    return account["written_at"], sessions


def open_store(folder: Path, copy: Path) -> Path:
    """Unpacks the store of a folder of fixtures into `copy`, and returns that."""
    copy.mkdir()
    (copy / "data.mdb").write_bytes(lzma.decompress((folder / STORE).read_bytes()))
    return copy


def float32(outputs: dict[str, Any]) -> dict[str, bytes]:
    """Returns the bytes of outputs that were written to an account."""
    return {name: np.array(values, np.float32).tobytes() for name, values in outputs.items()}


if __name__ == "__main__":
    write(Path(sys.argv[1]))
