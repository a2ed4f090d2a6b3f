"""Rewinds and migrations to another version, compared with a bare loop that did neither."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.model.manifest import Feature
from onward.model.repository import open_all
from onward.model.scoring.surprise import SurpriseMeans, update_means
from onward.service.engine.batching.batch_row import StepRequest
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.sessions import history
from onward.service.engine.sessions.history import Point
from onward.service.errors import HistoryError, InvalidInputError, LateRequestError, ModelGoneError, UnknownVersionError
from onward.service.store.lmdb import LmdbStore
from tests.helpers.analytic_models import ar1
from tests.helpers.recorded_bundles import make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse

T = "tenant"
KEEP = 20
INPUTS = pulse(400)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that keeps 20 steps of each session."""
    started = Engine(open_all(ZOO), LmdbStore(tmp_path_factory.mktemp("store")), Limits(history=KEEP))
    started.start()
    yield started
    started.close()


@settings(max_examples=25, deadline=None)
@given(st.data(), st.integers(0, 90), st.lists(st.integers(1, 90), min_size=1, max_size=6))
def test_a_session_can_be_rewound_to_any_of_the_last_steps(
    engine: Engine, data: st.DataObject, seed: int, calls: list[int]
) -> None:
    """A rewind after calls of any lengths leaves everything, to the bit, as if the later steps had never been."""
    session, _ = engine.create(T, "pulse", inputs=INPUTS[:seed] or None)
    name, step = session.session_id, seed
    for length in calls:
        engine.steps.step(T, name, INPUTS[step % 200 : step % 200 + length])
        step += length
    consumed = list(INPUTS[:seed])
    at = seed
    for length in calls:
        consumed += INPUTS[at % 200 : at % 200 + length]
        at += length
    back = data.draw(st.integers(max(seed, step - KEEP), step))
    expected = BareLoop(ZOO / "pulse/1").run([*consumed[:back], *INPUTS[300:310]])
    rewound = engine.history.rewind(T, name, back).record
    assert rewound.step == back
    assert rewound.surprise[0] == back
    again = engine.steps.step(T, name, INPUTS[300:310])
    assert (again.step, again.outputs["mean"].tobytes()) == (back + 10, expected["mean"][back:].tobytes())
    stepped, _ = engine.create(T, "pulse", inputs=[*consumed[:back], *INPUTS[300:310]])
    assert engine.sessions.get(T, name).record.surprise == pytest.approx(stepped.record.surprise)
    stored = history.from_bytes(engine.sessions.get(T, name).record.history)
    assert len(stored.points) <= 3
    assert len(stored.inputs) <= 2 * KEEP + 64


def test_rewinds_to_unavailable_steps_are_refused(engine: Engine) -> None:
    """Steps before the history or ahead are refused, and a retry of a request that was undone is not applied."""
    engine.create(T, "pulse", session_id="a")
    for step in range(100):
        engine.steps.step(T, "a", INPUTS[step : step + 1], request_id=f"r{step}")
    for step in (0, 30):
        with pytest.raises(HistoryError, match="ONWARD_HISTORY"):
            engine.history.rewind(T, "a", step)
    with pytest.raises(InvalidInputError):
        engine.history.rewind(T, "a", 101)
    assert engine.history.rewind(T, "a", 100).record.step == 100
    assert engine.history.rewind(T, "a", 90).record.step == 90
    with pytest.raises(LateRequestError):
        engine.steps.step(T, "a", INPUTS[99:100], request_id="r99")
    assert engine.history.rewind(T, "a", 85).record.step == 85


def test_rewinds_need_a_history(tmp_path: Path) -> None:
    """No history is stored by default, and rewinds and migrations are refused."""
    plain = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    plain.start()
    plain.create(T, "pulse", session_id="a", inputs=INPUTS[:5])
    assert plain.sessions.get(T, "a").record.history == b""
    for operation in (lambda: plain.history.rewind(T, "a", 4), lambda: plain.history.migrate(T, "a", None)):
        with pytest.raises(HistoryError):
            operation()
    plain.close()


@pytest.mark.parametrize("sessions", [1, 12])
def test_a_step_of_a_service_without_history_ends_that_of_a_session(tmp_path: Path, sessions: int) -> None:
    """The history would lack that step, so that a rewind would lead elsewhere."""
    names = [f"s{number}" for number in range(sessions)]
    for keep in (KEEP, 0):
        engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(history=keep))
        engine.start()
        for name in names if keep else ():
            engine.create(T, "pulse", session_id=name)
        results = engine.steps.step_many(T, [StepRequest(name, INPUTS[:1], None, f"r{keep}") for name in names])
        assert not [result for result in results if isinstance(result, Exception)]
        if not keep:
            for name in names:
                assert not engine.sessions.get(T, name).record.history
                with pytest.raises(HistoryError):
                    engine.history.rewind(T, name, 1)
        engine.close()


