"""Metrics in Prometheus' text format: how accurate the predictions of each model are, summed over all workers.

Owns the names of metrics. Where PROMETHEUS_MULTIPROC_DIR names a folder, each worker counts in files of its own in it,
continuing the counts of an ended worker, and any worker reports the sum over all files.
"""

import os
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

from onward.model.runner import StepModel
from onward.model.scoring.layout import Sum
from onward.service.metrics import multiprocess

_MEANINGS = {
    "inputs": ("scored_inputs", "inputs that have a surprise, the score under their prediction"),
    "surprise": (
        "surprise_sum",
        "sum of the surprise of scored inputs; it may fall, because the surprise under a density may be negative",
    ),
    "alarms": ("anomalies", "scored inputs with an anomaly of 0.99 or more"),
    "predicted": ("predicted_inputs", "inputs that had a prediction"),
    "absolute_error": ("absolute_error", "sum of the absolute errors of predictions"),
    "naive_absolute_error": (
        "naive_absolute_error",
        "sum of the absolute errors of the naive prediction, the value before",
    ),
    "inside": ("inside_interval", "inputs inside the model's own central interval"),
    "hits": ("hits", "inputs that were the likeliest category"),
}
_OF_MODEL, _OF_TARGET = ("model", "version"), ("model", "version", "target")


class Metrics:
    """The metrics of this process; satisfies the engine's Observer. A process makes one instance."""

    def __init__(self) -> None:
        if self._shared:
            index = multiprocess.worker_index()
            values.ValueClass = values.MultiProcessValue(lambda: index)  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._of = {name: self._metric(name, *described) for name, described in _MEANINGS.items()}
        self._damaged = Counter("onward_damaged_records", "damaged records that were read", registry=self._registry)

    @property
    def _shared(self) -> bool:
        """True if other processes count too."""
        return multiprocess.VARIABLE in os.environ

    def _metric(self, name: str, named: str, meaning: str) -> Counter | Gauge:
        labels = _OF_MODEL if name in {"inputs", "surprise", "alarms"} else _OF_TARGET
        if name == "surprise":
            return Gauge(f"onward_{named}", meaning, labels, registry=self._registry, multiprocess_mode="sum")
        return Counter(f"onward_{named}", meaning, labels, registry=self._registry)

    def watched(self, model: StepModel, sums: Sequence[Sum]) -> Callable[[Sequence[float]], None]:
        of = (model.manifest.name, str(model.manifest.version))
        children = [self._of[total.name].labels(*of, *([total.target] if total.target else [])) for total in sums]

        def gained(by: Sequence[float]) -> None:
            for child, amount in zip(children, by, strict=True):
                if amount:
                    child.inc(amount)

        return gained

    def damaged(self) -> None:
        self._damaged.inc()

    def text(self) -> bytes:
        """The metrics of all workers in Prometheus' text format."""
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
