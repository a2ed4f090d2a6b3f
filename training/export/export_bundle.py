"""From a trained network to a bundle: the graph, proven equal to the network, with its manifest.

Owns the proof. The graph itself is `onward.training.export.graph`'s, and the publishing
`onward.training.export.publish`'s.
"""

import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from onward.model import checks, tolerance
from onward.model.manifest import RANKED, Manifest, Parity
from onward.model.runner import StepModel
from onward.training.export.graph import Array, Contract, build, contract, marginal
from onward.training.export.publish import Measured, publish
from onward.training.network.heads import stored_prediction
from onward.training.network.network import Network
from onward.training.network.ops import TorchOps

Values = NDArray[Any]
Said = tuple[dict[str, Values], dict[str, Values]]
"""Outputs, and state by input."""

TASKS: dict[str, Literal["tokens", "label"]] = {"categorical": "tokens", "label": "label"}
"""By head; the others forecast."""

TOLERANCE = 1e-5
PROOF_STEPS, PARITY_STEPS = 200, 24


class ExportError(Exception):
    """The graph does not agree with the network; the message says where and by how much."""


@torch.no_grad()
def reference(network: Network, declared: Contract, inputs: Array) -> Said:
    """What the network itself says: inputs (batch, time, features) -> outputs (batch, time, ...), state by input.

    The independent side of the proof: torch's own recurrence over the whole sequence, from the initial state.
    """
    network.eval()
    ops, signature = TorchOps(), network.signature
    raw = torch.from_numpy(inputs).transpose(0, 1)  # (time, batch, features)
    prepared = network.prepare(raw)
    hidden, state = network(prepared.inputs, network.initial(raw.shape[1]))
    around = network.head.predict(ops, network.head.read_out(ops, hidden), prepared.target_scale)
    told, near = stored_prediction(ops, network.head, around, prepared.target_scale)
    first_stored, first_near = marginal(network)
    before = {name: _shifted(first_stored[name], value) for name, value in told.items()}
    before |= {name: _shifted(first_near[name], value) for name, value in near.items()}
    actual = raw[..., signature.target_columns].nan_to_num(0.0)
    scores = network.head.surprise(
        ops, before, around, actual if prepared.previous_level is None else actual - prepared.previous_level
    )
    if signature.target_columns:
        scores = torch.where(raw[..., signature.target_columns].isnan(), 0.0, scores)
    outputs = {name: told[name] for name in declared.head.outputs} | {"surprise": scores.sum(dim=-1)}
    states = {f"{name}_in": tensor.transpose(0, 1) for name, tensor in zip(("h", "c"), state, strict=False)}
    states |= {f"{name}_in": value for name, value in _carried(network, raw).items()}
    states |= {f"last_{name}_in": value[-1] for name, value in told.items()}
    states |= {f"near_{name}_in": value[-1] for name, value in near.items()}
    return (
        {name: value.transpose(0, 1).numpy() for name, value in outputs.items()},
        {name: value.numpy() for name, value in states.items()},
    )


def _shifted(first: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """(time, batch, ...) of the step before; `first` has no time and no batch."""
    return torch.cat((first.expand(1, *values.shape[1:]), values[:-1]))


def _carried(network: Network, raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """(batch, ...) what the reading has kept after raw (time, batch, features), plainly, step by step."""
    reading = network.input_layer
    last = reading.first_values.expand(raw.shape[1], -1)
    begun, changed = torch.zeros_like(last), raw.clone()
    for now, step in zip(changed, raw[..., reading.differenced], strict=True) if reading.differenced else ():
        now[:, reading.differenced] = torch.where(begun > 0, step - last, step - step)
        begun = begun + (~step.isnan()).float()
        last = torch.where(step.isnan(), last, step)
    values = changed[..., reading.streaming].double()
    there = ~values.isnan()
    values = values.nan_to_num(0.0)
    kept = {
        "seen": there.double().sum(0),
        "sum": (values.abs() if reading.scaling_kind == "mean" else values).sum(0),
        "squares": (values * values).sum(0),
    }
    kept = {name: kept[name] for name in reading.running_sums}
    return kept | ({"previous": last, "begun": begun} if reading.differenced else {})


def prove(network: Network, declared: Contract, model: StepModel, sample: Array) -> float:
    """Holds the graph to the network over single steps and over one chunk, at batch 1 and 7, even and ragged.

    sample: (7, steps, features). Differences are measured in units of each tensor's largest magnitude over the sample.
    Returns the largest. Raises ExportError where it is above 1e-5.
    """
    worst, time = 0.0, sample.shape[1]

    @cache
    def expected(row: int, length: int) -> Said:
        return reference(network, declared, sample[row : row + 1, :length])

    even, ragged = [time] * len(sample), [max(1, time - 13 * i) for i in range(len(sample))]
    for rows, lengths in ((sample[:1], even[:1]), (sample, even), (sample, ragged)):
        for chunk in (1, time):
            worst = max(worst, _difference(declared, model, rows, lengths, chunk, expected))
    return worst


def _difference(
    declared: Contract,
    model: StepModel,
    rows: Array,
    lengths: list[int],
    chunk: int,
    expected_of: Callable[[int, int], Said],
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
        expected, expected_state = expected_of(i, length)
        pairs = [(name, outputs[name][i, :length], value[0]) for name, value in expected.items()]
        pairs += [(name, state[name][i], value[0]) for name, value in expected_state.items()]
        for name, got, value in pairs:
            difference = _apart(declared, name, got, value, expected, expected_state)
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{name!r} differs from the network by {difference:.3g}, {TOLERANCE:.0e} allowed "
                    f"(batch of {len(rows)}, row of {length} steps, chunks of {chunk})"
                )
            worst = max(worst, difference)
    return worst


def _apart(
    declared: Contract, name: str, got: Values, value: Values, outputs: dict[str, Values], state: dict[str, Values]
) -> float:
    """The largest difference in units of the largest magnitude, at least 1; of places, infinite where one is wrong."""
    by = dict([RANKED, declared.head.last_ranked or RANKED]) if declared.head.ranks else {}
    if name in by:
        ranked = (outputs | state)[by[name]][0]
        return float("inf") if tolerance.misplaced(got, value, ranked, TOLERANCE * tolerance.magnitude(ranked)) else 0.0
    return tolerance.difference(got, value) / max(tolerance.magnitude(value), 1.0)


def export(
    network: Network,
    *,
    bundle: Path,
    sample: Array,
    description: str = "",
    provenance: dict[str, JsonValue] | None = None,
    measure: Callable[[StepModel], Measured] = lambda _: Measured(),
) -> StepModel:
    """Publishes the bundle `<repository>/<name>/<version>` once it is proven, whole or not at all; returns its model.

    sample: (7, 200, features) of real or plausible inputs, on which the proof runs. `measure` is given the proven model
    and returns the manifest's metrics, and what else lies in the bundle. Raises ExportError, CheckError, or
    FileExistsError where the version is taken.
    """
    declared, signature = contract(network), network.signature
    graph = build(network, declared).SerializeToString()
    manifest = Manifest(
        name=bundle.parent.name,
        version=int(bundle.name),
        task=TASKS.get(declared.head.kind, "forecast"),
        description=description,
        inputs=declared.inputs,
        lengths=declared.lengths,
        outputs=declared.outputs,
        state=declared.state,
        features=signature.features,
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
        inputs=[[[None if math.isnan(x) else x for x in step] for step in row] for row in inputs.tolist()],
        lengths=lengths,
        outputs={name: value.tolist() for name, value in outputs.items()},
    )
