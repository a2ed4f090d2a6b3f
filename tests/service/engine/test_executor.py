"""A step gives the same bits in every way of execution: alone, in plain Python, as columns, or as a longer row."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pytest

from onward.model.repository import Opened
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.conformal import BLOCK
from onward.model.scoring.layout import Sum
from onward.model.state import State
from onward.model.step_buffers import StepBuffers
from onward.service.engine.batching import executor
from onward.service.engine.batching.batch_row import StepResult
from onward.service.engine.engine import Engine, Limits
from onward.service.errors import NotFiniteError
from onward.service.store import record as records
from onward.service.store.contract import Change
from onward.service.store.lmdb import LmdbStore
from onward.service.store.record import Record
from tests.contracts.test_stores import in_another_process
from tests.helpers.recorded_bundles import category, draw, make_bundle, make_feature_bundle
from tests.service.conftest import Clock

T = "tenant"
SESSIONS, ROUNDS = 12, 4
WAYS = {"alone": 10**9, "rows": 10**9, "columns": 1, "longer rows": 10**9}
"""The numbers of rows from which a batch is executed as columns."""


SPOILED = 666.0
"""Inputs after which the state of the model is not finite, see `_spoil`."""


class Sums:
    """An observer that adds what is reported."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}

    def watched(self, model: StepModel, sums: Sequence[Sum]) -> Callable[[Sequence[float]], None]:
        def add(amounts: Sequence[float]) -> None:
            for total, amount in zip(sums, amounts, strict=True):
                name = f"{total.name} {total.target}"
                self.totals[name] = self.totals.get(name, 0.0) + amount

        return add

    def damaged(self) -> None:
        raise AssertionError


class Way:
    """An engine that executes steps in one way."""

    def __init__(self, name: str, model: StepModel, folder: Path, clock: Clock, *, accuracy: bool) -> None:
        self.name, self.store, self.sums = name, LmdbStore(folder), Sums()
        opened = Opened({"tiny": {1: model}}, [])
        limits = Limits(accuracy=accuracy)
        self.engine = Engine(opened, self.store, limits, observer=self.sums, clock=clock, monotonic=clock)
        self.executor = self.engine._batchers.by_model[model].executor
        if name == "longer rows":
            vars(self.executor._admission)["_plain_sizes"] = None
        self.engine.start(flush_s=1e6, sweep_s=1e6)

    def step(self, rows: Sequence[Any], request_id: str) -> list[StepResult | Exception]:
        """Steps each session by its row; every second session with a request id."""
        tasks: list[Any] = []
        for number, row in enumerate(rows):
            tasks.append(gevent.spawn(self._step, number, row, request_id if number % 2 else ""))
            if self.name == "alone":
                tasks[-1].join()
        gevent.joinall(tasks)
        return [task.value for task in tasks]

    def _step(self, number: int, row: Any, request_id: str) -> StepResult | Exception:
        try:
            return self.engine.steps.step(T, f"s{number}", [row], request_id=request_id, model="tiny")
        except NotFiniteError as error:
            return error

    def records(self) -> list[Record]:
        loaded = self.store.load_many([records.key(T, f"s{number}") for number in range(SESSIONS)])
        return [record for record in loaded if isinstance(record, Record)]

    def overtake(self, numbers: Sequence[int]) -> None:
        """Has another process commit these sessions once more, as they are."""
        before = self.records()
        changes = [
            Change(records.key(T, f"s{number}"), before[number].revision, before[number].replace(revision=number))
            for number in numbers
        ]
        assert all(in_another_process(self.store).commit_many(changes))


