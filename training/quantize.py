"""A bundle's graph with int8 weights, by ONNX Runtime's dynamic quantisation, and whether it may serve.

Owns the attempt and its verdict. `docs/decisions/0009-no-dynamic-int8.md` says why the verdict is what it is.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from model import checks
from model.checks import CheckError
from model.repository import GRAPH
from model.runner import StepModel
from training.describe import ROWS, cost_us

KERNEL = "DynamicQuantizeLSTM"


class QuantizeError(Exception):
    """A bundle that gains nothing from quantisation, or must not serve after it; the message says why."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What int8 would change: bytes and microseconds a call are (before, after)."""

    graph_bytes: tuple[int, int]
    step_us: dict[int, tuple[float, float]]
    difference: float
    """Of the outputs over 200 steps, in units of each output's largest magnitude."""
    broken: CheckError | None
    """The promise of serving that the quantised graph breaks."""


def attempt(bundle: Path, model: StepModel) -> Attempt:
    """Quantises the recurrent weights and holds the result to `model.checks`, with its tolerance, not equal bits.

    Raises QuantizeError where ONNX Runtime has no int8 kernel for the cell.
    """
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / GRAPH
        prepared = onnx.load(bundle / GRAPH)
        add_pre_process_metadata(prepared)  # shapes are declared already; without it ONNX Runtime logs advice
        quantize_dynamic(prepared, graph, op_types_to_quantize=["LSTM"], weight_type=QuantType.QInt8)
        if KERNEL not in {node.op_type for node in onnx.load(graph).graph.node}:
            raise QuantizeError(
                "ONNX Runtime has int8 kernels for no recurrent cell but the LSTM: nothing that matters would change"
            )
        small = StepModel(graph, model.manifest.model_copy(update={"exact": False}))
        broken = None
        try:
            checks.check(small)
        except CheckError as error:
            broken = error
        costs = {rows: (cost_us(model, rows), cost_us(small, rows)) for rows in ROWS}
        sizes = ((bundle / GRAPH).stat().st_size, graph.stat().st_size)
        return Attempt(sizes, costs, _difference(model, small), broken)


def text(told: Attempt) -> str:
    """Size, speed and accuracy before and after."""
    lines = [f"{'':<24}{'float32':>12}{'int8':>12}"]
    lines.append(f"{'graph, bytes':<24}{told.graph_bytes[0]:>12,}{told.graph_bytes[1]:>12,}")
    lines += [f"{f'a step of {rows}, us':<24}{a:>12,.1f}{b:>12,.1f}" for rows, (a, b) in told.step_us.items()]
    lines.append(f"{'largest difference':<24}{'':>12}{told.difference:>12.2e}")
    return "\n".join(lines)


def _difference(model: StepModel, small: StepModel) -> float:
    """One session at a time, as nothing else is well defined."""
    worst = 0.0
    for row in checks.plausible(model, rows=3, steps=200, seed=1):
        one, two = (each.run_row(row, each.layout.initial(1))[0] for each in (model, small))
        for name in model.manifest.head.outputs:
            worst = max(worst, float(np.abs(one[name] - two[name]).max() / max(float(np.abs(one[name]).max()), 1e-30)))
    return worst
