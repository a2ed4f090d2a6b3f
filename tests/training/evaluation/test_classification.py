"""Scores of choices and of series with holes, against brute force one step a call; and the page that shows them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.runner import StepModel
from onward.training.data.datasets import Series
from onward.training.evaluation import backtest, classification, evaluation, ranking_metrics
from onward.training.evaluation.ranking_metrics import Bigram
from onward.training.report import html_report, report_table
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import draw, signature
from tests.helpers.recorded_bundles import category, stepped_outputs

MIXED = (Feature(name="x", nullable=True), category("word", 9, nullable=True, unknown=True))


def words(top: int = 20) -> StepModel:
    return numpy_networks.export(
        numpy_networks.network(signature(MIXED, "word"), cell="gru", units=6, head="categorical", top=top)
    )


def parts(*lengths: tuple[int, int, int], features: Sequence[Feature] = MIXED) -> list[Series]:
    """Series of so many steps, validation from and test from."""
    return [
        Series(f"s{place}", draw(features, 1, steps, seed=place)[0], validation, test)
        for place, (steps, validation, test) in enumerate(lengths)
    ]


HELD = [(40, 20, 30), (30, 30, 30), (12, 0, 0), (1, 0, 0), (25, 0, 0), (300, 0, 0), (20, 0, 20)]
"""Ends held out, none held out, whole series held out, one of a single step, one longer than a call, validation."""


@pytest.mark.parametrize("top", [20, 3])
def test_tokens_are_scored_one_by_one(top: int) -> None:
    """Each held-out category but its sequence's first, and none that is missing, under what was said before it."""
    model, series = words(top), parts(*HELD)
    surprise: list[float] = []
    ranks: list[float] = []
    actual: list[int] = []
    contexts: list[int] = []
    for one in series:
        outputs = stepped_outputs(model, one.values)
        places = one.values[:, 1]
        for t in range(max(1, one.test_from), len(places)):
            if math.isnan(places[t]):
                continue
            surprise.append(float(outputs["surprise"][t]))
            found = np.flatnonzero(outputs["top"][t - 1] == places[t])
            ranks.append(found[0] + 1 if len(found) else math.inf)
            actual.append(int(places[t]))
            contexts.append(-1 if math.isnan(places[t - 1]) else int(places[t - 1]))
    metrics, shown = classification.tokens(model, series)
    assert -1 in contexts
    assert metrics["steps"] == len(actual)
    assert metrics["mean_surprise"] == pytest.approx(np.mean(surprise))
    told = metrics["targets"]["word"]["model"]
    assert told["bits"] == pytest.approx(np.mean(surprise) / math.log(2))
    assert told["perplexity"] == pytest.approx(math.exp(np.mean(surprise)))
    assert told["accuracy"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert told["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert ("recall_10" in told) is (top == 20)
    trained = [one.values[: one.validation_from, 1] for one in series]
    counted = Bigram([part[~np.isnan(part)].astype(np.int64) for part in trained], 10)
    expected = ranking_metrics.tokens(
        *counted.bigram(np.array(contexts), np.array(actual), min(top, 10)), np.array(actual)
    )
    assert metrics["targets"]["word"]["bigram"] == pytest.approx(expected)
    plain = np.bincount(np.concatenate([part[~np.isnan(part)] for part in trained]).astype(int), minlength=10) + 1
    bits = -np.log2(plain / plain.sum())[actual].mean()
    assert metrics["targets"]["word"]["unigram"]["bits"] == pytest.approx(bits)
    longest = series[5].values[1:, 1]
    assert shown.series == "s5"
    names = [None if place == 9 else f"word{int(place)}" for place in longest[~np.isnan(longest)]]
    assert list(shown.categories) == names
    assert shown.surprise.tolist() == pytest.approx(surprise[-len(names) :])


def test_what_holds_no_token_out_is_refused() -> None:
    """A sequence of a single step has nothing that follows."""
    with pytest.raises(ValueError, match="no category is held out: every held-out sequence has a single step"):
        classification.tokens(words(), parts((20, 10, 20), (1, 0, 0)))


CLASSES = ("a", "b", "c")


def labeller(*, per_sequence: bool) -> StepModel:
    spoken = signature(MIXED, "who", classes=CLASSES, per_sequence=per_sequence)
    return numpy_networks.export(numpy_networks.network(spoken, cell="lstm", units=6, head="label", scaling="causal"))


def labelled(*, per_sequence: bool) -> list[Series]:
    rng, told = np.random.default_rng(3), []
    for one in parts(*HELD):
        labels = rng.integers(3, size=len(one.values))
        labels[rng.random(len(labels)) < 0.3] = 1
        if per_sequence:
            labels[:] = labels[-1]
        told.append(Series(one.name, one.values, one.validation_from, one.test_from, labels))
    return told


@pytest.mark.parametrize("per_sequence", [False, True])
def test_labels_are_scored_one_by_one(per_sequence: bool) -> None:
    """Each held-out step's, the first of a sequence too, or the last of each held-out sequence alone."""
    model, series = labeller(per_sequence=per_sequence), labelled(per_sequence=per_sequence)
    said: list[int] = []
    true: list[int] = []
    surprise: list[float] = []
    seen: list[int] = []
    for one in series:
        assert one.labels is not None
        outputs = stepped_outputs(model, one.values)
        trained = one.labels[: one.validation_from].tolist()
        seen += trained[-1:] if per_sequence else trained
        steps = list(range(one.test_from, len(one.values)))
        surprise += [float(outputs["surprise"][t]) for t in steps]
        for t in steps[-1:] if per_sequence else steps:
            said.append(int(outputs["top"][t, 0]))
            true.append(int(one.labels[t]))
    metrics, confusion = classification.labels(model, series)
    assert metrics["steps"] == len(true) == (5 if per_sequence else 10 + 12 + 1 + 25 + 300)
    assert metrics["mean_surprise"] == pytest.approx(np.mean(surprise))
    told = metrics["targets"]["who"]
    assert told["model"]["accuracy"] == pytest.approx(np.mean(np.array(said) == true))
    common = max(range(3), key=seen.count)
    assert told["most_common"]["accuracy"] == pytest.approx(np.mean(np.array(true) == common))
    expected = np.zeros((3, 3), int)
    for right, answer in zip(true, said, strict=True):
        expected[right, answer] += 1
    assert confusion.counts.tolist() == expected.tolist()
    assert confusion.classes == CLASSES


def test_what_holds_no_label_out_is_refused() -> None:
    one = labelled(per_sequence=False)[1]
    with pytest.raises(ValueError, match="no label is held out"):
        classification.labels(labeller(per_sequence=False), [one])


NUMBERS = (Feature(name="x", nullable=True), Feature(name="y"))


def forecaster() -> StepModel:
    made = numpy_networks.network(signature(NUMBERS, "x", "y"), cell="gru", units=5, head="gaussian", scaling="causal")
    return numpy_networks.export(made)


def last_seen(values: NDArray[np.float32], t: int, mean: float) -> float:
    before = values[: t + 1][~np.isnan(values[: t + 1])]
    return float(before[-1]) if len(before) else mean


def test_forecasts_with_holes_are_scored_where_there_is_a_value() -> None:
    """Of whole held-out series from the third step; a naive forecast takes the last value seen, or the mean."""
    model = forecaster()
    series = parts((60, 40, 50), (30, 0, 0), (40, 0, 0), (25, 0, 25), features=NUMBERS)
    series[1].values[:4, 0] = np.nan
    trained = series[0].values[:40, 0].astype(np.float64)
    mean, errors, naive = float(np.nanmean(trained)), [], []
    for one in series:
        outputs = stepped_outputs(model, one.values)
        for t in range(max(2, one.test_from), len(one.values)):
            if not math.isnan(actual := float(one.values[t, 0])):
                errors.append(abs(actual - float(outputs["mean"][t - 1, 0])))
                naive.append(abs(actual - last_seen(one.values[:, 0], t - 1, mean)))
    metrics, trace = backtest.measure(model, series)
    assert metrics["steps"] == 10 + 28 + 38
    assert len(errors) < metrics["steps"]
    told = metrics["targets"]["x"]
    assert told["model"]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert told["model"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
    assert told["last_value"]["mae"] == pytest.approx(np.mean(naive), rel=1e-5)
    assert trace.series == "s2"
    inside = told["model"]["coverage_80"]
    assert 0 < inside <= 1


def test_rolled_forecasts_with_holes() -> None:
    """At every origin each step ahead is held to its value, where there is one, whatever is missing before it."""
    model, horizon = forecaster(), 3
    series = parts((60, 40, 45), (20, 0, 0), features=NUMBERS)
    errors: list[list[float]] = [[] for _ in range(horizon)]
    origins = 0
    for one in series:
        for origin in range(max(2, one.test_from) - 1, len(one.values) - horizon):
            outputs, state = model.run_row(one.values[: origin + 1], model.layout.initial(1))
            said, origins = outputs["mean"][-1], origins + 1
            for step in range(horizon):
                actual = float(one.values[origin + 1 + step, 0])
                if not math.isnan(actual):
                    errors[step].append(abs(actual - float(said[0])))
                outputs, state = model.run_row(said[np.newaxis].astype(np.float32), state)
                said = outputs["mean"][-1]
    horizons = backtest.measure(model, series, None, horizon)[0]["horizons"]
    assert (horizons["steps"], horizons["origins"]) == (horizon, origins)
    assert horizons["targets"]["x"]["model"]["mae"] == pytest.approx([np.mean(each) for each in errors], rel=1e-4)


def test_what_holds_no_number_out_is_refused() -> None:
    """Two steps have nothing to compare with; a target whose every value is missing has no score."""
    model = forecaster()
    with pytest.raises(ValueError, match="nothing is held out: every held-out series has fewer than three steps"):
        backtest.measure(model, parts((20, 10, 20), (2, 0, 0), features=NUMBERS))
    series = parts((20, 10, 15), features=NUMBERS)
    series[0].values[15:, 0] = np.nan
    with pytest.raises(ValueError, match="no value of x is held out: all are missing"):
        backtest.measure(model, series)


def judged(own: dict[str, float], other: dict[str, float], task: str) -> dict[str, Any]:
    tables = {"model": own, "naive": other}
    tables["better"] = evaluation._better(tables, evaluation.DECISIVE[task])
    return {"task": task, "targets": {"t": tables}}


def test_more_of_a_share_is_better_and_less_of_an_error() -> None:
    """A measure loses by its own direction, and equal is not better."""
    good, bad = {"bits": 1.0, "mrr": 0.8}, {"bits": 2.0, "mrr": 0.4}
    metrics = judged(good, bad, "tokens")
    assert metrics["targets"]["t"]["better"] == {"naive": pytest.approx({"bits": 0.5, "mrr": 1.0})}
    assert not evaluation.unbeaten_baselines(metrics)
    metrics = judged(bad, good, "tokens")
    assert metrics["targets"]["t"]["better"] == {"naive": pytest.approx({"bits": -1.0, "mrr": -0.5})}
    assert evaluation.unbeaten_baselines(metrics) == [("t", "naive", "bits"), ("t", "naive", "mrr")]
    assert evaluation.unbeaten_baselines(judged({"bits": 1.0, "mrr": 0.3}, bad, "tokens")) == [("t", "naive", "mrr")]
    assert evaluation.unbeaten_baselines(judged(good, good, "tokens")) == [
        ("t", "naive", "bits"),
        ("t", "naive", "mrr"),
    ]
    labels = judged({"accuracy": 0.5, "macro_f1": 0.2}, {"accuracy": 0.4, "macro_f1": 0.2}, "label")
    assert evaluation.unbeaten_baselines(labels) == [("t", "naive", "macro_f1")]
    none = judged({"accuracy": 0.5, "macro_f1": 0.2}, {"accuracy": 0.0, "macro_f1": 0.1}, "label")
    assert none["targets"]["t"]["better"] == {"naive": pytest.approx({"macro_f1": 1.0})}
    assert not evaluation.unbeaten_baselines(none)


NASTY = ("<script>alert('x')</script>", '"&amp;', "</p>")


def page(model: StepModel, series: list[Series], **told: Any) -> str:
    found = evaluation.measure(model, series)
    manifest = model.manifest.model_copy(update={"metrics": found.metrics} | told)
    assert str(found.metrics["steps"]) in report_table.text(manifest)
    return html_report.html(manifest, found.illustration)


@pytest.mark.parametrize("text", [None, "characters"])
def test_the_page_of_tokens_is_escaped(text: str | None) -> None:
    """Markup among the categories stays text, each has its bits; one that is unknown is shown as such."""
    names = NASTY if text is None else ("<", "&", '"')
    word = Feature.model_validate({"name": "<b>word</b>", "kind": "category", "categories": names, "unknown": True,
                                   "text": text})  # fmt: skip
    model = numpy_networks.export(
        numpy_networks.network(signature((word,), word.name), cell="gru", units=4, head="categorical")
    )
    told = page(model, parts((40, 20, 30), features=(word,)))
    assert "<script" not in told
    assert "<b>" not in told
    assert "&lt;b&gt;word&lt;/b&gt;" in told
    assert ("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</span>" in told) is (text is None)
    assert (">&lt;</span>" in told) is (text is not None)
    assert "\N{REPLACEMENT CHARACTER}</span>" in told
    assert told.count(' bits">') == 10
    for name in ("perplexity", "MRR@20", "most popular", "Markov chain"):
        assert name in told


def test_the_page_of_labels_is_escaped() -> None:
    """The counts of what was said for what, with the classes' names as text."""
    spoken = signature((Feature(name="x"),), "who", classes=NASTY)
    model = numpy_networks.export(numpy_networks.network(spoken, cell="gru", units=4, head="label"))
    (one,) = parts((40, 20, 30), features=spoken.features)
    series = Series(one.name, one.values, 20, 30, np.arange(40) % 3)
    told = page(model, [series])
    assert "<script" not in told
    assert told.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</th>") == 2
    _, confusion = classification.labels(model, [series])
    assert sum(told.count(f">{count}</td>") for count in {int(n) for n in confusion.counts.flat} - {0}) >= 3
    for name in ("accuracy", "macro F1", "most common"):
        assert name in told


def test_a_bundle_is_measured_by_its_task() -> None:
    """Tokens, labels and numbers each by their own scores, with what beats what."""
    metrics = evaluation.measure(words(), parts((60, 40, 50))).metrics
    assert metrics["task"] == "tokens"
    assert set(metrics["targets"]["word"]["better"]) == {"unigram", "bigram"}
    metrics = evaluation.measure(labeller(per_sequence=True), labelled(per_sequence=True)).metrics
    assert metrics["task"] == "label"
    assert set(metrics["targets"]["who"]["better"]) == {"most_common"}
    assert evaluation.measure(forecaster(), parts((60, 40, 50), features=NUMBERS)).metrics["task"] == "forecast"
