"""The exported graph agrees with numpy in float64, and publishing is complete or leaves nothing behind."""

import hashlib
import itertools
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from onward.model.checks import CheckError
from onward.model.inputs import InputArray
from onward.model.manifest import Manifest
from onward.model.repository import open_all, open_bundle
from onward.model.runner import Outputs, StepModel
from onward.model.state import State
from onward.training.config import Cell
from onward.training.export import graph, onnx_ops
from onward.training.export.export_bundle import ExportError, export
from onward.training.export.publish import Measured
from onward.training.network.network import Network
from tests.helpers import numpy_cells, plain_onnxruntime
from tests.helpers.random_bundles import Options, make_bundle, make_network, readout
from tests.helpers.recorded_bundles import FEATURES, draw

CELLS: tuple[Cell, ...] = get_args(Cell)
TOLERANCE = 1e-5
LENGTHS = [50, 37, 1, 24]

KINDS = [
    (cell, layers, head, FEATURES[:features], FEATURES[:features])
    for cell, layers, features, head in itertools.product(CELLS, (1, 3), (1, 3), ("point", "gaussian"))
] + [
    ("lstm", 1, "gaussian", FEATURES, ("z", "x")),
    ("gru", 2, "point", FEATURES, ("y",)),
    ("rnn_tanh", 1, "gaussian", FEATURES, ("z", "y", "x")),
]

OPTIONS: list[tuple[Cell, int, str, tuple[str, ...], Options]] = [
    *((cell, 1, "student_t", FEATURES[:1], ()) for cell in CELLS),
    *((cell, 1, "quantiles", FEATURES[:1], ()) for cell in CELLS),
    ("lstm", 2, "student_t", FEATURES, (("residual", True),)),
    ("gru", 2, "quantiles", FEATURES, (("quantiles", (0.05, 0.25, 0.5, 0.9)), ("layer_norm", True))),
    ("gru", 1, "quantiles", FEATURES[:2], (("quantiles", (0.5,)),)),
    ("gru", 1, "point", FEATURES[:2], (("loss", "mse"),)),
    ("gru", 1, "point", FEATURES[:2], (("loss", "huber"),)),
    *((cell, 3, "gaussian", FEATURES[:2], (("residual", True), ("layer_norm", True))) for cell in CELLS),
    ("lstm", 2, "gaussian", FEATURES[:1], (("dropout", 0.5), ("locked_dropout", True), ("weight_drop", 0.5))),
]


@pytest.mark.parametrize(
    ("cell", "layers", "head", "features", "targets"),
    KINDS,
    ids=[
        f"{cell}-{layers}-{head}-{''.join(features)}-{''.join(targets)}"
        for cell, layers, head, features, targets in KINDS
    ],
)
def test_the_graph_computes_the_equations_of_the_cell(
    cell: Cell, layers: int, head: str, features: tuple[str, ...], targets: tuple[str, ...], tmp_path: Path
) -> None:
    """An export passes its proof and the checks; in plain ONNX Runtime, on a ragged batch of 50 steps in two calls, its
    graph computes the outputs and the state of the cell's equations in float64.
    """
    model = make_bundle(tmp_path, cell=cell, layers=layers, head=head, features=features, targets=targets)
    network = make_network(cell=cell, layers=layers, head=head, features=features, targets=targets)
    _compare_with_equations(model, network, tmp_path)


@pytest.mark.parametrize(("cell", "layers", "head", "features", "more"), OPTIONS, ids=str)
def test_the_graph_computes_the_equations_of_every_head_and_option(
    cell: Cell, layers: int, head: str, features: tuple[str, ...], more: Options, tmp_path: Path
) -> None:
    """The other heads and losses, residual connections and layer normalisation agree with their equations too."""
    model = make_bundle(tmp_path, cell=cell, layers=layers, head=head, features=features, more=more)
    network = make_network(cell=cell, layers=layers, head=head, features=features, more=more)
    _compare_with_equations(model, network, tmp_path)


