"""Comparison of answers within a tolerance, and checks of features and heads of categories in a manifest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.model import checks, tolerance
from onward.model import manifest as manifests
from onward.model.checks import CheckError
from onward.model.errors import BundleError
from onward.model.manifest import Feature
from onward.model.repository import open_bundle
from onward.model.runner import Outputs, StepModel
from onward.model.state import State
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import signature
from tests.helpers.recorded_bundles import category
from tests.model.manifest_edits import Document, put


def ids(*values: int) -> Any:
    return np.array(values, np.int64)


def test_differences_are_the_largest() -> None:
    """The difference is independent of sign and type; another shape or a NaN is never within a tolerance."""
    assert tolerance.max_difference(np.array([1, 2, -3], np.float32), np.array([1, 2.5, -5])) == 2
    assert tolerance.max_difference(ids(2**53), ids(2**53)) == 0
    assert tolerance.max_difference(np.zeros((2, 1)), np.zeros((2, 2))) == np.inf
    assert np.isnan(tolerance.max_difference(np.array([np.nan, 1.0]), np.array([0.0, 1.0])))
    assert not tolerance.max_difference(np.array([np.nan]), np.array([np.nan])) <= 1
    assert tolerance.max_magnitude(np.array([-3.0, 2.0])) == 3
    assert tolerance.max_magnitude(np.zeros((0, 3))) == tolerance.max_difference(np.zeros(0), np.zeros(0)) == 0


SCORES = np.array([[5.0, 3.0, 3.0, 1.0]])


@pytest.mark.parametrize(
    ("got", "wrong"),
    [
        (ids(7, 4, 2, 9), 0),
        (ids(7, 2, 4, 9), 0),  # tied ones swapped
        (ids(4, 7, 2, 9), 2),  # neither of them is tied with the other
        (ids(7, 4, 2, 8), 0),  # the last may be tied with one that is not shown
        (ids(7, 4, 9, 2), 2),  # the third is tied with the second only
        (ids(7, 4, 8, 9), 1),  # one that is not shown may stand last only
        (ids(8, 4, 2, 9), 1),
        (ids(7, 4, 2), 3),
    ],
)
def test_places_may_differ_where_they_are_tied(got: Any, wrong: int) -> None:
    """Rounding may swap equal scores only."""
    assert tolerance.count_misranked(got[np.newaxis], ids(7, 4, 2, 9)[np.newaxis], SCORES, 1e-6) == wrong


def test_nearness_is_what_is_allowed() -> None:
    """Scores within it are tied, those beyond are not; every row is judged by its own."""
    expected, got = np.tile(ids(0, 1, 2), (2, 1)), np.tile(ids(1, 0, 2), (2, 1))
    scores = np.array([[1.0, 0.99, 0.0], [1.0, 0.9, 0.0]])
    assert tolerance.count_misranked(got, expected, scores, 0.02) == 2
    assert tolerance.count_misranked(got, expected, scores, 0.2) == 0
    assert tolerance.count_misranked(got, expected, scores, 0.001) == 4


class Swapped(StepModel):
    """A model that swaps two ranks in batches of more than one row."""

    places: tuple[int, int]

    def run(self, inputs: Any, lengths: Any, state: State) -> tuple[Outputs, State]:
        outputs, after = super().run(inputs, lengths, state)
        if len(inputs) > 1:
            outputs["top"][..., list(self.places)] = outputs["top"][..., list(self.places[::-1])]
        return outputs, after


@pytest.mark.parametrize(("tied", "refused"), [(True, False), (False, True)])
def test_checks_accept_ties_of_models_that_are_not_exact(tied: bool, refused: bool, tmp_path: Path) -> None:
    """Two categories of equal weights are equally likely: which comes first is rounding. Other swaps are refused."""
    word = category("word", 4)
    made = numpy_networks.network(signature((word,), "word"), cell="rnn_tanh", units=4, head="categorical", top=4)
    if tied:
        made.head.own.data[:] = made.head.own.data[:1]  # type: ignore[index, operator]
        made.head.bias.data[:] = 0.5  # type: ignore[operator]
    numpy_networks.export(made, tmp_path)
    bundle = tmp_path / "tiny" / "1"
    model = Swapped(bundle / "model.onnx", manifests.read(bundle / "manifest.json"))
    model.places = (0, 1)
    if refused:
        with pytest.raises(CheckError, match=r"'top' ranks .* categories differently that are not tied"):
            checks.check(model, steps=10)
    else:
        checks.check(model, steps=10)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Tokens that may be missing or unknown, and a number that may be missing."""
    features = (Feature(name="x", nullable=True), category("word", 5, nullable=True, unknown=True))
    made = numpy_networks.network(signature(features, "word"), cell="gru", units=4, head="categorical", top=3)
    numpy_networks.export(made, tmp_path)
    return tmp_path / "tiny" / "1"


