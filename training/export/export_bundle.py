"""Exports a trained network as a bundle: the graph, proven to agree with the network, and its manifest.

Owns the proof. `onward.training.export.graph` owns the graph, and `onward.training.export.publish` the publishing.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import JsonValue

from onward.model import checks, error_units, tolerance
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
TASKS: dict[str, Literal["tokens", "label"]] = {"categorical": "tokens", "label": "label"}
"""The task by head; all other heads forecast."""

TOLERANCE = error_units.TOLERANCE
"""The largest difference allowed, in the unit of a tensor."""

PROOF_STEPS, PARITY_STEPS = 200, 24
CHECKED_STEPS = 8
"""The least steps of real data on which a model is checked; shorter data are replaced by random sequences."""


class ExportError(OnwardError):
    """The graph does not agree with the network; the message names the tensor and the difference."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The results of a network's own equations."""

    outputs: dict[str, Values]
    """The outputs by name, (batch, time, ...)."""
    state: dict[str, Values]
    """The final state (batch, ...), by the labels of `onward.model.state.Layout.parts`."""
    deviation: Values | None
    """The largest deviation by which each row's targets were scaled, (batch, targets); None where none are numbers."""


@torch.no_grad()
def reference(network: Network, declared: Contract, inputs: Array) -> Reference:
    """Returns the network's own outputs and final state for inputs (batch, time, features).

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
    states = {
        f"{name}_{layer}": part.reshape(raw.shape[1], -1)  # the channels of a row lie side by side
        for name, layers in recurrent
        for layer, part in enumerate(layers)
    }
    joined = {part.name for pair in declared.state if pair.input == "state_in" for part in pair.parts}
    states |= {name: value[-1].flatten(1) if name in joined else value[-1] for name, value in last.items()}
    states = {part_label("state_in", name) if name in joined else f"last_{name}_in": states[name] for name in states}
    states |= _input_layer_state(network, prepared.values)
    scale = None if prepared.target_scale is None else prepared.target_scale.std
    return Reference(
        {name: value.transpose(0, 1).numpy() for name, value in outputs.items()},
        {name: value.numpy() for name, value in states.items()},
        None if scale is None else scale.expand(*raw.shape[:2], -1).amax(dim=0).numpy(),
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


def prove(network: Network, declared: Contract, model: StepModel, sample: Iterable[Array]) -> float:
    """Compares the graph with the network over single steps and over one chunk, at batch 1 and 7, even and ragged.

    sample: 7 rows (steps, features). Returns the largest difference, in the units of `onward.model.error_units`. Raises
    ExportError, which names the tensor, if it is above 1e-5.
    """
    stretches = list(sample)
    worst, rows = 0.0, _padded(stretches)

    @cache
    def expected(row: int, length: int) -> Reference:
        return reference(network, declared, rows[row : row + 1, :length])

    whole = [len(row) for row in stretches]
    ragged = [max(1, length - 13 * row) for row, length in enumerate(whole)]
    for lengths in (whole[:1], whole, ragged):
        for chunk in (1, max(lengths)):
            worst = max(worst, _difference(network, model, rows[: len(lengths)], lengths, chunk, expected))
    return worst


def _padded(rows: Sequence[Array]) -> Array:
    """Returns (rows, steps, features) with zeros after each row's end."""
    padded = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), rows[0].dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded


def _difference(
    network: Network,
    model: StepModel,
    rows: Array,
    lengths: list[int],
    chunk: int,
    expected_of: Callable[[int, int], Reference],
) -> float:
    state, outputs = model.layout.initial(len(rows)), np.zeros(rows.shape[:2], model.output_dtype)
    remaining = np.array(lengths)
    for start in range(0, max(lengths), chunk):
        active = np.flatnonzero(remaining > start)
        steps = np.minimum(remaining[active] - start, chunk).astype(np.int32)
        end = start + int(steps.max())
        outputs[active, start:end], state[active] = model.run(rows[active, start:end], steps, state[active])
    worst, parts = 0.0, model.layout.parts(state)
    for row, length in enumerate(lengths):
        expected = expected_of(row, length)
        outputs_of_row = {name: value[0] for name, value in expected.outputs.items()}
        states_of_row = {name: value[0] for name, value in expected.state.items()}
        deviation = None if expected.deviation is None else expected.deviation[0]
        unit = error_units.units(model, outputs_of_row, states_of_row, deviation)
        pairs = [(name, outputs[name][row, :length], value) for name, value in outputs_of_row.items()]
        pairs += [(name, parts[name][row], value) for name, value in states_of_row.items()]
        for name, actual, value in pairs:
            difference = _in_units(model, name, actual, value, outputs_of_row | states_of_row, unit[name])
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{_described(network, name)} differs from the network by {difference:.3g} "
                    f"{_unit_in_words(model, name)}, {TOLERANCE:.0e} allowed "
                    f"({name}, in a batch of {len(rows)}, row of {length} steps, chunks of {chunk})"
                )
            worst = max(worst, difference)
    return worst


