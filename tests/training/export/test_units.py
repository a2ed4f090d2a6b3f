"""The proof measures differences by what matters: the deviation of each target, and the rounding of its magnitude."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onward.model.repository import open_bundle
from onward.training.export import onnx_ops
from onward.training.export.export_bundle import ExportError, export
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network
from tests.helpers.random_bundles import make_network, readout
from tests.helpers.recorded_bundles import FEATURES, draw


def scaled(network: Network, factors: Any, offset: float = 0.0) -> tuple[Network, Any]:
    """Returns the network for data that are multiplied by the factors, and moved; and such data."""
    statistics = network.input_layer.statistics
    factors = torch.as_tensor(factors, dtype=torch.float32)
    network.input_layer.statistics = TrainingStatistics(statistics.mean * factors + offset, statistics.std * factors)
    return network, (draw(7, 200, len(statistics.mean)) * factors.numpy() + offset).astype(np.float32)


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
@pytest.mark.parametrize(("factor", "offset"), [(1e-12, 0.0), (1e-3, 0.0), (1.0, 5e4), (1e12, 0.0)])
@pytest.mark.parametrize("weights", [1.0, 1e-3])
def test_numbers_of_any_size_are_exported(
    weights: float, factor: float, offset: float, head: str, tmp_path: Path
) -> None:
    """Neither small nor large numbers, nor predictions that all are near the mean, fail a proof of a right graph."""
    network, sample = scaled(make_network(head=head, cell="rnn_tanh"), [factor], offset)
    with torch.no_grad():
        readout(network).weight *= weights
    export(network, bundle=tmp_path / "tiny" / "1", sample=sample)
    open_bundle(tmp_path / "tiny" / "1")


@pytest.mark.parametrize("name", ["readout_bias", "target_std", "target_mean", "scaling_mean"])
@pytest.mark.parametrize("factors", [[1e-12, 1.0, 1e-12], [1e9, 1e-6, 1e9]])
def test_an_error_in_small_numbers_is_found(
    name: str, factors: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error of a thousandth of a deviation is found in a small target, also beside a large one."""
    network, sample = scaled(make_network(features=FEATURES, targets=("x", "y", "z")), factors)
    original, column = onnx_ops.Graph.constant, int(np.argmin(factors))

    def wrong(self: onnx_ops.Graph, added: str, value: Any) -> str:
        if added == name:
            value = value.copy()
            error = 1.0 if name == "readout_bias" else network.input_layer.statistics.std[column].item()
            value[..., column] += 1e-3 * np.float32(error)
        return original(self, added, value)

    monkeypatch.setattr(onnx_ops.Graph, "constant", wrong)
    with pytest.raises(ExportError, match="differs from the network by"):
        export(network, bundle=tmp_path / "tiny" / "1", sample=sample)


def test_a_failed_proof_names_the_tensor_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what the tensor is to the user, then its name, and the unit of the difference."""
    original = onnx_ops.Graph.constant
    messages = {}
    for name in ("readout_bias", "R_1"):

        def wrong(self: onnx_ops.Graph, added: str, value: Any, name: str = name) -> str:
            return original(self, added, value + np.float32(0.01) if added == name else value)

        monkeypatch.setattr(onnx_ops.Graph, "constant", wrong)
        with pytest.raises(ExportError) as failed:
            export(make_network(cell="gru", layers=2), bundle=tmp_path / "tiny" / "1", sample=draw(7, 200))
        messages[name] = str(failed.value)
    assert messages["readout_bias"].startswith("the prediction of x (mean) differs from the network by 0.0")
    assert (
        " of the target's deviation, 1e-05 allowed (mean, in a batch of 1, row of 200 steps" in messages["readout_bias"]
    )


@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_short_data_are_proven_as_they_are(steps: int, tmp_path: Path) -> None:
    """The rows of the proof and of the parity vectors may have any lengths, and nothing is appended to them."""
    sample = [row[: max(1, steps - index)] for index, row in enumerate(draw(7, 200))]
    model = export(make_network(), bundle=tmp_path / "tiny" / "1", sample=sample)
    parity = open_bundle(tmp_path / "tiny" / "1").manifest.parity
    assert parity.lengths == [min(24, len(sample[0])), min(13, len(sample[1]))]
    proof: Any = model.manifest.provenance["proof"]
    assert proof["steps"] == steps
