"""From a trained network to a bundle: the graph, proven equal to the network, with its manifest.

Owns the proof. The graph itself is `training.graph`'s, and the publishing `training.publish`'s.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from pydantic import JsonValue

from model import checks
from model.manifest import Manifest, Parity
from model.runner import StepModel
from training.formula import TorchOps
from training.graph import Array, Contract, build, contract
from training.nets import Network
from training.publish import Measured, publish

TOLERANCE = 1e-5
PROOF_STEPS, PARITY_STEPS = 200, 24


class ExportError(Exception):
    """The graph does not agree with the network; the message says where and by how much."""


@torch.no_grad()
def reference(network: Network, declared: Contract, inputs: Array) -> tuple[dict[str, Array], dict[str, Array]]:
    """What the network itself says: inputs (batch, time, features) -> outputs (batch, time, ...), state by input.

    The independent side of the proof: torch's own recurrence over the whole sequence, from the initial state.
    """
    network.eval()
    raw = torch.from_numpy(inputs).transpose(0, 1)  # (time, batch, features)
    said, state = network(network.scaling(raw), network.initial(raw.shape[1]))
    mean, std = network.scaling.mean[network.targets], network.scaling.std[network.targets]
    ops = TorchOps()
    kept = network.head.told(ops, said.unbind(-1), mean, std, std.log())
    first = network.head.marginal(mean, std)
    before = {
        name: torch.cat((first[name].expand(1, raw.shape[1], *first[name].shape), value[:-1]))
        for name, value in kept.items()
    }
    scores = network.head.surprise(ops, before, raw[..., network.targets], std)
    outputs = {name: kept[name] for name in declared.head.outputs} | {"surprise": scores.sum(dim=-1)}
    states = {f"{name}_in": tensor.transpose(0, 1) for name, tensor in zip(("h", "c"), state, strict=False)}
    states |= {f"last_{name}_in": value[-1] for name, value in kept.items()}
    return (
        {name: value.transpose(0, 1).numpy() for name, value in outputs.items()},
        {name: value.numpy() for name, value in states.items()},
    )


def prove(network: Network, declared: Contract, model: StepModel, sample: Array) -> float:
    """Holds the graph to the network over single steps and over one chunk, at batch 1 and 7, even and ragged.

    sample: (7, steps, features). Differences are measured in units of each tensor's largest magnitude over the sample.
    Returns the largest. Raises ExportError where it is above 1e-5.
    """
    worst = 0.0
    time = sample.shape[1]
    for rows in (sample[:1], sample):
        for lengths in ([time] * len(rows), [max(1, time - 13 * i) for i in range(len(rows))]):
            for chunk in (1, time):
                worst = max(worst, _difference(network, declared, model, rows, lengths, chunk))
    return worst


def _difference(
    network: Network, declared: Contract, model: StepModel, rows: Array, lengths: list[int], chunk: int
) -> float:
    state, outputs = model.layout.initial(len(rows)), np.zeros(rows.shape[:2], model.output_dtype)
    left = np.array(lengths)
    for start in range(0, rows.shape[1], chunk):
        going = np.flatnonzero(left > start)
        taken = np.minimum(left[going] - start, chunk).astype(np.int32)
        end = start + int(taken.max())
        outputs[going, start:end], state[going] = model.run(rows[going, start:end], taken, state[going])
    worst = 0.0
    for i, length in enumerate(lengths):
        expected, expected_state = reference(network, declared, rows[i : i + 1, :length])
        pairs = [(name, outputs[name][i, :length], value[0]) for name, value in expected.items()]
        pairs += [(name, state[name][i], value[0]) for name, value in expected_state.items()]
        for name, got, value in pairs:
            difference = float(np.abs(got - value).max() / max(float(np.abs(value).max()), 1.0))
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{name!r} differs from the network by {difference:.3g}, {TOLERANCE:.0e} allowed "
                    f"(batch of {len(rows)}, row of {length} steps, chunks of {chunk})"
                )
            worst = max(worst, difference)
    return worst


def export(
    network: Network,
    *,
    bundle: Path,
    features: Sequence[str],
    targets: Sequence[str],
    sample: Array,
    description: str = "",
    derived: Mapping[str, str] | None = None,
    provenance: dict[str, JsonValue] | None = None,
    measure: Callable[[StepModel], Measured] = lambda _: Measured(),
) -> StepModel:
    """Publishes the bundle `<repository>/<name>/<version>` once it is proven, whole or not at all; returns its model.

    sample: (7, 200, features) of real or plausible inputs, on which the proof runs. `measure` is given the proven model
    and returns the manifest's metrics, and what else lies in the bundle. Raises ExportError, CheckError, or
    FileExistsError where the version is taken.
    """
    declared = contract(network, features, targets)
    graph = build(network, declared).SerializeToString()
    manifest = Manifest(
        name=bundle.parent.name,
        version=int(bundle.name),
        task="forecast",
        description=description,
        inputs=declared.inputs,
        lengths=declared.lengths,
        outputs=declared.outputs,
        state=declared.state,
        features=tuple(features),
        derived=dict(derived or {}),
        head=declared.head,
        exact=network.config.cell in ("lstm", "gru"),
        provenance=provenance or {},
        parity=_parity(network, declared, sample),
        sha256=hashlib.sha256(graph).hexdigest(),
    )

    def proven(model: StepModel) -> dict[str, JsonValue]:
        worst = prove(network, declared, model, sample)
        checks.check(model, sample)
        return {"proof": {"largest_difference": worst, "allowed": TOLERANCE, "steps": sample.shape[1]}}

    return publish(bundle, graph, manifest, prove=proven, measure=measure)


def _parity(network: Network, declared: Contract, sample: Array) -> Parity:
    inputs, lengths = sample[:2, :PARITY_STEPS], [PARITY_STEPS, PARITY_STEPS // 2 + 1]
    outputs, _ = reference(network, declared, inputs)
    inputs = inputs.copy()
    for row, length in enumerate(lengths):
        inputs[row, length:] = 0.0
        for value in outputs.values():
            value[row, length:] = 0.0
    return Parity(
        inputs=inputs.tolist(),
        lengths=lengths,
        outputs={name: value.tolist() for name, value in outputs.items()},
    )
