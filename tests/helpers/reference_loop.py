"""The independent side of comparisons: a bare ONNX Runtime loop over a bundle, without any code of Onward."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
ZOO = ROOT / "model/zoo"

Steps = dict[str, NDArray[np.float32]]


class BareLoop:
    """An uninterrupted sequence of calls of a graph, one step a call, with a batch of one."""

    def __init__(self, bundle: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(bundle / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self._state = {}
        for pair in json.loads((bundle / "manifest.json").read_text())["state"]:
            shape = [1 if axis == "batch" else axis for axis in pair["shape"]]
            self._state[pair["input"]] = np.broadcast_to(np.array(pair["init"], pair["dtype"]), shape).copy()
        self._outputs = [node.name for node in self._session.get_outputs()]

    def step(self, values: Sequence[float]) -> dict[str, NDArray[np.float32]]:
        """The outputs after one input, by name, each of the shape of a single step."""
        feeds = {"inputs": np.array(values, np.float32).reshape(1, 1, -1), "lengths": np.array([1], np.int32)}
        got = dict(zip(self._outputs, self._session.run(self._outputs, feeds | self._state), strict=True))
        self._state = {name: got[name.removesuffix("_in") + "_out"] for name in self._state}
        return {name: value[0, 0] for name, value in got.items() if not name.endswith("_out")}

    def run(self, rows: Sequence[Sequence[float]]) -> Steps:
        """The outputs after each input, stacked: (steps, ...)."""
        steps = [self.step(row) for row in rows]
        return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def pulse(count: int, start: int = 0) -> list[list[float]]:
    """Real inputs for the zoo's pulse model, from the longer recording."""
    with (ROOT / "examples/pulse/pulse.csv").open() as file:
        rows = [[float(row["ppg"])] for row in csv.DictReader(file) if row["recording"] == "data3"]
    return rows[start : start + count]


def weather(count: int, start: int = 0) -> list[list[float]]:
    """Real inputs for the zoo's weather model."""
    columns = ("precipitation", "temp_max", "temp_min", "wind")
    with (ROOT / "examples/weather/seattle-weather.csv").open() as file:
        rows = [[float(row[column]) for column in columns] for row in csv.DictReader(file)]
    return rows[start : start + count]


INPUTS = {"pulse": pulse, "weather": weather}
"""Real inputs by model of the zoo."""


def assert_same_bits(response: dict[str, object], expected: Steps, rows: slice = slice(None)) -> None:
    """Asserts that the predictions and surprise of a JSON response equal those rows of the loop, bit for bit."""
    predictions = response["predictions"]
    assert isinstance(predictions, dict)
    outputs = {**predictions, "surprise": response["surprise"]}
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        got = np.array(outputs[name], np.float32)
        assert got.shape == value[rows].shape, name
        assert got.tobytes() == value[rows].tobytes(), f"{name}: {got} is not {value[rows]}"