def _in_units(
    model: StepModel, name: str, actual: Values, value: Values, expected: dict[str, Values], unit: Values
) -> float:
    """Returns the largest difference in that unit.

    For ranked categories the difference is infinite if a category has a wrong rank, and 0 otherwise.
    """
    head = model.manifest.head
    scores_of = dict([RANKED, head.last_ranking or RANKED]) if head.ranks_categories else {}
    if name in scores_of:
        scores = expected[scores_of[name]]
        wrong = tolerance.count_misranked(actual, value, scores, TOLERANCE * tolerance.max_magnitude(scores))
        return float("inf") if wrong else 0.0
    return error_units.in_units(actual, value, unit)


def _described(network: Network, name: str) -> str:
    """Returns in words what a tensor of the graph, or a part of its state, is."""
    layer, bare = network.input_layer, error_units.bare_name(name)
    kind, _, number = bare.partition("_")
    targets = ", ".join(network.signature.targets)
    if name == "surprise":
        return "the surprise"
    if kind in ("h", "c") and number.isdigit():
        return f"the {'hidden' if kind == 'h' else 'cell'} state of layer {int(number) + 1}"
    if name.startswith("statistics_in"):
        return f"the running {name.rpartition('.')[2]} of {', '.join(layer.features[i].name for i in layer.streaming)}"
    if name in ("previous_in", "begun_in"):
        return f"the last value of {', '.join(layer.features[i].name for i in layer.differenced)}"
    relative = ", relative to the last value," if error_units.is_near(name) else ""
    return f"the prediction of {targets} ({bare.replace('_', ' ')}){relative}"


def _unit_in_words(model: StepModel, name: str) -> str:
    on_axis = error_units.bare_name(name) in error_units.ON_AXIS and not model.manifest.head.ranks_categories
    return "of the target's deviation" if on_axis else "of its magnitude"


def export(
    network: Network,
    *,
    bundle: Path,
    sample: Iterable[Array],
    description: str = "",
    provenance: dict[str, JsonValue] | None = None,
    data: TableSettings | None = None,
    measure: Callable[[StepModel], Measured] = lambda _: Measured(),
) -> StepModel:
    """Proves and publishes the bundle `<repository>/<name>/<version>`, complete or not at all; returns its model.

    sample: 7 rows (up to 200 steps, features) of real or plausible inputs, on which the proof runs. `measure` is
    called with the proven model and returns the manifest's metrics and further files of the bundle. Raises ExportError,
    CheckError, or FileExistsError if the version exists already.
    """
    declared, rows = contract(network), list(sample)
    graph = build(network, declared).SerializeToString()
    manifest = _manifest(
        network, declared, graph, (bundle.parent.name, int(bundle.name)), _parity(network, declared, rows)
    ).model_copy(update={"description": description, "data": data, "provenance": provenance or {}})

    def proven(model: StepModel) -> dict[str, JsonValue]:
        worst, steps = prove(network, declared, model, rows), min(map(len, rows))
        checks.check(model, np.stack([row[:steps] for row in rows]) if steps >= CHECKED_STEPS else None)
        return {"proof": {"largest_difference": worst, "allowed": TOLERANCE, "steps": max(map(len, rows))}}

    return publish(bundle, graph, manifest, prove=proven, measure=measure)


def draft(network: Network) -> StepModel:
    """Returns the model of a network that is neither proven nor published, for comparisons."""
    declared = contract(network)
    graph = build(network, declared).SerializeToString()
    parity = Parity(inputs=[], lengths=[], outputs={})
    return StepModel(Path("draft"), _manifest(network, declared, graph, ("draft", 1), parity), graph=graph)


def _manifest(network: Network, declared: Contract, graph: bytes, name: tuple[str, int], parity: Parity) -> Manifest:
    """Returns the manifest of a graph; name: that of the model, and its version."""
    return Manifest(
        name=name[0],
        version=name[1],
        task=TASKS.get(declared.head.kind, "forecast"),
        inputs=declared.inputs,
        lengths=declared.lengths,
        outputs=declared.outputs,
        state=declared.state,
        features=network.signature.features,
        head=declared.head,
        exact=network.config.cell in ("lstm", "gru"),
        parity=parity,
        sha256=hashlib.sha256(graph).hexdigest(),
    )


def _parity(network: Network, declared: Contract, sample: Sequence[Array]) -> Parity:
    cut = [row[:length] for row, length in zip(sample, (PARITY_STEPS, PARITY_STEPS // 2 + 1), strict=False)]
    inputs, lengths = _padded(cut), [len(row) for row in cut]
    outputs = reference(network, declared, inputs).outputs
    for row, length in enumerate(lengths):
        for value in outputs.values():
            value[row, length:] = 0.0
    return Parity(
        inputs=[[[None if math.isnan(x) else x for x in step] for step in row] for row in inputs.tolist()],
        lengths=lengths,
        outputs={name: value.tolist() for name, value in outputs.items()},
    )
