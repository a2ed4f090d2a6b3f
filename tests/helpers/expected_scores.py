"""The predictions and anomaly scores that sessions must report, computed from a whole series; and an engine."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.repository import Opened
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.anomaly import MIN_SCORES, RUN
from onward.model.scoring.conformal import RING_SIZE
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore

STEPS = 330


def start_engine(folder: Path, *models: StepModel, **limits: Any) -> Engine:
    """Returns a running engine with these models and a store in the folder; `limits` are fields of Limits."""
    opened = Opened({model.manifest.name: {model.manifest.version: model} for model in models}, [])
    engine = Engine(opened, LmdbStore(folder), Limits(**limits))
    engine.start()
    return engine


def previous_predictions(model: StepModel, outputs: Outputs) -> Outputs:
    """Returns (steps,) the prediction made before each input, from the outputs after each input."""
    predictions = model.last_prediction(model.layout.initial(len(outputs)))
    for name in model.manifest.head.outputs:
        predictions[name][1:] = outputs[name][:-1]
    return predictions


def anomaly_scores(surprise: NDArray[np.float32]) -> list[float]:
    """Returns the anomaly score `run` of each step, computed one by one from a list of the earlier surprises."""
    scores: list[float] = []
    mean = variance = 0.0
    for step, current in enumerate(surprise.tolist()):
        deviation, entered, run = math.sqrt(variance), current, 0.0
        for value in surprise[max(0, step - RUN + 1) : step + 1].tolist():
            run += value
        above = (run / RUN - mean) / deviation if deviation else math.copysign(math.inf, run / RUN - mean)
        probability = min(1, 0.4 / _power_of_16(max(1 + above / 5, 0.5))) if run / RUN != mean or deviation else 1.0
        scores.append(1 - probability if step >= MIN_SCORES else math.nan)
        if step >= MIN_SCORES and deviation:
            entered = min(current, mean + 50 * deviation)
        weight, difference = 1 / min(step + 1, RING_SIZE), entered - mean
        mean += weight * difference
        variance += weight * (difference * (entered - mean) - variance)
    return scores


def _power_of_16(base: float) -> float:
    """Returns base^16 with the bits of four squarings."""
    for _ in range(4):
        base *= base
    return base


def rank_scores(surprise: NDArray[np.float32]) -> list[float]:
    """Returns the anomaly score `rank` of each step, computed one by one from a list of the earlier surprises."""
    scores = []
    for step, current in enumerate(surprise):
        recent = surprise[max(0, step - RING_SIZE) : step]
        p = (1 + sum(float(earlier) >= float(current) for earlier in recent)) / (len(recent) + 1)
        scores.append(1 - p if len(recent) >= MIN_SCORES else math.nan)
    return scores
