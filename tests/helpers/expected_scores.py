"""What sessions say of their predictions, computed anew from a whole series, and an engine that counts."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onward.model.repository import Opened
from onward.model.runner import Outputs, StepModel
from onward.model.scoring.conformal import MIN_SCORES, RING_SIZE
from onward.service.engine.engine import Engine, Limits
from onward.service.store.lmdb import LmdbStore

STEPS = 330


def serving(folder: Path, *models: StepModel, **limits: Any) -> Engine:
    opened = Opened({model.manifest.name: {model.manifest.version: model} for model in models}, [])
    engine = Engine(opened, LmdbStore(folder), Limits(**limits))
    engine.start()
    return engine


def before(model: StepModel, outputs: Outputs) -> Outputs:
    """(steps,) what was said before each input, of outputs after each."""
    said = model.last_prediction(model.layout.initial(len(outputs)))
    for name in model.manifest.head.outputs:
        said[name][1:] = outputs[name][:-1]
    return said


def anomaly(surprise: NDArray[np.float32]) -> list[float]:
    """One by one, from a list of what came before."""
    told = []
    for step, one in enumerate(surprise):
        last = surprise[max(0, step - RING_SIZE) : step]
        p = (1 + sum(float(other) >= float(one) for other in last)) / (len(last) + 1)
        told.append(1 - p if len(last) >= MIN_SCORES else math.nan)
    return told
