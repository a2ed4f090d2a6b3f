"""The bundles that tests of serving read without torch are those that the exporter makes."""

import json
from pathlib import Path

import numpy as np
import pytest

from onward.model.manifest import Manifest
from onward.model.repository import GRAPH, MANIFEST, open_bundle
from tests.helpers import bundle_builders, recorded_bundles
from tests.helpers.recorded_bundles import stepped_outputs


@pytest.mark.parametrize("recording", sorted(recorded_bundles.RECORDINGS.glob("*.json")), ids=lambda file: file.stem)
def test_a_recording_predicts_what_a_new_export_predicts(recording: Path, tmp_path: Path) -> None:
    """A graph in text form is compared byte by byte; of an exported network the outputs are, and the manifest's fields.

    Weights may differ in their last bits between versions of torch, so outputs are compared with a tolerance.
    """
    content = json.loads(recording.read_text())
    graph, manifest = bundle_builders.build(content["builder"], content["arguments"])
    if not manifest:
        assert recording.with_suffix(".onnx").read_bytes() == graph
        return
    old, exported = (Manifest.model_validate_json(json.dumps(document)) for document in (content["manifest"], manifest))
    for field in ("task", "inputs", "outputs", "state", "features", "head", "data"):
        assert getattr(old, field) == getattr(exported, field), field
    recorded_graph = recording.with_suffix(".onnx").read_bytes()
    for name, data, document in (("recorded", recorded_graph, content["manifest"]), ("new", graph, manifest)):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / GRAPH).write_bytes(data)
        (tmp_path / name / "1" / MANIFEST).write_text(json.dumps(document | {"name": name}))
    recorded, new = (open_bundle(tmp_path / name / "1") for name in ("recorded", "new"))
    row = np.array(manifest["parity"]["inputs"][0], np.float32)
    expected, outputs = stepped_outputs(new, row), stepped_outputs(recorded, row)
    for name in new.manifest.head.outputs:
        np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-4, atol=1e-5)
