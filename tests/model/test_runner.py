"""The runner against ONNX Runtime itself, and against the closed form."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from onward.model import ZOO
from onward.model.errors import BundleError
from onward.model.repository import open_bundle
from onward.model.runner import StepModel
from tests.helpers import plain_onnxruntime
from tests.helpers.numpy_cells import nll
from tests.helpers.random_bundles import make_bundle
from tests.helpers.recorded_bundles import FEATURES, draw, moments

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def pulse() -> StepModel:
    return open_bundle(ZOO / "pulse" / "1")


def beats(steps: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """(rows, steps, 1) stretches of the real recordings."""
    table = pl.read_csv(EXAMPLES / "pulse" / "pulse.csv")
    values = table["ppg"].to_numpy().astype(np.float32)
    return np.stack([values[start : start + steps, None] for start in (0, 5_000, 20_000, 70_000)])


def test_single_steps_are_the_bare_runtimes_bit_for_bit(pulse: StepModel) -> None:
    """The runner adds to, loses from and reorders nothing of ONNX Runtime's outputs, step by step on real data."""
    opened = plain_onnxruntime.session(ZOO / "pulse" / "1" / "model.onnx")
    for row in beats(300):
        state, expected_state = pulse.layout.initial(1), plain_onnxruntime.zeros(pulse.manifest, 1)
        for step in row:
            outputs, state = pulse.run_row(step[None], state)
            expected, expected_state = plain_onnxruntime.call(opened, step[None, None], [1], expected_state)
            for name, value in expected.items():
                assert outputs[name][0].tobytes() == value[0, 0].tobytes()
            for name, value in expected_state.items():
                rows = value if value.ndim == 2 else np.moveaxis(value, 1, 0)
                assert state[name].tobytes() == rows.tobytes()


def test_ragged_batches_are_the_bare_runtimes_single_steps(pulse: StepModel) -> None:
    """Rows of different lengths in one call give, bit for bit, what the bare runtime gives each alone step by step."""
    data, lengths = beats(120), [120, 1, 64, 7]
    outputs, state = pulse.run(data, np.array(lengths, np.int32), pulse.layout.initial(4))
    opened = plain_onnxruntime.session(ZOO / "pulse" / "1" / "model.onnx")
    for row, length in enumerate(lengths):
        expected_state = plain_onnxruntime.zeros(pulse.manifest, 1)
        for step in range(length):
            expected, expected_state = plain_onnxruntime.call(opened, data[row, step][None, None], [1], expected_state)
            for name, value in expected.items():
                assert outputs[name][row, step].tobytes() == value[0, 0].tobytes()
        for name, value in expected_state.items():
            assert state[name][row].tobytes() == value.tobytes()


def test_surprise_is_the_closed_form(pulse: StepModel) -> None:
    """An input's surprise is -log N(input; mean, std) of the prediction before; at first, of the training part."""
    data = beats(400)
    outputs, _ = pulse.run(data, np.full(4, 400, np.int32), pulse.layout.initial(4))
    table = pl.read_csv(EXAMPLES / "pulse" / "pulse.csv")
    parts = [part["ppg"].to_numpy() for _, part in table.group_by("recording", maintain_order=True)]
    train = np.concatenate([part[: len(part) - 2 * int(len(part) * 0.15)] for part in parts]).astype(np.float64)
    mean = np.concatenate([np.full((4, 1), train.mean()), outputs["mean"][:, :-1, 0]], axis=1)
    std = np.concatenate([np.full((4, 1), train.std()), outputs["std"][:, :-1, 0]], axis=1)
    expected = nll(data[..., 0].astype(np.float64), mean, std)
    np.testing.assert_allclose(outputs["surprise"], expected, rtol=1e-5, atol=1e-5)


def test_surprise_sums_over_the_targets_only(tmp_path: Path) -> None:
    """The surprises of several targets add up; features that are not predicted have none."""
    model = make_bundle(tmp_path, features=FEATURES, targets=("z", "x"))
    data = draw(1, 60, 3)
    outputs, _ = model.run_row(data[0], model.layout.initial(1))
    mean, std = (moment[[2, 0]] for moment in moments(3))
    means = np.concatenate([mean[None], outputs["mean"][:-1].astype(np.float64)])
    stds = np.concatenate([std[None], outputs["std"][:-1].astype(np.float64)])
    expected = nll(data[0][:, [2, 0]].astype(np.float64), means, stds).sum(axis=-1)
    np.testing.assert_allclose(outputs["surprise"], expected, rtol=1e-5, atol=1e-5)


