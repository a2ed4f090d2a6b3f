"""The functions that make the graphs and manifests of `recorded_bundles`. Needs the `train` extra."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import parser

from onward.model.manifest import Feature
from onward.model.repository import GRAPH, MANIFEST
from tests.helpers import numpy_networks, random_bundles

Files = tuple[bytes, dict[str, Any]]


def build(builder: str, arguments: dict[str, Any]) -> Files:
    return _BUILDERS[builder](**arguments)


def _random_network(*, features: list[str], targets: list[str], **network: Any) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        random_bundles.make_bundle(Path(folder), features=tuple(features), targets=tuple(targets), **network)
        return _files(Path(folder))


def _feature_network(
    *, features: list[dict[str, Any]], targets: list[str], classes: list[str], **network: Any
) -> Files:
    signature = numpy_networks.signature(
        [Feature.model_validate(feature) for feature in features], *targets, classes=tuple(classes)
    )
    with tempfile.TemporaryDirectory() as folder:
        numpy_networks.export(numpy_networks.network(signature, **network), Path(folder))
        return _files(Path(folder))


def _files(repository: Path) -> Files:
    bundle = repository / "tiny/1"
    manifest: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
    return (bundle / GRAPH).read_bytes(), manifest


def _graph(text: str) -> Files:
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    return model.SerializeToString(), {}


_BUILDERS: dict[str, Callable[..., Files]] = {
    "random_network": _random_network,
    "feature_network": _feature_network,
    "graph_text": _graph,
}
