"""Exports a trained network as a bundle: the graph, proven to agree with the network, and its manifest.

Owns the proof. `onward.training.export.graph` owns the graph, and `onward.training.export.publish` the publishing.
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
from onward.model.errors import OnwardError
from onward.model.manifest import RANKED, Manifest, Parity, part_label
from onward.model.runner import StepModel
from onward.model.tables.settings import TableSettings
from onward.training.export.graph import Array, Contract, build, contract, marginal
from onward.training.export.publish import Measured, publish
from onward.training.network.heads import stored_prediction, surprise
from onward.training.network.network import Network
from onward.training.network.ops import TorchOps

Values = NDArray[Any]
Result = tuple[dict[str, Values], dict[str, Values]]
"""Outputs by name, and the final state by the label of each tensor or part."""

TASKS: dict[str, Literal["tokens", "label"]] = {"categorical": "tokens", "label": "label"}
"""The task by head; all other heads forecast."""

TOLERANCE = 1e-5
"""The largest difference allowed, in units of the largest magnitude of a tensor."""

PROOF_STEPS, PARITY_STEPS = 200, 24


class ExportError(OnwardError):
    """The graph does not agree with the network; the message names the tensor and the difference."""


@torch.no_grad()
def reference(network: Network, declared: Contract, inputs: Array) -> Result:
    """Returns the network's own outputs (batch, time, ...) and final state for inputs (batch, time, features).

    The state is named as by `onward.model.state.Layout.parts`.

    This is the independent side of the proof: torch's own recurrence over the whole sequence, from the initial state.
    """
    network.eval()
    ops, signature = TorchOps(), network.signature
    raw = torch.from_numpy(inputs).transpose(0, 1)  # (time, batch, features)
    prepared = network.prepare(raw)
    hidden, state = network(prepared.inputs, network.initial(raw.shape[1]))
    around = network.head.predict(ops, network.head.read_out(ops, hidden), prepared.target_scale)
    last = stored_prediction(ops, network.head, around, prepared.target_scale)
    first = marginal(network)
    before = {name: _shifted(torch.from_numpy(first[name]), value) for name, value in last.items()}
    actual = prepared.values[..., signature.target_columns].nan_to_num(0.0)
    scores = surprise(ops, network.head, before, around, actual, prepared.previous_level)
    if signature.target_columns:
        scores = torch.where(raw[..., signature.target_columns].isnan(), 0.0, scores)
    outputs = {name: last[name] for name in declared.head.outputs} | {"surprise": scores.sum(dim=-1)}
    recurrent = zip(("h", "c"), state, strict=False)
    states = {f"{name}_{layer}": part for name, layers in recurrent for layer, part in enumerate(layers)}
    joined = {part.name for pair in declared.state if pair.input == "state_in" for part in pair.parts}
    states |= {name: value[-1].flatten(1) if name in joined else value[-1] for name, value in last.items()}
    states = {part_label("state_in", name) if name in joined else f"last_{name}_in": states[name] for name in states}
    states |= _input_layer_state(network, prepared.values)
    return (
        {name: value.transpose(0, 1).numpy() for name, value in outputs.items()},
        {name: value.numpy() for name, value in states.items()},
    )


def _shifted(first: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Returns (time, batch, ...) the values of the previous step; `first` has neither a time nor a batch axis."""
    return torch.cat((first.expand(1, *values.shape[1:]), values[:-1]))