def _compare_with_equations(model: StepModel, network: Network, tmp_path: Path) -> None:
    features = model.features
    network.eval()
    rows = draw(len(LENGTHS), 50, len(features), seed=5)
    expected = [numpy_cells.run(network, row[:length]) for row, length in zip(rows, LENGTHS, strict=True)]
    opened = plain_onnxruntime.session(tmp_path / "tiny" / "1" / "model.onnx")
    state, outputs = plain_onnxruntime.zeros(model.manifest, len(rows)), []
    for start in (0, 25):  # a row of 0 steps is not allowed: the second call has only the rows that continue
        active = [row for row, length in enumerate(LENGTHS) if length > start]
        steps = [min(25, LENGTHS[row] - start) for row in active]
        carried = {name: np.take(value, active, _batch_axis(model, name)) for name, value in state.items()}
        chunk = np.ascontiguousarray(rows[active, start : start + 25].transpose(1, 0, 2))
        predicted, carried = plain_onnxruntime.call(opened, chunk, steps, carried)
        outputs.append((active, predicted))
        for name, value in carried.items():
            index = (slice(None),) * _batch_axis(model, name) + (active,)
            state[name][index] = value
    for row, (expected_outputs, expected_state) in enumerate(expected):
        for name, value in expected_outputs.items():
            parts = [predicted[name][:, active.index(row)] for active, predicted in outputs if row in active]
            _close(name, np.concatenate(parts)[: LENGTHS[row]], value)
        assert list(state) == ["state_in"]
        end = 0
        for part in model.manifest.state[0].parts:
            start, end = end, end + part.size
            value = expected_state.pop(part.name)
            _close(part.name, state["state_in"][0, row, start:end].reshape(value.shape), value)
        assert (end, expected_state) == (state["state_in"].shape[-1], {})


def _batch_axis(model: StepModel, state: str) -> int:
    (pair,) = [pair for pair in model.manifest.state if pair.input == state]
    return pair.shape.index("batch")


def _close(name: str, actual: np.ndarray[Any, Any], expected: numpy_cells.Array) -> None:
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=allowed, err_msg=name)


def published(tmp_path: Path, *, cell: Cell = "lstm", version: str = "1", **options: Any) -> StepModel:
    network = make_network(cell=cell)
    sample = draw(7, 200)
    return export(network, bundle=tmp_path / "tiny" / version, sample=sample, **options)


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_wrong_graph_is_never_published(cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof refuses a graph with gates in torch's order, although the graph opens and runs."""
    torch_order = (0, 1, 2, 3) if cell == "lstm" else (0, 1, 2)
    monkeypatch.setitem(graph.GATES, cell, torch_order)
    with pytest.raises(ExportError, match=r"differs from the network by .* allowed"):
        published(tmp_path, cell=cell)
    assert files(tmp_path) == []


def test_an_error_in_any_constant_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof compares every number of the graph with the network: an error of a thousandth is found."""
    original = onnx_ops.Graph.constant
    network = make_network(cell="gru", layers=2)
    constants = graph.build(network, graph.contract(network)).graph.initializer
    bounds = {"number_-7.0", "number_7.0"}  # of the deviation, which has a test of its own
    numbers = sorted({constant.name for constant in constants if constant.data_type == onnx.TensorProto.FLOAT} - bounds)
    assert {"W_0", "R_1", "B_1", "scaling_mean", "number_0.9189385332046727", "target_log_std"} <= set(numbers)
    for name in numbers:

        def wrong(self: onnx_ops.Graph, added: str, value: Any, name: str = name) -> str:
            return original(self, added, (value * 1.001).astype(value.dtype) if added == name else value)

        monkeypatch.setattr(onnx_ops.Graph, "constant", wrong)
        with pytest.raises(ExportError, match="differs from the network"):
            export(network, bundle=tmp_path / "t" / "1", sample=draw(7, 200))
    assert files(tmp_path) == []


class InexactModel(StepModel):
    """A model whose outputs in a batch differ in the last bit, far within the tolerance of the proof."""

    def run(self, inputs: InputArray, lengths: NDArray[np.int32], state: State) -> tuple[Outputs, State]:
        outputs, after = super().run(inputs, lengths, state)
        if len(inputs) > 1:
            outputs["mean"] = np.nextafter(outputs["mean"], np.float32(np.inf))
        return outputs, after


def test_a_bundle_that_fails_the_checks_is_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Agreement with the network is not enough: a bundle must also pass the checks that the service relies on."""
    monkeypatch.setattr("onward.training.export.publish.StepModel", InexactModel)
    with pytest.raises(CheckError, match="a batch of 7 rows against row 0 alone: output 'mean' differs"):
        published(tmp_path)
    assert files(tmp_path) == []


def test_bounds_of_the_deviation_are_in_the_graph(tmp_path: Path) -> None:
    """The graph bounds the deviation of an overconfident network as training does."""
    network = make_network()
    with torch.no_grad():
        readout(network).bias[1] = -50.0
    model = export(network, bundle=tmp_path / "t" / "1", sample=draw(7, 200))
    outputs, _ = model.run_row(draw(1, 9)[0], model.layout.initial(1))
    np.testing.assert_allclose(outputs["std"][:, 0], 2.0 * np.exp(-7.0), rtol=1e-5)


def test_a_failed_measurement_publishes_nothing(tmp_path: Path) -> None:
    """A failure after the proof leaves no file behind, and earlier versions stay."""

    def measure(_: StepModel) -> Measured:
        raise CheckError("no")

    with pytest.raises(CheckError):
        published(tmp_path, measure=measure)
    assert files(tmp_path) == []
    published(tmp_path)
    before = files(tmp_path)
    assert before == ["tiny", "tiny/1", "tiny/1/manifest.json", "tiny/1/model.onnx"]
    with pytest.raises(CheckError):
        published(tmp_path, version="2", measure=measure)
    assert files(tmp_path) == before


def test_further_files_are_published_with_the_bundle(tmp_path: Path) -> None:
    """Further files are made from the finished manifest and appear with it; if making them fails, nothing appears."""

    def notes(manifest: Manifest) -> dict[str, str]:
        return {"note.txt": f"{manifest.metrics} \N{SNOWMAN} {manifest.provenance['proof']}"}

    model = published(tmp_path, measure=lambda _: Measured({"a": 1}, notes))
    note = (tmp_path / "tiny" / "1" / "note.txt").read_text(encoding="utf-8")
    assert note == f"{{'a': 1}} \N{SNOWMAN} {model.manifest.provenance['proof']}"
    before = files(tmp_path)

    def broken(_: Manifest) -> dict[str, str]:
        raise CheckError("no")

    with pytest.raises(CheckError):
        published(tmp_path, version="2", measure=lambda _: Measured({}, broken))
    assert files(tmp_path) == before


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    """Sessions keep using a version, so a version never changes."""
    published(tmp_path)
    file = tmp_path / "tiny" / "1" / "manifest.json"
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match="never overwritten"):
        published(tmp_path, description="another")
    assert file.read_bytes() == before
    published(tmp_path, version="2")
    assert sorted(open_all(tmp_path).models["tiny"]) == [1, 2]