def test_point_surprise_is_the_scaled_absolute_error(tmp_path: Path) -> None:
    """The surprise under a head without a distribution is the absolute error in training deviations."""
    model = make_bundle(tmp_path, head="point", features=FEATURES, targets=("y", "x"))
    data = draw(1, 60, 3)
    outputs, _ = model.run_row(data[0], model.layout.initial(1))
    mean, std = (moment[[1, 0]] for moment in moments(3))
    before = np.concatenate([mean[None], outputs["point"][:-1].astype(np.float64)])
    expected = (np.abs(data[0][:, [1, 0]] - before) / std).sum(axis=-1)
    np.testing.assert_allclose(outputs["surprise"], expected, rtol=1e-5, atol=1e-5)


def test_the_state_remembers_the_last_prediction(pulse: StepModel) -> None:
    """A session can be forecast from its state alone: it holds the last prediction, at first the marginal one."""
    lengths = np.array([50, 3, 1, 20], np.int32)
    outputs, state = pulse.run(beats(50), lengths, pulse.layout.initial(4))
    last = pulse.last_prediction(state)
    for row, length in enumerate(lengths):
        for name in ("mean", "std"):
            assert last[name][row].tobytes() == outputs[name][row, length - 1].tobytes()
    assert last["surprise"].tolist() == [0.0] * 4
    assert pulse.feedback(last).tolist() == last["mean"].tolist()
    fresh = pulse.last_prediction(pulse.layout.initial(2))
    inits = {pair.input: pair.init for pair in pulse.manifest.state}
    assert fresh["mean"].tolist() == [inits["last_mean_in"]] * 2
    assert fresh["std"].tolist() == [inits["last_std_in"]] * 2


@pytest.mark.parametrize("form", ["separate tensors", "one tensor"])
def test_the_last_prediction_is_read_from_either_form_of_state(form: str, pulse: StepModel, tmp_path: Path) -> None:
    """A bundle of before names a whole tensor for each output, and a new one a part; both are views of the state."""
    model = pulse if form == "separate tensors" else make_bundle(tmp_path)
    assert {stored.part is None for stored in model.manifest.head.last.values()} == {form == "separate tensors"}
    assert (len(model.manifest.state) == 1) is (form == "one tensor")
    _, state = model.run(beats(5), np.full(4, 5, np.int32), model.layout.initial(4))
    stored, last = model.stored_prediction(state), model.last_prediction(state)
    assert stored.dtype.names == model.manifest.head.outputs
    for name in model.manifest.head.outputs:
        assert stored[name].tobytes() == last[name].tobytes()
        assert np.shares_memory(stored[name], state)


def test_arguments_are_left_as_they_were(pulse: StepModel) -> None:
    """State is an argument and a result: a run changes neither the inputs nor the state it was given."""
    data, lengths = beats(20), np.array([20, 5, 20, 1], np.int32)
    _, state = pulse.run(data, lengths, pulse.layout.initial(4))
    original = data.tobytes(), lengths.tobytes(), state.tobytes()
    first = pulse.run(data, lengths, state)
    assert original == (data.tobytes(), lengths.tobytes(), state.tobytes())
    second = pulse.run(data, lengths, state)
    assert first[1].tobytes() == second[1].tobytes()


def test_threads_change_nothing(tmp_path: Path, pulse: StepModel) -> None:
    """The number of threads of a call changes no bit of an exact model's answer."""
    threaded = open_bundle(ZOO / "pulse" / "1", threads=2)
    lengths = np.full(4, 100, np.int32)
    first, second = (model.run(beats(100), lengths, model.layout.initial(4)) for model in (pulse, threaded))
    assert first[1].tobytes() == second[1].tobytes()
    assert first[0].tobytes() == second[0].tobytes()


def test_a_missing_graph_is_the_bundles_error(pulse: StepModel, tmp_path: Path) -> None:
    """The error of ONNX Runtime for a file is wrapped with the file's name."""
    with pytest.raises(BundleError, match="ONNX Runtime cannot open it"):
        StepModel(tmp_path / "model.onnx", pulse.manifest)


def test_steps_in_several_threads_share_no_memory(pulse: StepModel) -> None:
    """The memory that a step's tensors are bound to belongs to one call at a time; what a call returns stays."""
    rows = beats(300)

    def steps(row: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> list[tuple[bytes, bytes, bool]]:
        results, state = [], pulse.layout.initial(1).tobytes()
        for step in row:
            results.append(pulse.run_step(step[None], state))
            state = results[-1][1]
        return results

    expected = [steps(row) for row in rows]
    with ThreadPoolExecutor(len(rows)) as threads:
        assert list(threads.map(steps, rows)) == expected
