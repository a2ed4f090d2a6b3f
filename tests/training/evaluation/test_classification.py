"""Scores of categories and of series with missing values, against brute force step by step, and their report."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onward.model.inputs import InputArray
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
    """Returns series with the given numbers of steps and starts of the validation and test parts."""
    return [
        Series(f"s{number}", draw(features, 1, steps, seed=number)[0], validation, test)
        for number, (steps, validation, test) in enumerate(lengths)
    ]


SPLITS = [(40, 20, 30), (30, 30, 30), (12, 0, 0), (1, 0, 0), (25, 0, 0), (300, 0, 0), (20, 0, 20)]
"""Series of which the end, nothing, the whole or a single step is held out; a long one; one of validation only."""


@pytest.mark.parametrize("top", [20, 3])
def test_tokens_are_scored_one_by_one(top: int) -> None:
    """Every held-out category that is present, except the first of a sequence, is scored by the step before it."""
    model, series = words(top), parts(*SPLITS)
    surprise: list[float] = []
    ranks: list[float] = []
    actual: list[int] = []
    contexts: list[int] = []
    for item in series:
        outputs = stepped_outputs(model, item.values)
        ids = item.values[:, 1]
        for step in range(max(1, item.test_from), len(ids)):
            if math.isnan(ids[step]):
                continue
            surprise.append(float(outputs["surprise"][step]))
            matches = np.flatnonzero(outputs["top"][step - 1] == ids[step])
            ranks.append(matches[0] + 1 if len(matches) and ids[step] < 9 else math.inf)  # 9 are listed
            actual.append(int(ids[step]))
            contexts.append(-1 if math.isnan(ids[step - 1]) else int(ids[step - 1]))
    metrics, stretch = classification.tokens(model, series)
    assert -1 in contexts
    assert metrics["steps"] == len(actual)
    assert metrics["mean_surprise"] == pytest.approx(np.mean(surprise))
    scores = metrics["targets"]["word"]["model"]
    assert scores["bits"] == pytest.approx(np.mean(surprise) / math.log(2))
    assert scores["perplexity"] == pytest.approx(math.exp(np.mean(surprise)))
    assert scores["accuracy"] == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert scores["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    assert ("recall_10" in scores) is (top == 20)
    trained = [item.values[: item.validation_from, 1] for item in series]
    counted = Bigram([part[~np.isnan(part)].astype(np.int64) for part in trained], 10)
    expected = ranking_metrics.tokens(
        *counted.bigram(np.array(contexts), np.array(actual), min(top, 10)), np.where(np.array(actual) < 9, actual, -1)
    )
    assert 0 < metrics["unknown"] == np.mean(np.array(actual) == 9)
    assert metrics["targets"]["word"]["bigram"] == pytest.approx(expected)
    plain = np.bincount(np.concatenate([part[~np.isnan(part)] for part in trained]).astype(int), minlength=10) + 1
    bits = -np.log2(plain / plain.sum())[actual].mean()
    assert metrics["targets"]["word"]["unigram"]["bits"] == pytest.approx(bits)
    longest = series[5].values[1:, 1]
    assert stretch.series == "s5"
    names = [None if number == 9 else f"word{int(number)}" for number in longest[~np.isnan(longest)]]
    assert list(stretch.categories) == names
    assert stretch.surprise.tolist() == pytest.approx(surprise[-len(names) :])


def test_a_test_part_without_tokens_is_refused() -> None:
    """A sequence of a single step has no next step to predict."""
    with pytest.raises(ValueError, match="no category is held out: every held-out sequence has a single step"):
        classification.tokens(words(), parts((20, 10, 20), (1, 0, 0)))


CLASSES = ("a", "b", "c")


def labeller(*, per_sequence: bool) -> StepModel:
    model_signature = signature(MIXED, "who", classes=CLASSES, per_sequence=per_sequence)
    return numpy_networks.export(
        numpy_networks.network(model_signature, cell="lstm", units=6, head="label", scaling="causal")
    )


def labelled(*, per_sequence: bool) -> list[Series]:
    rng, series = np.random.default_rng(3), []
    for item in parts(*SPLITS):
        labels = rng.integers(3, size=len(item.values))
        labels[rng.random(len(labels)) < 0.3] = 1
        if per_sequence:
            labels[:] = labels[-1]
        series.append(Series(item.name, item.values, item.validation_from, item.test_from, labels))
    return series


@pytest.mark.parametrize("per_sequence", [False, True])
def test_labels_are_scored_one_by_one(per_sequence: bool) -> None:
    """The label of every held-out step is scored, or only that of the last step of each held-out sequence."""
    model, series = labeller(per_sequence=per_sequence), labelled(per_sequence=per_sequence)
    predicted: list[int] = []
    true: list[int] = []
    surprise: list[float] = []
    seen: list[int] = []
    for item in series:
        assert item.labels is not None
        outputs = stepped_outputs(model, item.values)
        trained = item.labels[: item.validation_from].tolist()
        seen += trained[-1:] if per_sequence else trained
        steps = list(range(item.test_from, len(item.values)))
        surprise += [float(outputs["surprise"][step]) for step in steps]
        for step in steps[-1:] if per_sequence else steps:
            predicted.append(int(outputs["top"][step, 0]))
            true.append(int(item.labels[step]))
    metrics, confusion = classification.labels(model, series)
    assert metrics["steps"] == len(true) == (5 if per_sequence else 10 + 12 + 1 + 25 + 300)
    assert metrics["mean_surprise"] == pytest.approx(np.mean(surprise))
    scores = metrics["targets"]["who"]
    assert scores["model"]["accuracy"] == pytest.approx(np.mean(np.array(predicted) == true))
    common = max(range(3), key=seen.count)
    assert scores["most_common"]["accuracy"] == pytest.approx(np.mean(np.array(true) == common))
    expected = np.zeros((3, 3), int)
    for truth, prediction in zip(true, predicted, strict=True):
        expected[truth, prediction] += 1
    assert confusion.counts.tolist() == expected.tolist()
    assert confusion.classes == CLASSES


def test_a_test_part_without_labels_is_refused() -> None:
    series = labelled(per_sequence=False)[1]
    with pytest.raises(ValueError, match="no label is held out"):
        classification.labels(labeller(per_sequence=False), [series])


NUMBERS = (Feature(name="x", nullable=True), Feature(name="y"))


def forecaster() -> StepModel:
    made = numpy_networks.network(signature(NUMBERS, "x", "y"), cell="gru", units=5, head="gaussian", scaling="causal")
    return numpy_networks.export(made)


def last_seen(values: InputArray, t: int, mean: float) -> float:
    before = values[: t + 1][~np.isnan(values[: t + 1])]
    return float(before[-1]) if len(before) else mean


def test_missing_values_are_not_scored() -> None:
    """Held-out series are scored from their third step; naive forecasts take the last observed value or the mean."""
    model = forecaster()
    series = parts((60, 40, 50), (30, 0, 0), (40, 0, 0), (25, 0, 25), features=NUMBERS)
    series[1].values[:4, 0] = np.nan
    trained = series[0].values[:40, 0].astype(np.float64)
    mean, errors, naive = float(np.nanmean(trained)), [], []
    for item in series:
        outputs = stepped_outputs(model, item.values)
        for step in range(max(2, item.test_from), len(item.values)):
            if not math.isnan(actual := float(item.values[step, 0])):
                errors.append(abs(actual - float(outputs["mean"][step - 1, 0])))
                naive.append(abs(actual - last_seen(item.values[:, 0], step - 1, mean)))
    metrics, trace = backtest.measure(model, series)
    assert metrics["steps"] == 10 + 28 + 38
    assert len(errors) < metrics["steps"]
    scores = metrics["targets"]["x"]
    assert scores["model"]["mae"] == pytest.approx(np.mean(errors), rel=1e-5)
    assert scores["model"]["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
    assert scores["last_value"]["mae"] == pytest.approx(np.mean(naive), rel=1e-5)
    assert trace.series == "s2"
    coverage = scores["model"]["coverage_80"]
    assert 0 < coverage <= 1


def test_rollouts_are_scored_where_values_are_present() -> None:
    """Rollouts are compared with present values at each step ahead, whatever is missing before their origin."""
    model, horizon = forecaster(), 3
    series = parts((60, 40, 45), (20, 0, 0), features=NUMBERS)
    errors: list[list[float]] = [[] for _ in range(horizon)]
    origins = 0
    for item in series:
        for origin in range(max(2, item.test_from) - 1, len(item.values) - horizon):
            outputs, state = model.run_row(item.values[: origin + 1], model.layout.initial(1))
            forecast, origins = outputs["mean"][-1], origins + 1
            for step in range(horizon):
                actual = float(item.values[origin + 1 + step, 0])
                if not math.isnan(actual):
                    errors[step].append(abs(actual - float(forecast[0])))
                outputs, state = model.run_row(forecast[np.newaxis].astype(np.float32), state)
                forecast = outputs["mean"][-1]
    horizons = backtest.measure(model, series, None, horizon)[0]["horizons"]
    assert (horizons["steps"], horizons["origins"]) == (horizon, origins)
    assert horizons["targets"]["x"]["model"]["mae"] == pytest.approx(
        [np.mean(step_errors) for step_errors in errors], rel=1e-4
    )


def test_what_holds_no_number_out_is_refused() -> None:
    """Two steps have nothing to compare with; a target whose every value is missing has no score."""
    model = forecaster()
    with pytest.raises(ValueError, match="nothing is held out: every held-out series has fewer than three steps"):
        backtest.measure(model, parts((20, 10, 20), (2, 0, 0), features=NUMBERS))
    series = parts((20, 10, 15), features=NUMBERS)
    series[0].values[15:, 0] = np.nan
    with pytest.raises(ValueError, match="no value of x is held out: all are missing"):
        backtest.measure(model, series)


def judged(model: dict[str, float], naive: dict[str, float], task: str) -> dict[str, Any]:
    tables = {"model": model, "naive": naive}
    tables["better"] = evaluation._better(tables, evaluation.DECISIVE[task])
    return {"task": task, "targets": {"t": tables}}


def test_the_direction_of_a_measure_decides_what_is_better() -> None:
    """A model loses in the direction of each measure, and an equal value is not better."""
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


def page(model: StepModel, series: list[Series], **update: Any) -> str:
    evaluated = evaluation.measure(model, series)
    manifest = model.manifest.model_copy(update={"metrics": evaluated.metrics} | update)
    assert str(evaluated.metrics["steps"]) in report_table.text(manifest)
    return html_report.html(manifest, evaluated.illustration)


@pytest.mark.parametrize("text", [None, "characters"])
def test_the_page_of_tokens_is_escaped(text: str | None) -> None:
    """Markup in categories is escaped, each category has its bits, and unknown categories are marked."""
    names = NASTY if text is None else ("<", "&", '"')
    word = Feature.model_validate({"name": "<b>word</b>", "kind": "category", "categories": names, "unknown": True,
                                   "text": text})  # fmt: skip
    model = numpy_networks.export(
        numpy_networks.network(signature((word,), word.name), cell="gru", units=4, head="categorical")
    )
    html = page(model, parts((40, 20, 30), features=(word,)))
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;b&gt;word&lt;/b&gt;" in html
    assert ("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</span>" in html) is (text is None)
    assert (">&lt;</span>" in html) is (text is not None)
    assert "\N{REPLACEMENT CHARACTER}</span>" in html
    assert html.count(' bits">') == 10
    for name in ("perplexity", "MRR@20", "most popular", "Markov chain"):
        assert name in html


def test_the_share_of_unknown_categories_is_shown_beside_the_scores() -> None:
    """The table and the page show it, and a model without unknown categories has none."""
    model, series = words(), parts(*SPLITS)
    metrics = evaluation.measure(model, series).metrics
    share = f"{metrics['unknown']:.1%}"
    manifest = model.manifest.model_copy(update={"metrics": metrics})
    assert f"unknown categories: {share} of the steps, which are misses" in report_table.text(manifest)
    assert share in page(model, series)
    assert "unknown" not in evaluation.measure(labeller(per_sequence=True), labelled(per_sequence=True)).metrics


def test_the_page_of_labels_is_escaped() -> None:
    """The confusion matrix is shown with escaped names of classes."""
    model_signature = signature((Feature(name="x"),), "who", classes=NASTY)
    model = numpy_networks.export(numpy_networks.network(model_signature, cell="gru", units=4, head="label"))
    (item,) = parts((40, 20, 30), features=model_signature.features)
    series = Series(item.name, item.values, 20, 30, np.arange(40) % 3)
    html = page(model, [series])
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;</th>") == 2
    _, confusion = classification.labels(model, [series])
    assert sum(html.count(f">{count}</td>") for count in {int(n) for n in confusion.counts.flat} - {0}) >= 3
    for name in ("accuracy", "macro F1", "most common"):
        assert name in html


def test_a_bundle_is_evaluated_by_its_task() -> None:
    """Tokens, labels and numbers have their own scores and baselines."""
    metrics = evaluation.measure(words(), parts((60, 40, 50))).metrics
    assert metrics["task"] == "tokens"
    assert set(metrics["targets"]["word"]["better"]) == {"unigram", "bigram"}
    metrics = evaluation.measure(labeller(per_sequence=True), labelled(per_sequence=True)).metrics
    assert metrics["task"] == "label"
    assert set(metrics["targets"]["who"]["better"]) == {"most_common"}
    assert evaluation.measure(forecaster(), parts((60, 40, 50), features=NUMBERS)).metrics["task"] == "forecast"