def test_the_manifest_describes_the_bundle(tmp_path: Path) -> None:
    """An opened bundle has the description, provenance, proof and metrics of its export."""
    returned = published(
        tmp_path,
        description="a tide",
        provenance={"who": "us"},
        measure=lambda model: Measured({"read": list(model.features)}),
    )
    opened: Manifest = open_bundle(tmp_path / "tiny" / "1").manifest
    assert opened == returned.manifest
    assert (opened.description, opened.metrics) == ("a tide", {"read": ["x"]})
    provenance: Any = opened.provenance
    assert provenance["who"] == "us"
    assert 0 <= provenance["proof"]["largest_difference"] <= provenance["proof"]["allowed"] == 1e-5
    assert opened.sha256 == hashlib.sha256((tmp_path / "tiny" / "1" / "model.onnx").read_bytes()).hexdigest()
    assert [tensor.shape for tensor in opened.inputs] == [("time", "batch", 1)]


@pytest.mark.parametrize("cell", CELLS)
def test_only_gated_cells_claim_equal_bits(cell: Cell, tmp_path: Path) -> None:
    """A plain RNN differs in the last bit between batches, and its bundles do not claim equal bits."""
    assert make_bundle(tmp_path, cell=cell).manifest.exact is (cell in {"lstm", "gru"})


def test_the_first_prediction_is_the_training_marginal(tmp_path: Path) -> None:
    """A new session predicts the mean and deviation of the training part of each target."""
    model = make_bundle(tmp_path, features=FEATURES, targets=("z", "x"))
    state = model.layout.parts(model.layout.initial(1))
    np.testing.assert_allclose(state["state_in.mean"], [[30.0, 10.0]])
    np.testing.assert_allclose(state["state_in.std"], [[4.0, 2.0]])
    np.testing.assert_allclose(state["state_in.log_std"], np.log([[4.0, 2.0]]), rtol=1e-6)


def test_the_same_arguments_give_the_same_bundle(tmp_path: Path) -> None:
    """Exports are reproducible byte for byte, and another seed gives another model."""
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    assert first.manifest == second.manifest
    assert published(tmp_path).digest == first.digest
    assert make_bundle(tmp_path / "c", seed=1).digest != first.digest
