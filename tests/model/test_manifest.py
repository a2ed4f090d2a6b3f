"""The manifest's format."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from onward.model import manifest as manifests
from onward.model.errors import BundleError
from onward.model.manifest import Manifest, StatePair, Tensor
from tests.helpers.random_bundles import make_bundle
from tests.helpers.recorded_bundles import FEATURES
from tests.model.manifest_edits import Document, drop, put


@pytest.fixture
def document(tmp_path: Path) -> Document:
    """A good manifest: an LSTM that reads x, y, z and predicts all of them."""
    make_bundle(tmp_path, features=FEATURES)
    found = json.loads((tmp_path / "tiny" / "1" / "manifest.json").read_text())
    assert isinstance(found, dict)
    return found


H = {"input": "h_in", "output": "h_out", "shape": [1, "batch", 8]}

FAULTS: dict[str, tuple[Callable[[Document], None], str]] = {
    "wrong type": (put("version", to="one"), "version: "),
    "version zero": (put("version", to=0), "version: "),
    "unknown format": (put("format", to=2), "format: "),
    "no name for a folder": (put("name", to="../up"), "name: "),
    "unknown task": (put("task", to="paint"), "task: "),
    "unknown key": (put("colour", to="red"), "colour: Extra inputs are not permitted"),
    "a lead of an observed feature": (put("features", 0, "lead", to=1), "can have a lead"),
    "a lead of two": (put("features", 0, "lead", to=2), "features.0.lead: "),
    "unknown nested key": (put("head", "colour", to="red"), "head.colour: Extra inputs"),
    "unknown key of a tensor": (put("outputs", 1, "order", to=1), "outputs.1.order: Extra inputs"),
    "missing key": (drop("sha256"), "sha256: Field required"),
    "short checksum": (put("sha256", to="ab"), "sha256: "),
    "missing nested key": (drop("parity", "lengths"), "parity.lengths: Field required"),
    "no state": (put("state", to=[]), "state: "),
    "no features": (put("features", to=[]), "features: "),
    "negative axis": (put("outputs", 0, "shape", to=["time", "batch", -3]), "outputs.0.shape.2"),
    "unknown axis": (put("outputs", 0, "shape", to=["time", "batch", "rows"]), "outputs.0.shape.2"),
    "axis twice": (
        put("outputs", 0, "shape", to=["time", "time", "batch"]),
        "outputs.0.shape: .*'time' appears 2 times",
    ),
    "unknown dtype": (put("state", 0, "dtype", to="float16"), "state.0.dtype: "),
    "state without batch": (put("state", 0, "shape", to=[1, 25]), "state.0: .*'state_in' needs a batch axis"),
    "state with time": (put("state", 0, "shape", to=["time", "batch", 25]), "state.0: .*'state_in' needs a batch axis"),
    "output without batch": (
        put("outputs", 2, "shape", to=["time"]),
        "tensor 'surprise' needs a time and a batch axis",
    ),
    "inputs of another width": (put("inputs", 0, "shape", 2, to=2), "input 'inputs' has shape .* 3 features"),
    "limits that fall": (put("features", 0, "limits", to=[2, 1]), "feature 'x': limits are the lowest and the highest"),
    "limits without end": (put("features", 0, "limits", to=[0, "inf"]), "features.0.limits.1: "),
    "levels that fall": (put("head", "levels", to=[0.5, 0.1]), "the head's levels do not rise"),
    "output named twice": (put("outputs", 1, "name", to="mean"), "output named twice: mean"),
    "output named as Onward's own": (put("outputs", 1, "name", to="onward.low"), "not for outputs: onward.low"),
    "state input named twice": (put("state", to=[H, H | {"output": "b"}]), "state input named twice: h_in"),
    "state output named twice": (put("state", to=[H, H | {"input": "b"}]), "state output named twice: h_out"),
    "parts of another size": (
        put("state", 0, "parts", 0, "size", to=9),
        "the parts of state 'state_in' have 26 elements, but a row has 25",
    ),
    "part of no size": (put("state", 0, "parts", 0, "size", to=0), "state.0.parts.0.size: "),
    "part named twice": (put("state", 0, "parts", 1, "name", to="h_0"), "state 'state_in' has two parts of one name"),
    "feature named twice": (put("features", 2, "name", to="x"), "feature named twice: x"),
    "feature that is only a name": (put("features", 1, to="y"), "features.1: "),
    "target named twice": (put("head", "targets", to=["x", "y", "x"]), "target named twice: x"),
    "target that is no feature": (put("head", "targets", to=["x", "y", "w"]), "targets that are not features: w"),
    "no targets": (put("head", "targets", to=[]), "head.targets: "),
    "too few targets": (put("head", "targets", to=["x", "y"]), "output 'mean' has shape .* 2 targets"),
    "head output not declared": (put("head", "outputs", to=["mean", "spread"]), "not declared: spread"),
    "surprise not declared": (put("head", "surprise", to="shock"), "not declared: shock"),
    "last of an undeclared output": (put("head", "last", "point", to="state_in"), "not declared: point"),
    "last in undeclared state": (put("head", "last", "mean", to="gone_in"), "state that is not declared: gone_in"),
    "last in state of another shape": (
        put("head", "last", "mean", to="state_in"),
        "'state_in' does not have the shape .*'mean'",
    ),
    "last in undeclared part": (
        put("head", "last", "mean", to={"state": "state_in", "part": "gone"}),
        "a part that is not declared: state_in.gone",
    ),
    "last in part of another size": (
        put("head", "last", "mean", to={"state": "state_in", "part": "h_0"}),
        "'state_in.h_0' does not have the shape .*'mean'",
    ),
    "last without a state": (put("head", "last", "mean", to={"part": "mean"}), "head.last.mean.state: Field required"),
    "last that is a list": (put("head", "last", to=["mean"]), "head.last: "),
    "missing output tensor": (drop("outputs", 0), "not declared: mean"),
    "tolerance above a hundredth": (put("parity", "tolerance", to=0.5), "parity.tolerance: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_manifest_is_refused(fault: str, document: Document, tmp_path: Path) -> None:
    """Every fault is refused with the file and the field or tensor at fault, so that its author can mend it."""
    change, message = FAULTS[fault]
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps(document))
    manifests.read(file)  # good before the change
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=message) as refused:
        manifests.read(file)
    assert refused.value.file == file
    assert str(refused.value) == f"{file}: {refused.value.reason}"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"name": NaN'])
def test_a_file_without_a_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    """A manifest that is not a JSON object is refused with its file."""
    file = tmp_path / "manifest.json"
    file.write_bytes(content)
    with pytest.raises(BundleError, match="the document: ") as refused:
        manifests.read(file)
    assert refused.value.file == file


def test_an_absent_manifest_is_refused(tmp_path: Path) -> None:
    """The error for a missing manifest says that the file does not exist."""
    with pytest.raises(BundleError, match="cannot be read: No such file"):
        manifests.read(tmp_path / "manifest.json")


def test_round_trip(document: Document, tmp_path: Path) -> None:
    """A manifest that was written is read with every field and every digit."""
    manifest = Manifest.model_validate(document).model_copy(
        update={"metrics": {"a": [0.1, -1e-300, None]}, "provenance": {"text": "naïve ☃"}, "description": 'a "b"\n'}
    )
    file = tmp_path / "again.json"
    manifests.write(manifest, file)
    assert manifests.read(file) == manifest


def test_axes_are_found_by_name() -> None:
    """A tensor's shape names the positions of its axes, and its inner shape has the other dimensions."""
    tensor = Tensor(name="t", shape=(2, "batch", 3, "time"))
    assert (tensor.axis("batch"), tensor.axis("time"), tensor.inner) == (1, 3, (2, 3))
    pair = StatePair(input="a", output="b", shape=(2, "batch", 3), dtype="int32")
    assert pair.tensor("b") == Tensor(name="b", shape=(2, "batch", 3), dtype="int32")
    assert pair.tensor("b").axis("time") is None


def test_a_model_that_keeps_its_last_prediction_forecasts(tmp_path: Path) -> None:
    """A rollout feeds predictions back as inputs, in any order; other features are future covariates."""
    assert make_bundle(tmp_path, name="all", features=FEATURES).manifest.can_forecast
    some = make_bundle(tmp_path, name="some", features=FEATURES, targets=("z", "x")).manifest
    assert (some.can_forecast, some.future_covariates) == (True, ("y",))
    whole = make_bundle(tmp_path, name="again", features=FEATURES).manifest
    head = whole.head
    assert whole.future_covariates == ()
    assert not whole.model_copy(
        update={"head": head.model_copy(update={"last": {"mean": head.last["mean"]}})}
    ).can_forecast
