"""Bundles for tests of serving, which run without torch and onnx.

A bundle with random weights is exported once, where the `train` extra is installed, and its graph and manifest are
recorded below `recorded_bundles/`, in files named by a digest of the arguments that it was made with. Without the
`train` extra a test reads the recording. A bundle without a recording is an error; RECORD_BUNDLES=1 makes it:

    RECORD_BUNDLES=1 .venv/bin/python -m pytest tests/service tests/client tests/e2e

`tests/training/export/test_recorded_bundles.py` compares each recording with what the exporter makes today.
"""

import json
import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.repository import GRAPH, MANIFEST, open_bundle
from onward.model.runner import Outputs, StepModel

RECORDINGS = Path(__file__).with_name("recorded_bundles")
FEATURES = ("x", "y", "z")


def make_bundle(
    repository: Path,
    *,
    name: str = "tiny",
    version: int = 1,
    features: tuple[str, ...] = ("x",),
    targets: tuple[str, ...] | None = None,
    **network: str | int,
) -> StepModel:
    """Writes `<repository>/<name>/<version>` and opens it: the bundle of `random_bundles.make_bundle` in a recording.

    `targets` are the features where left out; `network` is the cell, layers, units, head and seed.
    """
    arguments = network | {"features": features, "targets": targets or features}
    graph, manifest = recorded("random_network", arguments)
    return _write(repository / name / str(version), graph, manifest | {"name": name, "version": version})


def make_feature_bundle(
    repository: Path, features: Sequence[Feature], *targets: str, classes: Sequence[str] = (), **network: Any
) -> StepModel:
    """Writes `<repository>/tiny/1` and opens it: a network over features of any kind, as `numpy_networks` makes it.

    `network` is its `counts` of categories and the keys of the configuration's [model].
    """
    described = [feature.model_dump(mode="json", exclude_defaults=True) for feature in features]
    arguments = network | {"features": described, "targets": targets, "classes": classes}
    return _write(repository / "tiny/1", *recorded("feature_network", arguments))


def recorded_graph(text: str) -> bytes:
    """The ONNX graph that is written as `text` in the syntax of `onnx.parser`."""
    return recorded("graph_text", {"text": text})[0]


def recorded(builder: str, arguments: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
    """The graph and the manifest that a function of `bundle_builders` makes of the arguments."""
    arguments = json.loads(json.dumps(arguments, sort_keys=True))
    digest = sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:12]
    file = RECORDINGS / f"{builder}-{digest}.json"
    if not file.exists():
        _record(file, builder, arguments)
    return file.with_suffix(".onnx").read_bytes(), json.loads(file.read_text())["manifest"]


def _record(file: Path, builder: str, arguments: dict[str, Any]) -> None:
    if not os.environ.get("RECORD_BUNDLES"):
        raise FileNotFoundError(f"{builder} of {arguments} is not recorded; the tests record it with RECORD_BUNDLES=1")
    from tests.helpers import bundle_builders  # noqa: PLC0415  (needs the train extra, which readers of recordings lack)

    graph, manifest = bundle_builders.build(builder, arguments)
    file.parent.mkdir(exist_ok=True)
    file.with_suffix(".onnx").write_bytes(graph)
    content = {"builder": builder, "arguments": arguments, "manifest": manifest}
    file.write_text(json.dumps(content, sort_keys=True) + "\n")


def _write(bundle: Path, graph: bytes, manifest: dict[str, Any]) -> StepModel:
    bundle.mkdir(parents=True)
    (bundle / GRAPH).write_bytes(graph)
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    return open_bundle(bundle)


def category(name: str, count: int, **options: Any) -> Feature:
    """A feature with so many categories: c0, c1, ... for the name c."""
    categories = tuple(f"{name}{index}" for index in range(count))
    return Feature(name=name, kind="category", categories=categories, **options)


def moments(features: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(features,) the mean and deviation that networks scale by: 10, 20, ... and 2, 3, ..."""
    return np.arange(1.0, features + 1) * 10.0, np.arange(2.0, features + 2)


def draw(rows: int, steps: int, features: int = 1, *, seed: int = 0) -> NDArray[np.float32]:
    """(rows, steps, features) normal noise with these moments."""
    mean, std = moments(features)
    return (mean + std * np.random.default_rng(seed).standard_normal((rows, steps, features))).astype(np.float32)


def stepped_outputs(model: StepModel, row: InputArray) -> Outputs:
    """The outputs of one session, (time,), computed by one call of the model a step."""
    state, outputs = model.layout.initial(1), []
    for step in range(len(row)):
        output, state = model.run_row(row[step : step + 1], state)
        outputs.append(output)
    return np.concatenate(outputs)
