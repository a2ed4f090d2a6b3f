"""The repository of models: finds bundles and versions on disk and verifies them before they may serve.

Owns the layout `<root>/<name>/<version>/{model.onnx, manifest.json}`. Knows nothing of how models are used. Reading and
opening are two steps: a bundle is opened from the bytes that were read, even if its files have changed since.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from onward.model import error_units, tolerance
from onward.model import manifest as manifests
from onward.model.errors import BundleError
from onward.model.inputs import InputArray
from onward.model.manifest import RANKED, Manifest
from onward.model.runner import Outputs, StepModel

GRAPH, MANIFEST = "model.onnx", "manifest.json"


@dataclass(frozen=True, slots=True)
class BundleFiles:
    """The content of the files of the bundle in `folder`; None for a file that could not be read."""

    folder: Path
    manifest: bytes | None
    graph: bytes | None
    unreadable: str = ""
    """The reason why the first unreadable file could not be read."""

    def open(self, *, threads: int = 1) -> StepModel:
        """Returns the model after verification of checksum, tensors and parity vectors. Raises BundleError."""
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
        """Returns the manifest, whose name and version must be those of the bundle's folders."""
        file = self.folder / MANIFEST
        if self.manifest is None:
            raise BundleError(file, self.unreadable)
        manifest = manifests.parse(file, self.manifest)
        folder = Path(os.path.abspath(self.folder))  # noqa: PTH100  # `.` and `..` have names; links keep theirs
        if (manifest.name, str(manifest.version)) != (folder.parent.name, folder.name):
            raise BundleError(
                file, f"says {manifest.name}/{manifest.version}, but lies in {folder.parent.name}/{folder.name}"
            )
        return manifest


@dataclass(slots=True)
class Opened:
    """The models of a repository by name and version, and the errors of the bundles that were refused."""

    models: dict[str, dict[int, StepModel]] = field(default_factory=dict)
    refused: list[BundleError] = field(default_factory=list)


def bundles(root: Path) -> Iterator[Path]:
    """Yields the bundle folders below `root`, by name, then by version.

    Raises BundleError if `root` is no folder.
    """
    if not root.is_dir():
        raise BundleError(root, "no such folder of models; set ONWARD_MODELS to one, or run `onward train`")
    for name in sorted(root.iterdir()):
        if name.is_dir() and not name.name.startswith((".", "_")):
            versions = [version for version in name.iterdir() if version.is_dir() and version.name.isdecimal()]
            yield from sorted(versions, key=lambda version: int(version.name))


def next_version(root: Path, name: str) -> int:
    """Returns the highest version of `name` below `root` plus one."""
    folder = root / name
    taken = [int(version.name) for version in folder.iterdir() if version.name.isdecimal()] if folder.is_dir() else []
    return max(taken, default=0) + 1


def read_bundle(folder: Path) -> BundleFiles:
    """Reads a bundle's files without interpreting them. A file that cannot be read is an error of `open`."""
    try:
        manifest = manifests.content(folder / MANIFEST)
    except BundleError as error:
        return BundleFiles(folder, None, None, error.reason)
    try:
        return BundleFiles(folder, manifest, manifests.content(folder / GRAPH))
    except BundleError as error:
        return BundleFiles(folder, manifest, None, error.reason)


def open_bundle(folder: Path, *, threads: int = 1) -> StepModel:
    """Returns the verified model of one bundle. Raises BundleError."""
    return read_bundle(folder).open(threads=threads)


def open_bundles(read: Iterable[BundleFiles], *, threads: int = 1) -> Opened:
    """Opens all bundles; a bundle that fails verification is refused, and the others still open."""
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
    """Reads every bundle below `root`. Raises BundleError if `root` is no folder, OSError if it is unreadable."""
    return [read_bundle(bundle) for bundle in bundles(root)]


def open_all(root: Path, *, threads: int = 1) -> Opened:
    """Opens every bundle below `root`, as `open_bundles` does. Raises BundleError if `root` is no folder."""
    return open_bundles(read_all(root), threads=threads)


def _verify_parity(file: Path, model: StepModel) -> None:
    parity = model.manifest.parity
    try:
        with np.errstate(over="ignore"):  # an overflow is reported below, as it is not finite
            inputs = np.asarray(parity.inputs, model.input_dtype)
            lengths = np.asarray(parity.lengths, np.int32)
            expected = {name: np.asarray(values, np.float64) for name, values in parity.outputs.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise BundleError(file, f"parity: not arrays of numbers: {error}") from error
    _check_parity_shapes(file, model, inputs, lengths, expected)
    valid = np.arange(inputs.shape[1]) < lengths[:, np.newaxis]  # (batch, time)
    unit = error_units.units(model, {name: values[valid] for name, values in expected.items()}, {})
    for chunk in (inputs.shape[1], 1):  # single steps fail if a state output is paired with another input
        try:
            outputs = _run_in_chunks(model, inputs, lengths, chunk)
        except Exception as error:  # ONNX Runtime's errors share no base class but Exception
            raise BundleError(file, f"parity: the graph does not run as the manifest declares it: {error}") from error
        for name, values in expected.items():
            if model.manifest.head.ranks_categories and name == RANKED[0]:
                scores = expected[RANKED[1]][valid]
                allowed = parity.tolerance * tolerance.max_magnitude(scores)
                if misranked := tolerance.count_misranked(outputs[name][valid], values[valid], scores, allowed):
                    raise BundleError(
                        file,
                        f"parity: {misranked} categories in the output {name!r} have another rank than the network's",
                    )
                continue
            if (
                not error_units.in_units(outputs[name][valid], values[valid], unit[name]) <= parity.tolerance
            ):  # a NaN fails too
                worst = tolerance.max_difference(outputs[name][valid], values[valid])
                allowed = parity.tolerance * float(unit[name].max())
                raise BundleError(
                    file, f"parity: output {name!r} is {worst:.3g} off the trained network, {allowed:.3g} allowed"
                )


def _run_in_chunks(
    model: StepModel,
    inputs: InputArray,
    lengths: np.ndarray[tuple[int, ...], np.dtype[np.int32]],
    chunk: int,
) -> Outputs:
    """Returns outputs (batch, time), computed `chunk` steps a call; rows leave the batch as they end."""
    state, outputs = model.layout.initial(len(inputs)), np.zeros(inputs.shape[:2], model.output_dtype)
    for start in range(0, int(lengths.max()), chunk):
        unfinished = np.flatnonzero(lengths > start)
        taken = np.minimum(lengths[unfinished] - start, chunk).astype(np.int32)
        end = start + int(taken.max())
        outputs[unfinished, start:end], state[unfinished] = model.run(
            inputs[unfinished, start:end], taken, state[unfinished]
        )
    return outputs


def _check_parity_shapes(
    file: Path,
    model: StepModel,
    inputs: InputArray,
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