@pytest.fixture(params=["point", "gaussian", "student_t", "quantiles", "not scored"])
def ways(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[list[Way]]:
    """Engines that execute steps in each way, once MIN_COLUMN_ROWS is that of the way."""
    is_scored = request.param != "not scored"
    head = request.param if is_scored else "gaussian"
    model = make_bundle(tmp_path / "models", features=("x", "y", "z"), targets=("z", "x"), head=head)
    started = [Way(name, model, tmp_path / name, clock, accuracy=is_scored) for name in WAYS]
    yield started
    for way in started:
        way.engine.close()


def test_every_way_gives_the_same_bits(ways: list[Way], clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results, records and the counted sums are equal, also if some of the rows start again."""
    inputs = draw(SESSIONS, ROUNDS, 3, seed=3)
    for way in ways:
        for number in range(2, SESSIONS):  # the first step creates the other two
            way.engine.create(T, "tiny", session_id=f"s{number}", ttl_s=100.0 + number)
    for turn in range(ROUNDS):
        clock.now += 1
        found = []
        for way in ways:
            monkeypatch.setattr(executor, "MIN_COLUMN_ROWS", WAYS[way.name])
            if turn == 2:
                way.overtake([1, 4, 11])
            revisions = {record.revision for record in way.records()}
            results = way.step(inputs[:, turn].tolist(), f"r{turn}")
            stored = way.records()
            assert len(stored) == len({record.revision for record in stored} - revisions) == SESSIONS
            for number, (result, record) in enumerate(zip(results, stored, strict=True)):
                assert isinstance(result, StepResult)
                assert (result.step, result.created) == (turn + 1, turn == 0 and number < 2)
                assert record.expires_at == clock.now + record.ttl_s
                assert records.from_bytes(record.to_bytes()) == record
            outputs = [result.outputs.tobytes() for result in results if isinstance(result, StepResult)]
            found.append((outputs, [record.replace(revision=0).to_bytes() for record in stored]))
        for way, way_found in zip(ways, found, strict=True):
            assert way_found == found[0], way.name
    for way in ways:
        way.executor.count()
        assert way.sums.totals == pytest.approx(ways[0].sums.totals, rel=1e-6), way.name
        for number in range(1, SESSIONS, 2):  # a retry is answered in every way
            again = way.engine.steps.step(T, f"s{number}", inputs[number, 1:2].tolist(), request_id="r1")
            assert again.step == 2


def test_every_way_ends_a_block_of_inputs_alike(ways: list[Way], monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are equal while some of the sessions begin a new block of recent inputs."""
    inputs = draw(SESSIONS, 2 * BLOCK + ROUNDS, 3, seed=5)
    before = [(1 + number % 2) * BLOCK - 1 - number % ROUNDS for number in range(SESSIONS)]
    for way in ways:
        for number, seeded in enumerate(before):
            way.engine.create(T, "tiny", session_id=f"s{number}", inputs=inputs[number, :seeded].tolist())
    for turn in range(ROUNDS):
        stored = []
        for way in ways:
            monkeypatch.setattr(executor, "MIN_COLUMN_ROWS", WAYS[way.name])
            way.step([inputs[number, seeded + turn].tolist() for number, seeded in enumerate(before)], f"r{turn}")
            stored.append([(record.step, record.accuracy) for record in way.records()])
        assert [step for step, _ in stored[0]] == [seeded + turn + 1 for seeded in before]
        assert stored == [stored[0]] * len(ways)


def test_unknown_categories_are_hits_in_no_way(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input that is not listed is not a hit, although the index of all such inputs is often predicted."""
    features, rounds = [category("c", 4, unknown=True)], 20
    model = make_feature_bundle(
        tmp_path / "models", features, "c", head="categorical", counts=[2, 1, 1, 1, 4], units=12
    )
    drawn = np.random.default_rng(0).choice(5, (SESSIONS, rounds), p=[0.3, 0.1, 0.1, 0.1, 0.4])
    stored = []
    for name, rows in WAYS.items():
        way = Way(name, model, tmp_path / name, clock, accuracy=True)
        monkeypatch.setattr(executor, "MIN_COLUMN_ROWS", rows)
        outputs = [model.last_prediction(model.layout.initial(SESSIONS))["top"][:, 0]]
        for turn in range(rounds):
            results = way.step([f"c{index}" if index < 4 else "another" for index in drawn[:, turn]], f"r{turn}")
            outputs.append(
                np.array([result.outputs["top"][0, 0] for result in results if isinstance(result, StepResult)])
            )
        is_hit = (predicted := np.stack(outputs[:-1], axis=1)) == drawn
        assert (is_hit & (drawn == 4)).any()
        assert (is_hit & (drawn < 4)).any()
        for number, record in enumerate(way.records()):
            targets, _ = way.engine.accuracy(record)
            assert targets is not None
            assert targets["c"].hits == ((predicted == drawn) & (drawn < 4))[number].mean()
        stored.append([record.accuracy for record in way.records()])
        way.engine.close()
    assert stored == [stored[0]] * len(WAYS)


@pytest.mark.parametrize("failing", [{0}, {3, 7}, set(range(SESSIONS))], ids=["first", "some", "all"])
def test_a_row_that_is_not_finite_is_refused_in_every_way(
    ways: list[Way], monkeypatch: pytest.MonkeyPatch, failing: set[int]
) -> None:
    """The row leaves its session as it was, and the rows beside it make their step."""
    inputs = draw(SESSIONS, 2, 3, seed=4)
    inputs[list(failing), 1] = SPOILED
    _spoil(monkeypatch)
    for way in ways:
        monkeypatch.setattr(executor, "MIN_COLUMN_ROWS", WAYS[way.name])
        way.step(inputs[:, 0].tolist(), "first")
        before = way.records()
        results, after = way.step(inputs[:, 1].tolist(), "second"), way.records()
        for number, result in enumerate(results):
            if number in failing:
                assert isinstance(result, NotFiniteError), (way.name, result)
                assert after[number] == before[number]
            else:
                assert isinstance(result, StepResult)
                assert after[number].step == 2
        found = [record.replace(revision=0).to_bytes() for record in after]
        if way is ways[0]:
            expected = found
        assert found == expected, way.name


def _spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has models give a state that is not finite after the inputs SPOILED."""
    run, run_step = StepModel.run, StepBuffers.run

    def spoiled_run(self: StepModel, inputs: Any, lengths: Any, state: State) -> tuple[Outputs, State]:
        outputs, after = run(self, inputs, lengths, state)
        for number in np.flatnonzero(inputs[:, 0, 0] == SPOILED):
            after[number : number + 1] = np.frombuffer(b"\xff" * after.itemsize, after.dtype)
        return outputs, after

    def spoiled_step(self: StepBuffers, inputs: Any, state: bytes) -> tuple[bytes, bytes]:
        outputs, after = run_step(self, inputs, state)
        return outputs, b"\xff" * len(after) if inputs[0, 0] == SPOILED else after

    monkeypatch.setattr(StepModel, "run", spoiled_run)
    monkeypatch.setattr(StepBuffers, "run", spoiled_step)
