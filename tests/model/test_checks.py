"""The checks of a bundle find the faults that they are made for."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.checks import CheckError, check, plausible_inputs
from onward.model.inputs import InputArray
from onward.model.runner import Outputs, StepModel
from onward.model.state import Layout, State
from onward.training.config import Cell
from tests.helpers.random_bundles import make_bundle
from tests.helpers.recorded_bundles import FEATURES, draw

ULP = 2.0**-23
"""The relative size of a unit in the last place."""

Fault = Callable[[InputArray, NDArray[np.int32], Outputs, State], None]


class Faulty(StepModel):
    """A model with a fault: it spoils what each run returns."""

    fault: Fault

    def run(self, inputs: InputArray, lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        outputs, after = super().run(inputs, lengths, state)
        self.fault(inputs, lengths, outputs, after)
        return outputs, after


class Lossy(Layout):
    """A layout whose bytes lose the last bit of each row's first float."""

    def stack(self, rows: Sequence[bytes]) -> State:
        return super().stack([bytes([row[0] ^ 1]) + row[1:] for row in rows])


def faulty(tmp_path: Path, cell: Cell, fault: Fault) -> Faulty:
    good = make_bundle(tmp_path, cell=cell)
    model = Faulty(tmp_path / "tiny" / "1" / "model.onnx", good.manifest)
    model.fault = fault
    return model


def by_batch(size: float) -> Fault:
    def fault(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
        outputs["mean"] *= np.float32(1 + size if len(inputs) > 1 else 1)

    return fault


def by_chunk(size: float) -> Fault:
    def fault(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
        if len(inputs) == 1 and inputs.shape[1] == 64:
            outputs["mean"] *= np.float32(1 + size)

    return fault


def by_padding(size: float) -> Fault:
    def fault(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
        for row, length in enumerate(lengths):
            if np.abs(inputs[row, length:]).max(initial=0) > 1e5:  # a leak too small to be seen in ordinary values
                after["state_in"][row] *= np.float32(1 + size)

    return fault


def from_neighbour(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
    after[:] = np.roll(after, 1)


def nothing(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
    pass


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_a_sound_model_passes(cell: Cell, tmp_path: Path) -> None:
    """The fault harness itself adds nothing: without a fault every check passes, on drawn and on given sequences."""
    model = faulty(tmp_path, cell, nothing)
    check(model)
    check(model, draw(3, 50))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (by_batch(ULP), "a batch of 7 rows against row 0 alone: output 'mean' differs by up to"),
        (from_neighbour, "a batch of 7 rows against row 0 alone: "),
        (by_chunk(ULP), "chunks of 64 against single steps: "),
        (by_padding(ULP), "a ragged batch against row 0 of 28 steps alone: state 'state_in.h_0' differs"),
    ],
    ids=["batch", "neighbour", "chunk", "padding"],
)
def test_exact_models_are_held_to_the_last_bit(fault: Fault, message: str, tmp_path: Path) -> None:
    """A model that claims equal bits fails for a single unit in the last place, and the property is named."""
    with pytest.raises(CheckError, match=message):
        check(faulty(tmp_path, "lstm", fault))


@pytest.mark.parametrize(
    ("fault", "message"),
    [(by_batch, "a batch of 7 rows"), (by_chunk, "chunks of 64"), (by_padding, "a ragged batch")],
)
def test_other_models_are_held_to_the_tolerance(fault: Callable[[float], Fault], message: str, tmp_path: Path) -> None:
    """A plain RNN may differ by rounding and no more: a unit in the last place passes, three in 100,000 do not."""
    model = faulty(tmp_path, "rnn_tanh", fault(ULP))
    check(model)
    model.fault = fault(3e-5)
    with pytest.raises(CheckError, match=message):
        check(model)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_nan_is_a_difference(cell: Cell, tmp_path: Path) -> None:
    """NaN in a batch only is a difference from a number, for exact models and for others."""
    with pytest.raises(CheckError, match="a batch of 7 rows"):
        check(faulty(tmp_path, cell, by_batch(float("nan"))))


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_a_model_must_return_finite_numbers(cell: Cell, tmp_path: Path) -> None:
    """A model that returns NaN in every call agrees with itself, and is refused nevertheless."""

    def fault(inputs: InputArray, lengths: NDArray[np.int32], outputs: Outputs, after: State) -> None:
        outputs["std"] = np.nan

    with pytest.raises(CheckError, match="row 0 alone: output 'std' is not finite"):
        check(faulty(tmp_path, cell, fault))


def test_a_bit_lost_in_bytes_is_found(tmp_path: Path) -> None:
    """A state must come back from bytes whole: one bit of one number is enough to fail."""
    model = faulty(tmp_path, "lstm", nothing)
    model.layout = Lossy(model.manifest.state)
    with pytest.raises(CheckError, match="a state that went through bytes: state 'state_in' differs"):
        check(model)


def test_plausible_inputs_are_like_the_parity_inputs(tmp_path: Path) -> None:
    """Drawn sequences have the data's own mean and deviation, feature by feature, padding left out."""
    model = make_bundle(tmp_path, features=FEATURES)
    parity = model.manifest.parity
    real = np.concatenate([np.array(row)[:length] for row, length in zip(parity.inputs, parity.lengths, strict=True)])
    drawn = plausible_inputs(model, rows=50, steps=400, seed=3)
    assert drawn.shape == (50, 400, 3)
    assert drawn.dtype == np.float32
    error = np.abs(drawn.reshape(-1, 3).mean(axis=0) - real.mean(axis=0)) / real.std(axis=0)
    assert (error < 0.05).all()
    np.testing.assert_allclose(drawn.reshape(-1, 3).std(axis=0), real.std(axis=0), rtol=0.05)
    assert np.array_equal(drawn, plausible_inputs(model, rows=50, steps=400, seed=3))
    assert not np.array_equal(drawn, plausible_inputs(model, rows=50, steps=400, seed=4))
