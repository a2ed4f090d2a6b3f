"""Stores and exported sessions of earlier versions are read by this one.

`write_fixtures.py` says how the fixtures are made. Each session goes on from its stored state exactly as if one process
had made all of its steps.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onward.model.runner import Outputs
from onward.model.scoring.anomaly import KINDS, AnomalyKind
from onward.model.scoring.layout import ERROR, StatisticsLayout
from onward.model.scoring.statistics import IntervalStatistics, RecentStatistics, TargetStatistics
from onward.service.engine.batching.batch_row import StepRequest, StepResult
from onward.service.engine.engine import Engine
from onward.service.errors import LateRequestError, RequestReusedError, SessionEndedError
from onward.service.store import record as records
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.recorded_bundles import draw
from tests.helpers.reference_loop import BareLoop, Steps
from tests.service.store.write_fixtures import (
    EXPORTS,
    FIXTURES,
    HISTORY,
    MODEL,
    MODELS,
    SECRET,
    TENANT,
    Inputs,
    StoredRequest,
    StoredSession,
    float32,
    open_store,
    read_account,
    start,
)

FORMATS = sorted(folder.name for folder in FIXTURES.glob("format-*"))
PRESENT = "format-7"
"""The folder whose sessions have the present layout of statistics. In the others, each anomaly is a rank."""
WITH_RECENT = {"format-6-recent", PRESENT}
"""The folders whose sessions have statistics over recent inputs."""
Scores = tuple[dict[str, TargetStatistics] | None, IntervalStatistics | None]
NEXT: Inputs = draw(1, 5, 2, seed=99)[0].tolist()
"""Inputs that each session consumes after what is stored."""


class Stored:
    """The fixtures of a format, and an engine on a copy of their store."""

    def __init__(self, folder: Path, copy: Path, history: int) -> None:
        written_at, self.sessions = read_account(folder)
        self.is_present, self.counts_recent = folder.name == PRESENT, folder.name in WITH_RECENT
        self.engine = start(open_store(folder, copy), lambda: written_at + 60, history=history)
        self.alive = [session for session in self.sessions if session.ended is None]


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest) -> Path:
    return FIXTURES / str(request.param)


@pytest.fixture(params=[0, HISTORY], ids=["without history", "with history"])
def stored(folder: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stored]:
    opened = Stored(folder, tmp_path / "copy", request.param)
    yield opened
    opened.engine.close()


def expected(session: StoredSession, more: Inputs) -> Steps:
    """Returns the outputs of an uninterrupted loop after `more`."""
    steps = BareLoop(MODELS / MODEL / str(session.version)).run(session.inputs + more)
    return {name: values[-len(more) :] for name, values in steps.items()}


def assert_equal(result: object, steps: Steps, rows: slice = slice(None)) -> None:
    assert isinstance(result, StepResult), result
    for name, values in steps.items():
        assert result.outputs[name].tobytes() == values[rows].tobytes(), name


def test_the_fixtures_are_of_the_formats_that_they_name() -> None:
    """The exports in a folder are of its format, and the present format has a folder."""
    for name in FORMATS:
        exports = list((FIXTURES / name / EXPORTS).iterdir())
        formats = {SignedTokens([SECRET]).verify(file.read_bytes())[3] for file in exports}
        assert formats == {int(name.split("-")[1])}
    assert f"format-{records.MAGIC[-1]}" in FORMATS


def test_the_present_layout_of_statistics_is_that_of_the_last_fixtures(folder: Path, tmp_path: Path) -> None:
    """The statistics of each scored session have the present layout in one folder, and an earlier one in the others."""
    stored, sizes, expected_sizes = Stored(folder, tmp_path / "copy", 0), set[int](), set[int]()
    for session in stored.alive:
        record = stored.engine.sessions.get(TENANT, session.session_id).record
        layout = StatisticsLayout(stored.engine.models.of(record), intervals=session.interval is not None)
        if session.scored and record.accuracy:  # format 4 has none before the first input
            sizes.add(len(record.accuracy))
            earlier = max(layout.earlier_sizes) if stored.counts_recent else min(layout.earlier_sizes)
            expected_sizes.add(layout.size if stored.is_present else earlier)
    stored.engine.close()
    assert sizes == expected_sizes
    assert len(sizes) == 2, "with and without intervals"


def test_stored_sessions_are_listed_and_counted(stored: Stored) -> None:
    sessions, after = stored.engine.sessions.page(TENANT, "", 1000, None)
    assert after is None
    assert [(session.session_id, session.record.step) for session in sessions] == sorted(
        (session.session_id, len(session.inputs)) for session in stored.alive
    )
    for version in {session.version for session in stored.sessions}:
        count = sum(session.version == version and session.ended in (None, "due") for session in stored.sessions)
        assert stored.engine.live_sessions()[MODEL, version] == count


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_stored_sessions_go_on(stored: Stored, together: bool) -> None:
    """Next steps have the bits of a bare loop, and the scores of a session that made all its steps now."""
    steps, found = stored.engine.steps, defaultdict[str, list[Outputs]](list)
    expected_steps = [expected(session, NEXT) for session in stored.alive]
    default: AnomalyKind | None = None if stored.is_present else "rank"
    twins = [_twin(stored.engine, session, session.anomaly or default) for session in stored.alive]
    for number, inputs in enumerate(NEXT):
        if together:
            requests = [StepRequest(session.session_id, [inputs]) for session in stored.alive]
            results = steps.step_many(TENANT, requests)
        else:
            results = [steps.step(TENANT, session.session_id, [inputs]) for session in stored.alive]
        for session, twin, result, bare in zip(stored.alive, twins, results, expected_steps, strict=True):
            assert_equal(result, bare, slice(number, number + 1))
            assert isinstance(result, StepResult)
            found[session.session_id].append(result.outputs)
            assert result.step == len(session.inputs) + number + 1
            twin_result = steps.step("twins", twin, [inputs])
            if session.scored:
                assert result.outputs.tobytes() == twin_result.outputs.tobytes(), session
    for session, twin in zip(stored.alive, twins, strict=True):
        record, twin_record = (
            stored.engine.sessions.get(tenant, name).record
            for tenant, name in ((TENANT, session.session_id), ("twins", twin))
        )
        assert record.surprise == twin_record.surprise
        if session.scored and session.inputs:  # others may have no statistics yet, and so begin with the default
            assert stored.engine.anomaly_kind(record) == (session.anomaly or default or KINDS[0])
        if session.scored and stored.counts_recent:
            assert record.accuracy == twin_record.accuracy
        elif session.scored:
            assert_scores_go_on(stored.engine.accuracy(record), stored.engine.accuracy(twin_record))
            targets, _ = stored.engine.accuracy(record)
            for column, target in enumerate(targets or {}):
                error = np.concatenate(found[session.session_id])[ERROR][:, column].astype(np.float64)
                assert targets is not None
                assert targets[target].recent.inputs == len(NEXT)
                assert targets[target].recent.mae == pytest.approx(np.abs(error).mean(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(FORMATS) - WITH_RECENT))
def test_statistics_of_earlier_versions_have_no_recent_inputs(name: str, tmp_path: Path) -> None:
    """Sessions that were stored before there were recent statistics have those of the whole session alone."""
    stored = Stored(FIXTURES / name, tmp_path / "copy", 0)
    for session in stored.alive:
        targets, intervals = stored.engine.accuracy(stored.engine.sessions.get(TENANT, session.session_id).record)
        for target in (targets or {}).values():
            assert (target.inputs, target.recent) == (len(session.inputs), RecentStatistics(0))
        if session.interval is not None:
            assert intervals is not None
            assert set(intervals.recent_coverage.values()) == {None}
    stored.engine.close()


def assert_scores_go_on(scores: Scores, twin: Scores) -> None:
    """Asserts equal statistics over whole sessions. Those of the stored session had no recent inputs before."""
    (targets, intervals), (twin_targets, twin_intervals) = scores, twin
    assert targets is not None
    assert twin_targets is not None
    assert targets.keys() == twin_targets.keys()
    for target, twin_target in zip(targets.values(), twin_targets.values(), strict=True):
        assert target[:-1] == pytest.approx(twin_target[:-1])
    assert (intervals is None) == (twin_intervals is None)
    if intervals and twin_intervals:
        assert intervals[:-1] == twin_intervals[:-1]


def test_retries_of_stored_requests_get_their_answers(stored: Stored) -> None:
    """A retry does not advance its session. It is refused if its request was undone, or had other inputs."""
    for session in stored.alive:
        _assert_retries(stored.engine, session.session_id, session.requests)
        assert stored.engine.sessions.get(TENANT, session.session_id).record.step == len(session.inputs)


def test_stored_sessions_stay_ended(stored: Stored) -> None:
    """A step gets the reason, before and after a sweep, and their ids are free for new sessions."""
    ended = [session for session in stored.sessions if session.ended]
    for _ in range(2):
        for session in ended:
            with pytest.raises(SessionEndedError) as error:
                stored.engine.steps.step(TENANT, session.session_id, NEXT)
            assert error.value.reason == ("deleted" if session.ended == "deleted" else "expired")
        stored.engine._sweep()
    for session in ended:
        stored.engine.create(TENANT, MODEL, version=session.version, session_id=session.session_id)
        result = stored.engine.steps.step(TENANT, session.session_id, NEXT)
        assert_equal(result, BareLoop(MODELS / MODEL / str(session.version)).run(NEXT))


def test_stored_sessions_are_rewound_and_migrated(stored: Stored) -> None:
    """The stored history leads back to the stored steps, and to the same session on another version of the model."""
    with_history = [session for session in stored.alive if session.history]
    assert with_history
    for session in with_history:
        step = len(session.inputs) - 2
        stored.engine.history.rewind(TENANT, session.session_id, step)
        rewound = StoredSession(session.session_id, session.version, session.inputs[:step])
        assert_equal(stored.engine.steps.step(TENANT, session.session_id, NEXT), expected(rewound, NEXT))
        if session.version == 1 and stored.engine.limits.history:
            _, replayed = stored.engine.history.migrate(TENANT, session.session_id, 2)
            migrated = StoredSession(session.session_id, 2, (rewound.inputs + NEXT)[-replayed:])
            assert replayed >= HISTORY
            assert_equal(stored.engine.steps.step(TENANT, session.session_id, NEXT), expected(migrated, NEXT))


def test_exported_sessions_are_restored(stored: Stored, folder: Path) -> None:
    """A restored session goes on and answers retries, as a stored one does."""
    exported = [session for session in stored.alive if (folder / EXPORTS / session.session_id).exists()]
    assert exported
    for session in exported:
        signed = (folder / EXPORTS / session.session_id).read_bytes()
        stored.engine.sessions.delete(TENANT, session.session_id)
        restored = stored.engine.transfer.restore(TENANT, session.session_id, signed)
        assert restored.record.step == len(session.inputs)
        _assert_retries(stored.engine, session.session_id, session.requests)
        assert_equal(stored.engine.steps.step(TENANT, session.session_id, NEXT), expected(session, NEXT))


def _twin(engine: Engine, session: StoredSession, anomaly: AnomalyKind | None) -> str:
    """Creates a session that takes all stored inputs now, one by one, and returns its id."""
    engine.create(
        "twins",
        MODEL,
        version=session.version,
        session_id=session.session_id,
        interval=session.interval,
        anomaly=anomaly,
    )
    for inputs in session.inputs:
        engine.steps.step("twins", session.session_id, [inputs])
    return session.session_id


def _assert_retries(engine: Engine, session_id: str, requests: list[StoredRequest]) -> None:
    for request in requests:
        if request.outputs is None:
            with pytest.raises(LateRequestError):
                engine.steps.step(TENANT, session_id, request.inputs, request_id=request.request_id)
            continue
        result = engine.steps.step(TENANT, session_id, request.inputs, request_id=request.request_id)
        assert result.step == request.step
        assert {name: result.outputs[name].tobytes() for name in request.outputs} == float32(request.outputs)
        assert result.outputs.dtype.names == tuple(request.outputs)
        with pytest.raises(RequestReusedError):
            engine.steps.step(TENANT, session_id, NEXT, request_id=request.request_id)
