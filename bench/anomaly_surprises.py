"""The surprises of small models on the generated series of `anomaly_series.py`, for the benchmark of anomaly scores.

Each series has a model of its own, which is trained on the points before any fault. Needs the `train` extra.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bench.anomaly_series import Series
from onward.model.manifest import Feature
from onward.training.config import Model, Train
from onward.training.data.datasets import Dataset
from onward.training.data.datasets import Series as TrainingSeries
from onward.training.data.training_statistics import compute
from onward.training.fit import training_loop
from onward.training.network.network import Network, Signature
from onward.training.network.ops import TorchOps

VALIDATED = 0.2
"""The share of the points before any fault on which training is validated."""


def surprises(series: Series, folder: Path) -> NDArray[np.float32]:
    """Returns the surprise (points,) of each point of a series; read from `folder` if it has them."""
    path = folder / f"{series.name}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        np.save(path, _compute(series))
    found: NDArray[np.float32] = np.load(path)
    return found


def _compute(series: Series) -> NDArray[np.float32]:
    values, trained = series.values.astype(np.float32)[:, np.newaxis], series.probation
    part = TrainingSeries(series.name, values[:trained], int(trained * (1 - VALIDATED)), trained)
    feature = Feature(name="x")
    signature = Signature((feature,), ("x",))
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Model.model_validate({"cell": "gru", "units": 16, "scaling": "causal", "head": "student_t"})
    network = Network(model, signature, compute(Dataset((part,), "", (feature,))))
    settings = Train(epochs=60, window=50, batch=8, learning_rate=0.01, patience=12, schedule="cosine")
    training_loop.fit(network, [part], settings, quiet=True)
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(values)[:, None])
        hidden, _ = network(prepared.inputs, network.initial(1))
        ops, scale = TorchOps(), prepared.target_scale
        assert scale is not None
        after = network.head.predict(ops, network.head.read_out(ops, hidden), scale)
        level = torch.zeros_like(scale.mean) if scale.level is None else scale.level
        before = {name: output[:-1] for name, output in after.items()}
        scores = network.head.surprise(ops, before, after, torch.from_numpy(values)[1:, None] - level[:-1])
    found: NDArray[np.float32] = np.concatenate(([0.0], scores[:, 0, 0].numpy())).astype(np.float32)
    return found
