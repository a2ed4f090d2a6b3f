"""Bundles on disk: what is refused, and that it harms no other."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onward.model import ZOO
from onward.model.errors import BundleError
from onward.model.repository import bundles, next_version, open_all, open_bundle, read_bundle
from tests.helpers.random_bundles import make_bundle


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two good models: `bad/1`, which a test damages, and `good/1`."""
    bad = tmp_path / "bad" / "1"
    shutil.copytree(ZOO / "pulse" / "1", bad)  # its state is separate tensors
    edit(bad, lambda document: document.update(name="bad"))
    make_bundle(tmp_path, name="good", cell="gru", head="point")
    return tmp_path


def edit(bundle: Path, change: Callable[[Any], object]) -> None:
    file = bundle / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def regraph(bundle: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Changes the graph and gives the manifest its new checksum: a fault that the checksum cannot see."""
    file = bundle / "model.onnx"
    graph = onnx.load(str(file))
    change(graph)
    file.write_bytes(graph.SerializeToString())
    edit(bundle, lambda document: document.update(sha256=hashlib.sha256(file.read_bytes()).hexdigest()))


def refused(repository: Path) -> BundleError:
    """Returns the refusal of the damaged bundle, the same from both functions; the other bundle opens and runs."""
    opened = open_all(repository)
    assert {name: sorted(versions) for name, versions in opened.models.items()} == {"good": [1]}
    good = opened.models["good"][1]
    good.run_row(np.ones((3, 1), np.float32), good.layout.initial(1))
    (error,) = opened.refused
    with pytest.raises(BundleError) as alone:
        open_bundle(repository / "bad" / "1")
    assert str(alone.value) == str(error)
    return error


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("position", [0, 0.25, 0.5, 0.75, 1])
def test_one_flipped_bit_in_the_graph_is_refused(position: float, repository: Path) -> None:
    """A graph that differs from the published one in a single bit does not serve."""
    file = repository / "bad" / "1" / "model.onnx"
    flip(file, int(position * (file.stat().st_size - 1)))
    error = refused(repository)
    assert error.file == file
    assert error.reason.startswith("checksum is ")


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_cut_graph_is_refused(size: int, repository: Path) -> None:
    """A half-copied graph does not serve."""
    file = repository / "bad" / "1" / "model.onnx"
    file.write_bytes(file.read_bytes()[:size])
    assert refused(repository).reason.startswith("checksum is ")


def test_an_absent_graph_is_refused(repository: Path) -> None:
    """A bundle without its graph says which file is missing."""
    file = repository / "bad" / "1" / "model.onnx"
    file.unlink()
    error = refused(repository)
    assert (error.file, error.reason) == (file, "cannot be read: No such file or directory")


def test_a_file_without_a_graph_is_refused(repository: Path) -> None:
    """A file that ONNX Runtime cannot open is refused although its checksum is right."""
    bundle = repository / "bad" / "1"
    (bundle / "model.onnx").write_bytes(b"not a graph")
    edit(bundle, lambda document: document.update(sha256=hashlib.sha256(b"not a graph").hexdigest()))
    error = refused(repository)
    assert error.file == bundle / "model.onnx"
    assert error.reason.startswith("ONNX Runtime cannot open it: ")


@pytest.mark.parametrize("content", [b"", b"\x00\xff garbage", b"{}"])
def test_a_garbage_manifest_is_refused(content: bytes, repository: Path) -> None:
    """A bundle whose manifest cannot be understood is refused, with that file."""
    file = repository / "bad" / "1" / "manifest.json"
    file.write_bytes(content)
    assert refused(repository).file == file


def test_an_absent_manifest_is_refused(repository: Path) -> None:
    """A folder with a version's name and no manifest is a refusal, not silence."""
    file = repository / "bad" / "1" / "manifest.json"
    file.unlink()
    assert refused(repository).file == file


@pytest.mark.parametrize("folder", ["bad/2", "other/1"])
def test_a_bundle_must_lie_in_the_folder_of_its_name(folder: str, repository: Path) -> None:
    """A bundle copied to another name or version would answer for a model that it is not."""
    (repository / folder).parent.mkdir(exist_ok=True)
    shutil.copytree(repository / "bad" / "1", repository / folder)
    opened = open_all(repository)
    assert sorted(opened.models) == ["bad", "good"]
    (error,) = opened.refused
    assert error.file == repository / folder / "manifest.json"
    assert error.reason == f"says bad/1, but lies in {folder}"


def test_a_bundle_opens_by_any_path_to_it(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`onward verify 1`, `.` and `../bad/1` name the same bundle as its whole path."""
    monkeypatch.chdir(repository / "bad")
    assert open_bundle(Path("1")).manifest.name == "bad"
    assert open_bundle(Path("../bad/1")).manifest.name == "bad"
    monkeypatch.chdir(repository / "bad" / "1")
    assert open_bundle(Path()).manifest.name == "bad"


def shift(document: Any, output: str, by: float) -> None:
    document["parity"]["outputs"][output][1][3][0] += by


PARITY: dict[str, tuple[Callable[[Any], object], str]] = {
    "another answer": (lambda d: shift(d, "mean", 0.1), "parity: output 'mean' is 0.1 off"),
    "another deviation": (lambda d: shift(d, "std", 0.1), "parity: output 'std' is 0.1 off"),
    "another input": (lambda d: d["parity"]["inputs"][0][0].__setitem__(0, 99.0), "parity: output "),
    "another length": (lambda d: d["parity"].update(lengths=[24, 20]), "parity: output "),
    "length past the end": (lambda d: d["parity"].update(lengths=[24, 25]), "parity.lengths: expected 2 numbers"),
    "length nought": (lambda d: d["parity"].update(lengths=[24, 0]), "parity.lengths: expected 2 numbers"),
    "length past 32 bits": (lambda d: d["parity"].update(lengths=[24, 2**40]), "parity: not arrays of numbers"),
    "too few lengths": (lambda d: d["parity"].update(lengths=[24]), "parity.lengths: expected 2 numbers"),
    "no inputs": (lambda d: d["parity"].update(inputs=[], lengths=[]), "parity.inputs: shape"),
    "ragged inputs": (lambda d: d["parity"]["inputs"][0].pop(), "parity: not arrays of numbers"),
    "text": (lambda d: d["parity"]["inputs"][0][0].__setitem__(0, "many"), "parity: not arrays of numbers"),
    "object": (lambda d: d["parity"]["inputs"][0][0].__setitem__(0, {}), "parity: not arrays of numbers"),
    "null": (lambda d: d["parity"]["inputs"][0][0].__setitem__(0, None), "parity.inputs: ppg has numbers that are"),
    "beyond float32": (
        lambda d: d["parity"]["inputs"][0][0].__setitem__(0, 1e39),
        "parity.inputs: ppg has numbers that are",
    ),
    "beyond float64": (lambda d: d["parity"]["inputs"][0][0].__setitem__(0, 10**400), "parity: not arrays of numbers"),
    "answer is null": (lambda d: d["parity"]["outputs"]["std"][0][0].__setitem__(0, None), "parity.outputs.std: "),
    "answers of another shape": (lambda d: d["parity"]["outputs"]["std"].pop(), "parity.outputs.std: shape"),
    "answers of no output": (lambda d: d["parity"]["outputs"].update(x=[[[1]]]), "the model has no output 'x'"),
    "no answers": (lambda d: d["parity"].update(outputs={}), "parity.outputs: nothing for mean, std"),
}


@pytest.mark.parametrize("fault", PARITY)
def test_altered_parity_vectors_are_refused(fault: str, repository: Path) -> None:
    """A bundle that does not give the trained network's own answers does not serve, nor one that hides them."""
    change, says = PARITY[fault]
    edit(repository / "bad" / "1", change)
    error = refused(repository)
    assert error.file == repository / "bad" / "1" / "manifest.json"
    assert says in error.reason


def rename_output(graph: onnx.ModelProto, old: str, new: str) -> None:
    for value in graph.graph.output:
        if value.name == old:
            value.name = new
    for node in graph.graph.node:
        for i, name in enumerate(node.output):
            if name == old:
                node.output[i] = new


def widen(graph: onnx.ModelProto) -> None:
    for value in graph.graph.input:
        if value.name == "lengths":
            value.type.tensor_type.shape.dim[0].dim_value = 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda graph: rename_output(graph, "h_out", "h_next"), "the graph has no output h_out"),
        (lambda graph: graph.graph.output.pop(), "the graph has no output last_log_std_out"),
        (lambda graph: graph.graph.output.add().CopyFrom(onnx.helper.make_empty_tensor_value_info("std_scaled")), ""),
        (widen, "input 'lengths' has shape [2], the manifest says ['batch']"),
    ],
    ids=["renamed pair", "output gone", "output that nothing makes", "frozen batch"],
)
def test_a_graph_of_other_tensors_is_refused(
    change: Callable[[onnx.ModelProto], object], says: str, repository: Path
) -> None:
    """State is paired by name: a graph whose tensors are not those declared is refused, not fed by position."""
    bundle = repository / "bad" / "1"
    regraph(bundle, change)
    error = refused(repository)
    assert error.file == bundle / "model.onnx"
    assert says in error.reason


