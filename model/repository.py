"""Finds bundles and versions on disk and verifies them before they may serve.

Owns the layout `<root>/<name>/<version>/{model.onnx, manifest.json}`. Knows nothing of who runs the models. Reading
and opening are two steps: what is opened is what was read, whatever has become of the files since.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onward.model import manifest as manifests
from onward.model import tolerance
from onward.model.errors import BundleError
from onward.model.manifest import RANKED, Manifest
from onward.model.runner import Outputs, StepModel

GRAPH, MANIFEST = "model.onnx", "manifest.json"


@dataclass(frozen=True, slots=True)
class BundleFiles:
    """The files of the bundle in `folder`, as they were read once; None where one could not be read."""

    folder: Path
    manifest: bytes | None
    graph: bytes | None
    unreadable: str = ""
    """The reason, of the first that could not be read."""

    def open(self, *, threads: int = 1) -> StepModel:
        """The model: checksum, tensors and parity vectors verified. Raises BundleError."""
        manifest = self._manifest()
        file = self.folder / GRAPH
        if self.graph is None:
            raise BundleError(file, self.unreadable)
        digest = hashlib.sha256(self.graph).hexdigest()
        if digest != manifest.sha256:
            raise BundleError(file, f"checksum is {digest[:12]}..., the manifest says {manifest.sha256[:12]}...")
        model = StepModel(file, manifest, graph=self.graph, threads=threads)
        _verify_parity(self.folder / MANIFEST, model)
        return model

    def _manifest(self) -> Manifest:
        """Held to the bundle's own place on disk."""
        file = self.folder / MANIFEST
        if self.manifest is None:
            raise BundleError(file, self.unreadable)
        manifest = manifests.parse(file, self.manifest)
        place = Path(os.path.abspath(self.folder))  # noqa: PTH100  # `.` and `..` have names; links keep theirs
        if (manifest.name, str(manifest.version)) != (place.parent.name, place.name):
            raise BundleError(
                file, f"says {manifest.name}/{manifest.version}, but lies in {place.parent.name}/{place.name}"
            )
        return manifest


@dataclass(slots=True)
class Opened:
    """What a repository holds: models by name and version, and the bundles that were refused, with the reason."""

    models: dict[str, dict[int, StepModel]] = field(default_factory=dict)
    refused: list[BundleError] = field(default_factory=list)


def bundles(root: Path) -> Iterator[Path]:
    """The bundle folders below `root`, by name, then by version.

    Raises BundleError where `root` is no folder.
    """
    if not root.is_dir():
        raise BundleError(root, "no such folder of models; set ONWARD_MODELS to one, or run `onward train`")
    for name in sorted(root.iterdir()):
        if name.is_dir() and not name.name.startswith((".", "_")):
            versions = [version for version in name.iterdir() if version.is_dir() and version.name.isdecimal()]
            yield from sorted(versions, key=lambda version: int(version.name))