def test_a_session_moves_to_another_version(tmp_path: Path) -> None:
    """The history is replayed from the new version's initial state; also if the old version is no longer served."""
    for version, units in ((1, 8), (2, 9)):
        make_bundle(tmp_path / "models", name="m", units=units, features=("x",))
        if version == 1:
            shutil.move(tmp_path / "models/m/1", tmp_path / "one")
    shutil.move(tmp_path / "models/m/1", tmp_path / "models/m/2")
    shutil.move(tmp_path / "one", tmp_path / "models/m/1")
    manifest = tmp_path / "models/m/2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    both = open_all(tmp_path / "models")
    assert not both.refused
    engine = Engine(both, LmdbStore(tmp_path / "store"), Limits(history=KEEP))
    engine.start()
    rows = [[value / 100] for (value,) in INPUTS[:70]]
    for name, steps in (("young", 15), ("old", 70)):
        engine.create(T, "m", version=1, session_id=name)
        for step in range(steps):
            engine.steps.step(T, name, rows[step : step + 1])
    with pytest.raises(UnknownVersionError):
        engine.history.migrate(T, "young", 3)
    session, replayed = engine.history.migrate(T, "young", None)
    assert (session.record.ref.version, session.record.step, replayed) == (2, 15, 15)
    expected = BareLoop(tmp_path / "models/m/2").run(rows[:16])
    assert engine.steps.step(T, "young", rows[15:16]).outputs["mean"].tobytes() == expected["mean"][15:].tobytes()
    assert engine.live_sessions() == {("m", 1): 1, ("m", 2): 1}
    engine.close()
    del both.models["m"][1]
    engine = Engine(both, LmdbStore(tmp_path / "store"), Limits(history=KEEP))
    engine.start()
    with pytest.raises(ModelGoneError):
        engine.steps.step(T, "old", rows[:1])
    session, replayed = engine.history.migrate(T, "old", 2)
    assert session.record.step == 70
    assert KEEP <= replayed <= 2 * KEEP + 1
    expected = BareLoop(tmp_path / "models/m/2").run([*rows[70 - replayed :], rows[0]])
    assert engine.steps.step(T, "old", rows[:1]).outputs["mean"].tobytes() == expected["mean"][-1:].tobytes()
    engine.close()


def test_other_features_cannot_be_replayed(engine: Engine) -> None:
    """A version with other features is refused, and the session does not move."""
    engine.create(T, "pulse", session_id="b", inputs=INPUTS[:3])
    features = engine.models.named("pulse").manifest.features
    renamed = [feature.model_copy(update={"name": "other"}) for feature in features]
    assert history.meaning(features) != history.meaning(renamed)
    (record,) = engine._store.load_many([b"tenant/b"])
    foreign = history.from_bytes(record.history)._replace(features=history.meaning(renamed))  # type: ignore[union-attr]
    assert engine.sessions.replace(T, "b", record, record.replace(history=foreign.to_bytes()))  # type: ignore[arg-type,union-attr]
    with pytest.raises(HistoryError, match="other features"):
        engine.history.migrate(T, "b", None)
    assert engine.sessions.get(T, "b").record.step == 3


def test_a_history_comes_back_from_its_bytes() -> None:
    points = (Point(3, (3, 0.5, 0.25), b"state"), Point(9, (0, 0.0, 0.0), b""))
    features = open_all(ZOO).models["weather"][1].manifest.features
    stored = history.begun(features, points[0], None)._replace(points=points)
    again = history.from_bytes(stored.to_bytes())
    assert (again.features, again.points, again.inputs.shape) == (stored.features, points, (0, 4))


def test_a_long_call_counts_each_surprise_once_for_its_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work does not grow with the number of points: counting from the start for each would block the worker."""
    counted = []

    def counting(before: SurpriseMeans, surprised: list[float]) -> SurpriseMeans:
        counted.append(len(surprised))
        return update_means(before, surprised)

    monkeypatch.setattr("onward.service.engine.batching.executor.update_means", counting)
    engine = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits(history=100))
    engine.start()
    engine.create(T, "pulse", session_id="s")
    engine.steps.step(T, "s", [500.0] * 5000)
    assert sum(counted) <= 2 * 5000
    engine.close()


def test_a_history_keeps_the_precision_of_its_model(tmp_path: Path) -> None:
    """The inputs of a model in double precision are replayed as they were; those of single precision, converted."""
    values = [1_700_000_000 + number / 1024 for number in range(8)]
    for version, dtype in ((1, "float32"), (2, "float64")):
        ar1(tmp_path / "models", 1.0, 1.0, name="walk", version=version, dtype=dtype)
    engine = Engine(open_all(tmp_path / "models"), LmdbStore(tmp_path), Limits(history=KEEP))
    engine.start()
    for version, expected in ((2, values), (1, np.array(values, np.float32).tolist())):
        name = f"of-{version}"
        engine.create(T, "walk", version=version, session_id=name, inputs=values[:2])
        for value in values[2:]:
            engine.steps.step(T, name, [value])
        assert history.from_bytes(engine.sessions.get(T, name).record.history).inputs[:, 0].tolist() == expected
        engine.history.rewind(T, name, 5)
        engine.history.migrate(T, name, 2)
        step = engine.steps.step(T, name, [values[0]])
        assert step.outputs["mean"].tolist() == [[values[0]]]
        past = history.from_bytes(engine.sessions.get(T, name).record.history)
        assert past.inputs[:, 0].tolist() == [*expected[:5], values[0]]
    engine.close()


def test_a_lead_changes_what_inputs_mean_and_its_absence_does_not() -> None:
    """A history is not replayed by a model that reads the plan of another step; earlier records keep their digest."""
    own = (Feature(name="y"), Feature(name="plan", role="known"))
    ahead = (Feature(name="y"), Feature(name="plan", role="known", lead=1))
    assert history.meaning(own).hex() == "d762801d00b4f51a"
    assert history.meaning(own) != history.meaning(ahead)