def changed(bundle: Path, change: Callable[[Document], object]) -> None:
    file = bundle / "manifest.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_nulls_of_parity_are_missing_values(bundle: Path) -> None:
    """Missing values are null in the manifest, are checked against the graph, and need a nullable feature."""
    document = json.loads((bundle / "manifest.json").read_text())
    columns = [[step[i] for row in document["parity"]["inputs"] for step in row] for i in range(2)]
    assert all(None in column for column in columns)
    open_bundle(bundle)
    wrong = next(t for t, step in enumerate(document["parity"]["inputs"][0]) if step[0] is None)

    def fill(document: Document) -> None:
        document["parity"]["inputs"][0][wrong][0] = 50.0

    original = (bundle / "manifest.json").read_text()
    changed(bundle, fill)
    with pytest.raises(BundleError, match="parity: "):
        open_bundle(bundle)
    (bundle / "manifest.json").write_text(original)
    changed(bundle, lambda document: document["features"][0].update(nullable=False))
    with pytest.raises(BundleError, match=r"parity\.inputs: x has numbers that are not finite"):
        open_bundle(bundle)


def test_a_rank_that_is_not_the_networks_is_refused(bundle: Path) -> None:
    """The likeliest cannot be another; of two within the tolerance either may come first."""
    original = (bundle / "manifest.json").read_text()

    def swap(document: Document) -> None:
        top = document["parity"]["outputs"]["top"][0][3]
        top[0], top[1] = top[1], top[0]

    changed(bundle, swap)
    with pytest.raises(BundleError, match="parity: 2 categories in the output 'top' have another rank"):
        open_bundle(bundle)

    def tie(document: Document) -> None:
        swap(document)
        parity = document["parity"]
        parity["tolerance"] = 1e-2
        for row in parity["outputs"]["log_probability"]:
            for step in row:
                step[1] = step[0]  # the comparison with the graph refuses values that are too far, before ties count

    (bundle / "manifest.json").write_text(original)
    changed(bundle, tie)
    with pytest.raises(BundleError, match=r"output 'log_probability' is .* off the trained network"):
        open_bundle(bundle)


def test_tied_places_may_come_in_any_order(tmp_path: Path) -> None:
    """Two categories of the same weights: the bundle opens whichever of them the network named first."""
    made = numpy_networks.network(signature((category("word", 4),), "word"), cell="gru", units=4, head="categorical")
    made.head.own.data[:] = made.head.own.data[:1]  # type: ignore[index, operator]
    made.head.bias.data[:] = 0.5  # type: ignore[operator]
    numpy_networks.export(made, tmp_path)
    bundle = tmp_path / "tiny" / "1"

    def turn(document: Document) -> None:
        for row in document["parity"]["outputs"]["top"]:
            for top in row:
                top.reverse()

    changed(bundle, turn)
    open_bundle(bundle)