def next_version(root: Path, name: str) -> int:
    """One above the highest version of `name` below `root`."""
    folder = root / name
    taken = [int(version.name) for version in folder.iterdir() if version.name.isdecimal()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def read_bundle(folder: Path) -> BundleFiles:
    """Reads a bundle without looking at what is in it. What cannot be read is an error of opening it."""
    try:
        manifest = manifests.content(folder / MANIFEST)
    except BundleError as error:
        return BundleFiles(folder, None, None, error.reason)
    try:
        return BundleFiles(folder, manifest, manifests.content(folder / GRAPH))
    except BundleError as error:
        return BundleFiles(folder, manifest, None, error.reason)


def open_bundle(folder: Path, *, threads: int = 1) -> StepModel:
    """The model of one bundle, verified. Raises BundleError."""
    return read_bundle(folder).open(threads=threads)


def open_bundles(read: Iterable[BundleFiles], *, threads: int = 1) -> Opened:
    """The models of all of them; one that fails is refused and the others still open."""
    opened = Opened()
    for bundle in read:
        try:
            model = bundle.open(threads=threads)
        except BundleError as error:
            opened.refused.append(error)
        else:
            opened.models.setdefault(model.manifest.name, {})[model.manifest.version] = model
    return opened


def read_all(root: Path) -> list[BundleFiles]:
    """Every bundle below `root`. Raises BundleError where `root` is no folder, OSError where it is unreadable."""
    return [read_bundle(bundle) for bundle in bundles(root)]


def open_all(root: Path, *, threads: int = 1) -> Opened:
    """Every bundle below `root`; one that fails is refused and the others still open. Raises BundleError for `root`."""
    return open_bundles(read_all(root), threads=threads)


def _verify_parity(file: Path, model: StepModel) -> None:
    parity = model.manifest.parity
    try:
        with np.errstate(over="ignore"):  # an overflow is not finite, and said by its shape check
            inputs = np.asarray(parity.inputs, np.float32)
            lengths = np.asarray(parity.lengths, np.int32)
            expected = {name: np.asarray(values, np.float64) for name, values in parity.outputs.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise BundleError(file, f"parity: not arrays of numbers: {error}") from error
    _parity_shapes(file, model, inputs, lengths, expected)
    valid = np.arange(inputs.shape[1]) < lengths[:, np.newaxis]  # (batch, time)
    for chunk in (inputs.shape[1], 1):  # single steps need each state output to come back as its own input
        try:
            outputs = _in_chunks(model, inputs, lengths, chunk)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(file, f"parity: the graph does not run as the manifest declares it: {error}") from error
        for name, values in expected.items():
            if model.manifest.head.ranks_categories and name == RANKED[0]:
                scores = expected[RANKED[1]][valid]
                allowed = parity.tolerance * tolerance.max_magnitude(scores)
                if moved := tolerance.count_misranked(outputs[name][valid], values[valid], scores, allowed):
                    raise BundleError(file, f"parity: {moved} places in the output {name!r} are not the network's")
                continue
            worst = tolerance.max_difference(outputs[name][valid], values[valid])
            allowed = parity.tolerance * tolerance.max_magnitude(values[valid])
            if not worst <= allowed:  # a NaN is no agreement either
                raise BundleError(
                    file, f"parity: output {name!r} is {worst:.3g} off the trained network, {allowed:.3g} allowed"
                )


def _in_chunks(
    model: StepModel,
    inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    lengths: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    chunk: int,
) -> Outputs:
    """(batch, time) outputs, `chunk` steps a call; rows leave the batch as they end."""
    state, outputs = model.layout.initial(len(inputs)), np.zeros(inputs.shape[:2], model.output_dtype)
    for start in range(0, int(lengths.max()), chunk):
        going = np.flatnonzero(lengths > start)
        taken = np.minimum(lengths[going] - start, chunk).astype(np.int32)
        end = start + int(taken.max())
        outputs[going, start:end], state[going] = model.run(inputs[going, start:end], taken, state[going])
    return outputs


def _parity_shapes(
    file: Path,
    model: StepModel,
    inputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    lengths: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    expected: dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]],
) -> None:
    if inputs.ndim != 3 or inputs.shape[2] != len(model.features) or not inputs.size:
        raise BundleError(file, f"parity.inputs: shape {inputs.shape}, expected (batch, time, {len(model.features)})")
    for feature, column in zip(model.manifest.features, np.moveaxis(inputs, 2, 0), strict=True):
        if np.isinf(column).any() or (np.isnan(column).any() and not feature.nullable):
            raise BundleError(file, f"parity.inputs: {feature.name} has numbers that are not finite")
    batch, time = inputs.shape[:2]
    if lengths.shape != (batch,) or lengths.min() < 1 or lengths.max() > time:
        raise BundleError(file, f"parity.lengths: expected {batch} numbers from 1 to {time}")
    if missing := set(model.manifest.head.outputs) - set(expected):
        raise BundleError(file, f"parity.outputs: nothing for {', '.join(sorted(missing))}")
    for name, values in expected.items():
        if name not in (model.output_dtype.names or ()):
            raise BundleError(file, f"parity.outputs: the model has no output {name!r}")
        shape = (batch, time, *model.output_dtype[name].shape)
        if values.shape != shape or not np.isfinite(values).all():
            raise BundleError(file, f"parity.outputs.{name}: shape {values.shape} of finite numbers, expected {shape}")
