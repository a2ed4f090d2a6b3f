"""The bundles that ship: sound, honest and worth having."""

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


@pytest.mark.parametrize("place", SHIPPED)
def test_a_shipped_bundle_passes_the_checks(place: str) -> None:
    """Batches, chunks, ragged rows and bytes change no answer of a shipped bundle."""
    check(open_bundle(ZOO / place))


NAIVE = {
    "forecast": {"last_value", "seasonal_naive"},
    "tokens": {"unigram", "bigram"},
    "label": {"most_common"},
}
"""By task, what every metric stands beside."""


def flat(told: Any, prefix: str = "") -> dict[str, float]:
    if isinstance(told, list):
        told = {str(place): part for place, part in enumerate(told)}
    if isinstance(told, dict):
        return {key: number for name, part in told.items() for key, number in flat(part, f"{prefix}{name}.").items()}
    return {prefix: float(told)}


@pytest.mark.parametrize("place", SHIPPED)
def test_a_shipped_bundle_keeps_its_word(place: str) -> None:
    """Its metrics can be had again from the example's data, that it was trained on, and beat the baselines."""
    model = open_bundle(ZOO / place)
    name = model.manifest.name
    settings = config.read(ROOT / "examples" / name / f"{name}.toml")
    provenance: Any = model.manifest.provenance
    same = provenance["data"]["sha256"] == hashlib.sha256(settings.data_file.read_bytes()).hexdigest()
    assert same or settings.data.package  # each release of the package has a text of its own
    declared = (model.manifest.features, model.manifest.head.classes)
    series = datasets.load(settings.data_file, settings.data, declared).series
    told: Any = model.manifest.metrics
    again = evaluation.measure(model, series, settings.data.period, settings.data.horizon).metrics
    assert again["task"] == told["task"] == model.manifest.task
    known, found = (flat({key: part for key, part in each.items() if key != "task"}) for each in (told, again))
    assert {key: found.get(key) for key in known} == pytest.approx(known, rel=1e-6 if same else 0.1)
    assert not evaluation.unbeaten_baselines(told)
    for table in told["targets"].values():
        assert set(table) >= {"model", "better", *NAIVE[told["task"]]}
