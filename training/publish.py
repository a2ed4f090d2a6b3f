"""A bundle's folder appears whole, proven and measured, or not at all.

Owns the order of proof, measurement and publishing. Knows nothing of where a graph comes from.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from model import manifest as manifests
from model.manifest import Manifest
from model.repository import GRAPH, MANIFEST
from model.runner import StepModel


def _no_files(_: Manifest) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a measurement adds to a bundle."""

    metrics: dict[str, JsonValue] = field(default_factory=dict)
    files: Callable[[Manifest], Mapping[str, str]] = _no_files
    """Given the finished manifest: the text of each further file, by name."""


def publish(
    bundle: Path,
    graph: bytes,
    manifest: Manifest,
    *,
    prove: Callable[[StepModel], dict[str, JsonValue]],
    measure: Callable[[StepModel], Measured],
) -> StepModel:
    """Publishes `<repository>/<name>/<version>`; returns its model. What is raised on the way leaves nothing behind.

    `prove` raises, or returns what is added to the provenance. `measure` is given the proven model. Raises
    FileExistsError where the version is taken.
    """
    manifest = manifest.model_copy(update={"sha256": hashlib.sha256(graph).hexdigest()})
    repository = bundle.parent.parent
    repository.mkdir(parents=True, exist_ok=True)
    if bundle.exists():
        raise FileExistsError(f"{bundle} exists; a version is never overwritten")
    with tempfile.TemporaryDirectory(prefix=".export-", dir=repository) as scratch:
        made = Path(scratch) / "bundle"
        made.mkdir()
        (made / GRAPH).write_bytes(graph)
        model = StepModel(made / GRAPH, manifest)
        provenance = {**manifest.provenance, **prove(model)}
        measured = measure(model)
        manifest = manifest.model_copy(update={"provenance": provenance, "metrics": measured.metrics})
        manifests.write(manifest, made / MANIFEST)
        for name, text in measured.files(manifest).items():
            (made / name).write_text(text, encoding="utf-8")
        bundle.parent.mkdir(exist_ok=True)
        os.replace(made, bundle)
    return StepModel(bundle / GRAPH, manifests.read(bundle / MANIFEST))