def _input_layer_state(network: Network, raw: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns (batch, ...) the state of the input layer after transformed values (time, batch, features)."""
    layer = network.input_layer
    last = layer.first_values.expand(raw.shape[1], -1)
    begun, changed = torch.zeros_like(last), raw.clone()
    for now, step in zip(changed, raw[..., layer.differenced], strict=True) if layer.differenced else ():
        now[:, layer.differenced] = torch.where(begun > 0, step - last, step - step)
        begun = begun + (~step.isnan()).float()
        last = torch.where(step.isnan(), last, step)
    state = {"previous_in": last, "begun_in": begun} if layer.differenced else {}
    if layer.running:
        statistics = layer.running_statistics(TorchOps(), changed[..., layer.streaming].double())
        parts = zip(layer.running.parts, statistics, strict=True)
        state |= {part_label("statistics_in", name): part[-1] for name, part in parts}
    return state


def prove(network: Network, declared: Contract, model: StepModel, sample: Array) -> float:
    """Compares the graph with the network over single steps and over one chunk, at batch 1 and 7, even and ragged.

    sample: (7, steps, features). Differences are measured in units of each tensor's largest magnitude over the sample,
    or of 1 if that is larger; in double precision, of its largest distance from the initial value, or of the deviation
    of the targets. Returns the largest difference. Raises
    ExportError if it is above 1e-5.
    """
    worst, time = 0.0, sample.shape[1]
    least = {}
    if network.input_layer.is_double and network.signature.number_columns:
        deviation = network.input_layer.initial_target_scale(network.signature.number_columns).std.max()
        names = [name for output in declared.head.outputs for name in (output, f"last_{output}_in")]
        least = dict.fromkeys(names, float(deviation))

    @cache
    def expected(row: int, length: int) -> Result:
        return reference(network, declared, sample[row : row + 1, :length])

    even, ragged = [time] * len(sample), [max(1, time - 13 * i) for i in range(len(sample))]
    for rows, lengths in ((sample[:1], even[:1]), (sample, even), (sample, ragged)):
        for chunk in (1, time):
            worst = max(worst, _difference(declared, model, rows, lengths, chunk, expected, least))
    return worst


def _difference(
    declared: Contract,
    model: StepModel,
    rows: Array,
    lengths: list[int],
    chunk: int,
    expected_of: Callable[[int, int], Result],
    least: dict[str, float],
) -> float:
    state, outputs = model.layout.initial(len(rows)), np.zeros(rows.shape[:2], model.output_dtype)
    remaining = np.array(lengths)
    for start in range(0, rows.shape[1], chunk):
        active = np.flatnonzero(remaining > start)
        steps = np.minimum(remaining[active] - start, chunk).astype(np.int32)
        end = start + int(steps.max())
        outputs[active, start:end], state[active] = model.run(rows[active, start:end], steps, state[active])
    worst, parts = 0.0, model.layout.parts(state)
    for row, length in enumerate(lengths):
        expected, expected_state = expected_of(row, length)
        pairs = [(name, outputs[name][row, :length], value[0]) for name, value in expected.items()]
        pairs += [(name, parts[name][row], value[0]) for name, value in expected_state.items()]
        for name, actual, value in pairs:
            unit = max(model.unit(name, value), least.get(name, 1.0))
            difference = _relative_difference(declared, name, actual, value, expected | expected_state, unit)
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{name!r} differs from the network by {difference:.3g}, {TOLERANCE:.0e} allowed "
                    f"(batch of {len(rows)}, row of {length} steps, chunks of {chunk})"
                )
            worst = max(worst, difference)
    return worst


def _relative_difference(
    declared: Contract, name: str, actual: Values, value: Values, expected: dict[str, Values], unit: float
) -> float:
    """Returns the largest difference in that unit.

    For ranked categories the difference is infinite if a category has a wrong rank, and 0 otherwise.
    """
    scores_of = dict([RANKED, declared.head.last_ranking or RANKED]) if declared.head.ranks_categories else {}
    if name in scores_of:
        scores = expected[scores_of[name]][0]
        wrong = tolerance.count_misranked(actual, value, scores, TOLERANCE * tolerance.max_magnitude(scores))
        return float("inf") if wrong else 0.0
    return tolerance.max_difference(actual, value) / unit


def export(
    network: Network,
    *,
    bundle: Path,
    sample: Array,
    description: str = "",
    provenance: dict[str, JsonValue] | None = None,
    data: TableSettings | None = None,
    measure: Callable[[StepModel], Measured] = lambda _: Measured(),
) -> StepModel:
    """Proves and publishes the bundle `<repository>/<name>/<version>`, complete or not at all; returns its model.

    sample: (7, 200, features) of real or plausible inputs, on which the proof runs. `measure` is called with the proven
    model and returns the manifest's metrics and further files of the bundle. Raises ExportError, CheckError, or
    FileExistsError if the version exists already.
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
        data=data,
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