def swap(document: Any, what: str) -> None:
    h, c = document["state"][:2]
    h[what], c[what] = c[what], h[what]


@pytest.mark.parametrize("what", ["input", "output"])
def test_swapped_state_is_refused(what: str, repository: Path) -> None:
    """A pair that carries h into c: tensors of the same shape and type, so only the parity vectors can tell."""
    edit(repository / "bad" / "1", lambda document: swap(document, what))
    assert refused(repository).reason.startswith("parity: output ")


def test_declared_order_of_state_is_free(repository: Path) -> None:
    """Pairs go by name, so a manifest that lists them in another order is as good."""
    edit(repository / "bad" / "1", lambda document: document["state"].reverse())
    assert not open_all(repository).refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: d["state"][0].update(shape=[1, "batch", 9]), "'h_in' has shape"),
        (lambda d: d["state"][0].update(shape=["batch", 1, 8]), "'h_in' has shape"),
        (lambda d: d["state"][0].update(dtype="float64"), "'h_in' is tensor(float), the manifest says float64"),
        (lambda d: d["outputs"][2].update(dtype="int32"), "'surprise' is tensor(float), the manifest says int32"),
        (lambda d: d["lengths"].update(dtype="int64"), "'lengths' is tensor(int32), the manifest says int64"),
        (lambda d: d["state"].pop(1), "the graph has input c_in that the manifest does not declare"),
        (lambda d: d["state"][3].update(init=[1.0, 2.0]), "state 'last_std_in': init has shape (2,)"),
        (lambda d: d["state"][3].update(init=[{}]), "state 'last_std_in': init is no float32"),
        (lambda d: d["state"][3].update(init=[10**400]), "state 'last_std_in': init is no float32"),
        (lambda d: d["state"][3].update(init=[1e39]), "state 'last_std_in': init is not finite"),
    ],
)
def test_declarations_that_the_graph_contradicts_are_refused(
    change: Callable[[Any], object], says: str, repository: Path
) -> None:
    """Shape, type, presence and initial value of every tensor are held to the graph before anything runs."""
    edit(repository / "bad" / "1", change)
    assert says in refused(repository).reason


