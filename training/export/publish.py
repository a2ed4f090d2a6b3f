"""Publishes a bundle: its folder appears complete, proven and measured, or not at all.

Owns the order of proof, measurement and publishing. Knows nothing of how a graph was made.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from onward.model import manifest as manifests
from onward.model.manifest import Manifest
from onward.model.repository import GRAPH, MANIFEST
from onward.model.runner import StepModel


def _no_files(_: Manifest) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Measured:
    """The metrics and files that a measurement adds to a bundle."""

    metrics: dict[str, JsonValue] = field(default_factory=dict)
    files: Callable[[Manifest], Mapping[str, str]] = _no_files
    """Returns, for the finished manifest, the text of each further file by name."""


def publish(
    bundle: Path,
    graph: bytes,
    manifest: Manifest,
    *,
    prove: Callable[[StepModel], dict[str, JsonValue]],
    measure: Callable[[StepModel], Measured],
) -> StepModel:
    """Publishes `<repository>/<name>/<version>` and returns its model. If anything raises, no file remains.

    `prove` raises, or returns additions to the provenance. `measure` is called with the proven model. Raises
    FileExistsError if the version exists already.
    """
    manifest = manifest.model_copy(update={"sha256": hashlib.sha256(graph).hexdigest()})
    repository = bundle.parent.parent
    repository.mkdir(parents=True, exist_ok=True)
    if bundle.exists():
        raise FileExistsError(f"{bundle} exists; a version is never overwritten")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=repository) as scratch:
        draft = Path(scratch) / "bundle"
        draft.mkdir()
        (draft / GRAPH).write_bytes(graph)
        model = StepModel(draft / GRAPH, manifest)
        provenance = {**manifest.provenance, **prove(model)}
        measured = measure(model)
        manifest = manifest.model_copy(update={"provenance": provenance, "metrics": measured.metrics})
        manifests.write(manifest, draft / MANIFEST)
        for name, text in measured.files(manifest).items():
            (draft / name).write_text(text, encoding="utf-8")
        bundle.parent.mkdir(exist_ok=True)
        os.replace(draft, bundle)
    return StepModel(bundle / GRAPH, manifests.read(bundle / MANIFEST))
