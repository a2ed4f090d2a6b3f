"""The worker's model calls compared with the model's own `run`, and the measured cost of calls."""

from pathlib import Path

import gevent
import numpy as np
import pytest

from onward.model.finite import finite
from onward.model.repository import open_all
from onward.model.runner import StepModel
from onward.service.engine.batching import cost
from onward.service.engine.batching.cost import MOST_CHUNK, MOST_ROWS, Cost
from onward.service.engine.batching.model_call import ModelCall, joined, padded, split
from tests.helpers.recorded_bundles import draw, make_bundle
from tests.helpers.reference_loop import ZOO


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_a_model_call_equals_run(tmp_path: Path, head: str) -> None:
    """Ragged and even batches of each head give the same bits, and states that the layout can read."""
    model = make_bundle(tmp_path, layers=2, head=head, features=("x", "y"))
    call, inputs = ModelCall(model), draw(5, 7, 2)
    for sizes in ([7, 7, 7, 7, 7], [1, 7, 3, 2, 5], [1, 1, 1, 1, 1]):
        before = model.layout.initial(5)
        lengths = np.array(sizes, np.int32)
        zeroed = inputs[:, : max(sizes)] * (np.arange(max(sizes)) < lengths[:, None])[..., None]
        expected, after = model.run(zeroed.astype(np.float32), lengths, before)
        rows = [inputs[row, :size] for row, size in enumerate(sizes)]
        outputs, states, sound = call(*padded(rows), before)
        assert sound == [True] * 5
        assert states.tobytes() == after.tobytes()
        for row, size in enumerate(sizes):
            assert outputs[row, :size].tobytes() == expected[row, :size].tobytes()
        assert split(states) == [row.tobytes() for row in after]


def test_only_rows_with_infinite_values_are_reported() -> None:
    """Infinite values in one row do not affect the other rows."""
    model = open_all(ZOO).models["pulse"][1]
    call = ModelCall(model)
    rows = [np.array([[value]], np.float32) for value in (500.0, 3e38, 501.0)]
    assert call(*padded(rows), model.layout.initial(3))[2] == [True, False, True]


def test_joined_is_concatenated() -> None:
    model = open_all(ZOO).models["pulse"][1]
    outputs, _, _ = ModelCall(model)(np.ones((1, 9, 1), np.float32), [9], model.layout.initial(1))
    assert joined([outputs[0, :4], outputs[0, 4:5], outputs[0, 5:]]).tobytes() == outputs[0].tobytes()
    assert finite(outputs)


def test_a_measured_cost_gives_limits_that_can_be_met() -> None:
    """A chunk has at least a step and a batch 64 rows; expensive steps make short chunks and small batches."""
    for versions in open_all(ZOO).models.values():
        measured = cost.measure(versions[1])
        assert 1 <= measured.chunk <= MOST_CHUNK
        assert measured.cells >= 64
        assert 0 < measured.seconds(1, 1) < measured.seconds(MOST_ROWS, MOST_CHUNK)
    expensive = Cost(call_s=1e-4, step_s=1e-3, row_s=1e-3)
    assert (expensive.chunk, expensive.cells) == (1, 64)
    cheap = Cost(call_s=1e-4, step_s=1e-6, row_s=1e-6)
    assert cheap.chunk == MOST_CHUNK
    assert cheap.cells > 10_000


def test_a_long_call_runs_outside_the_event_loop() -> None:
    """A short call runs in the event loop, a long one in a thread."""
    threads = gevent.get_hub().threadpool
    inline = gevent.getcurrent()
    assert cost.run(0.0, gevent.getcurrent) is inline
    assert cost.run(1.0, gevent.getcurrent) is not inline
    threads.join()


def test_models_run_at_once_have_their_own_calls(tmp_path: Path) -> None:
    """Calls of two models in turns give the same bits as each model alone."""
    models: list[StepModel] = [make_bundle(tmp_path, name=name, seed=seed) for seed, name in enumerate("ab")]
    calls = [ModelCall(model) for model in models]
    inputs = draw(2, 3)
    alone = [calls[n](inputs[n : n + 1], [3], models[n].layout.initial(1))[0].tobytes() for n in range(2)]
    again = [calls[n](inputs[n : n + 1], [3], models[n].layout.initial(1))[0].tobytes() for n in (1, 0)]
    assert alone == again[::-1]