def test_a_graph_that_cannot_run_is_refused(repository: Path) -> None:
    """A graph that fails only when it runs is found before it serves, and is refused like any other."""

    def misplace(graph: onnx.ModelProto) -> None:
        (places,) = [constant for constant in graph.graph.initializer if constant.name == "columns_0"]
        places.CopyFrom(onnx.numpy_helper.from_array(np.array([5], np.int64), "columns_0"))

    regraph(repository / "bad" / "1", misplace)
    assert refused(repository).reason.startswith("parity: the graph does not run as the manifest declares it: ")


@pytest.fixture
def many(tmp_path: Path) -> Iterator[Path]:
    for version in (10, 9, 2, 1):
        make_bundle(tmp_path, name="tiny", version=version)
    make_bundle(tmp_path, name="a")
    for folder in (".hidden/1", "_old/1", "tiny/.export-x", "tiny/draft", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "README").write_text("no model\n")
    (tmp_path / "tiny" / "3").write_text("no folder\n")
    return iter([tmp_path])


def test_versions_are_numbers(many: Iterator[Path]) -> None:
    """Version 10 comes after 9, and what is not a version of a model is left alone."""
    root = next(many)
    found = [bundle.relative_to(root).as_posix() for bundle in bundles(root)]
    assert found == ["a/1", "tiny/1", "tiny/2", "tiny/9", "tiny/10"]
    opened = open_all(root)
    assert list(opened.models["tiny"]) == [1, 2, 9, 10]
    assert not opened.refused
    assert (next_version(root, "tiny"), next_version(root, "empty"), next_version(root, "new")) == (11, 1, 1)


def test_no_repository_is_said_at_once(tmp_path: Path) -> None:
    """A folder that is not there is an error with the way out, not an empty list of models."""
    with pytest.raises(BundleError, match="no such folder of models; set ONWARD_MODELS"):
        open_all(tmp_path / "absent")


def test_what_was_read_is_opened(repository: Path) -> None:
    """Verified and run are the same bytes, whatever happens to the files after they were read."""
    read = read_bundle(repository / "bad" / "1")
    replacement = make_bundle(repository, name="other", seed=1)
    expected = read.open().digest
    for name in ("model.onnx", "manifest.json"):
        (repository / "bad/1" / name).write_bytes((repository / "other/1" / name).read_bytes())
    again = read.open()
    assert again.digest == expected != replacement.digest
    inputs = np.ones((3, 1), np.float32)
    before, after = (model.run_row(inputs, model.layout.initial(1))[0] for model in (replacement, again))
    assert before.tobytes() != after.tobytes()
