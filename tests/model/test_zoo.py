"""The shipped bundles: they pass the checks, have reproducible metrics, and beat the baselines."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from onward.model import ZOO
from onward.model.checks import check
from onward.model.repository import bundles, open_all, open_bundle
from onward.training import config
from onward.training.data import datasets
from onward.training.evaluation import evaluation

ROOT = Path(__file__).parents[2]
SHIPPED = [bundle.relative_to(ZOO).as_posix() for bundle in bundles(ZOO)]


def test_the_zoo_opens_whole() -> None:
    """Serving works at once: every shipped bundle opens and none is refused."""
    opened = open_all(ZOO)
    assert not opened.refused
    assert {"pulse", "weather", "characters"} <= set(opened.models)


@pytest.mark.parametrize("folder", SHIPPED)
def test_a_shipped_bundle_passes_the_checks(folder: str) -> None:
    """Batches, chunks, ragged rows and bytes change no answer of a shipped bundle."""
    check(open_bundle(ZOO / folder))


NAIVE = {
    "forecast": {"last_value", "seasonal_naive"},
    "tokens": {"unigram", "bigram"},
    "label": {"most_common"},
}
"""The baselines of every metric, by task."""


def flat(metrics: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(metrics, list):
        metrics = {str(index): part for index, part in enumerate(metrics)}
    if isinstance(metrics, dict):
        return {key: number for name, part in metrics.items() for key, number in flat(part, f"{prefix}{name}.").items()}
    return {prefix: float(metrics)}


@pytest.mark.parametrize("folder", SHIPPED)
def test_the_metrics_of_a_shipped_bundle_are_reproducible(folder: str) -> None:
    """The metrics can be computed again from the example's data, and are better than the baselines'."""
    model = open_bundle(ZOO / folder)
    name = model.manifest.name
    settings = config.read(ROOT / "examples" / name / f"{name}.toml")
    provenance: Any = model.manifest.provenance
    same = provenance["data"]["sha256"] == hashlib.sha256(settings.data_file.read_bytes()).hexdigest()
    assert same or settings.data.package  # each release of the package has a text of its own
    declared = (model.manifest.features, model.manifest.head.classes)
    series = datasets.load(settings.data_file, settings.data, declared).series
    declared_metrics: Any = model.manifest.metrics
    again = evaluation.measure(model, series, settings.data.period, settings.data.horizon).metrics
    assert again["task"] == declared_metrics["task"] == model.manifest.task
    expected, found = (
        flat({key: part for key, part in each.items() if key != "task"}) for each in (declared_metrics, again)
    )
    assert {key: found.get(key) for key in expected} == pytest.approx(expected, rel=1e-6 if same else 0.1)
    assert not evaluation.unbeaten_baselines(declared_metrics)
    for table in declared_metrics["targets"].values():
        assert set(table) >= {"model", "better", *NAIVE[declared_metrics["task"]]}