FAULTS: dict[str, tuple[Callable[[Document], object], str]] = {
    "a category without categories": (
        put("features", 1, "categories", to=[]),
        r"features\.1: .*feature 'word': categories are listed for a category, and only for one",
    ),
    "a number with categories": (
        put("features", 0, "categories", to=["a"]),
        r"features\.0: .*feature 'x': categories are listed for a category",
    ),
    "a category twice": (
        put("features", 1, "categories", to=["a", "b", "c", "d", "a"]),
        r"features\.1: .*feature 'word': a category is listed twice",
    ),
    "categories of two sorts": (
        put("features", 1, "categories", to=["a", "b", "c", "d", 5]),
        r"features\.1: .*feature 'word': categories are all strings or all whole numbers",
    ),
    "an unknown number": (
        put("features", 0, "unknown", to=True),
        r"features\.0: .*feature 'x': a number is neither unknown nor cut from a text",
    ),
    "a number of a text": (put("features", 0, "text", to="bytes"), r"features\.0: .*feature 'x': a number is neither"),
    "an unknown kind": (put("features", 0, "kind", to="word"), r"features\.0\.kind: "),
    "an unknown role": (put("features", 0, "role", to="future"), r"features\.0\.role: "),
    "an unknown cut": (put("features", 1, "text", to="words"), r"features\.1\.text: "),
    "a key that is none": (put("features", 1, "places", to=5), r"features\.1\.places: Extra inputs"),
    "a feature without a name": (lambda document: document["features"][0].pop("name"), r"features\.0\.name: Field"),
    "outputs of another head": (
        put("head", "outputs", to=["top"]),
        "the head categorical has the outputs top, log_probability",
    ),
    "two targets": (put("head", "targets", to=["word", "x"]), "the head categorical predicts one target, not 2"),
    "a target that is none": (put("head", "targets", to=["w"]), "the target 'w' is not a feature"),
    "a target that is a number": (put("head", "targets", to=["x"]), "there are 0 categories, and the output top has 3"),
    "numbers of a category": (
        lambda document: document["head"].update(kind="point", outputs=["surprise"], last={}),
        "output 'surprise' has shape .* 1 targets",
    ),
    "places that are no integers": (
        lambda document: [put("outputs", 0, "dtype", to="float32")(document)],
        "the outputs top and log_probability have one shape, of one axis, and top is int64",
    ),
    "more places than categories": (
        put("features", 1, "categories", to=["a"]),
        "there are 2 categories, and the output top has 3",
    ),
    "classes of none": (
        lambda document: document["head"].update(kind="label"),
        "there are 0 categories, and the output top has 3",
    ),
    "too few classes": (
        lambda document: document["head"].update(kind="label", classes=["a", "b"]),
        "there are 2 categories, and the output top has 3",
    ),
    "a label of what": (put("head", "per", to="session"), r"head\.per: "),
    "an unknown score": (put("head", "score", to="regret"), r"head\.score: "),
    "a level of one": (put("head", "levels", to=[0.1, 1.0]), r"head\.levels\.1: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_feature_or_head_is_refused(fault: str, bundle: Path) -> None:
    """The error names the file and the field, or the feature, at fault."""
    change, says = FAULTS[fault]
    changed(bundle, change)
    with pytest.raises(BundleError, match=says) as refused:
        open_bundle(bundle)
    assert refused.value.file == bundle / "manifest.json"


def test_a_head_of_numbers_predicts_no_category(tmp_path: Path) -> None:
    """A bundle with a head of numbers for a category is refused."""
    features = (Feature(name="x"), category("word", 5))
    numpy_networks.export(numpy_networks.network(signature(features, "x"), cell="gru", units=4, head="point"), tmp_path)
    changed(tmp_path / "tiny" / "1", put("head", "targets", to=["word"]))
    with pytest.raises(BundleError, match="the head point predicts numbers, not word"):
        open_bundle(tmp_path / "tiny" / "1")


def test_the_categories_of_a_manifest(bundle: Path, tmp_path: Path) -> None:
    """Tokens have the target's categories, and one more if unknown ones are allowed; labels have the classes."""
    manifest = manifests.read(bundle / "manifest.json")
    assert manifest.categories == ("word0", "word1", "word2", "word3", "word4")
    assert (manifest.category_count, manifest.future_covariates, manifest.can_forecast) == (6, ("x",), True)
    assert manifest.head.last_ranking == ("last_top_in", "state_in.log_probability")
    labels = signature((Feature(name="x"),), "who", classes=(4, 2))
    manifest = numpy_networks.export(numpy_networks.network(labels, cell="gru", units=4, head="label")).manifest
    assert (manifest.task, manifest.categories, manifest.category_count, manifest.future_covariates) == (
        "label",
        (4, 2),
        2,
        ("x",),
    )
    assert not manifest.can_forecast
