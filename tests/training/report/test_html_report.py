"""The HTML report is well-formed and self-contained, and its figures are those of the manifest."""

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onward.model.manifest import Manifest
from onward.training.data.datasets import Series
from onward.training.evaluation import baselines, evaluation
from onward.training.evaluation.evaluation import Evaluation
from onward.training.report import charts, html_report
from onward.training.report.charts import Line
from tests.helpers.random_bundles import make_bundle
from tests.helpers.recorded_bundles import draw

NASTY = "<script>alert('x')</script>&amp;\"--></style>"
VOID = {"meta"}
FORECASTS = ("model", *baselines.NAMES)


class Page(HTMLParser):
    """Parses a page and asserts that every element is closed; `text` is the visible text, `cells` those of tables."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action"}]
        if tag not in VOID:
            self.open.append(tag)
        if tag in {"td", "dd"}:
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if {"td", "dd"} & set(self.open):
            self.cells[-1] += data


def evaluated(
    tmp_path: Path, *, head: str = "gaussian", features: tuple[str, ...] = ("x",), **more: Any
) -> tuple[Manifest, Evaluation]:
    model = make_bundle(tmp_path, head=head, features=features)
    series = Series(more.pop("series", "north"), draw(1, 300, len(features))[0], 100, 200)
    found = evaluation.measure(model, [series], 12, 6)
    provenance = {
        "data": {"file": "tide.csv", "sha256": "d" * 64, "series": 1, "steps": 300},
        "config": {"name": "tiny"},
        "config_sha256": "c" * 64,
        "best_epoch": 2,
        "losses": {"train": [3.0, 2.0, 1.0], "validation": [3.0, 1.5, 2.5]},
        "versions": {"torch": "2.13"},
        "proof": {"largest_difference": 1e-7, "allowed": 1e-5, "steps": 200},
    }
    update = {"metrics": found.metrics, "provenance": provenance, "description": "a tide"} | more
    return model.manifest.model_copy(update=update), found


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles"])
def test_the_figures_of_the_report_are_those_of_the_manifest(head: str, tmp_path: Path) -> None:
    """Every one-step metric of the manifest is in the page, in the number format of the page."""
    manifest, found = evaluated(tmp_path, head=head, features=("x", "y"))
    page = Page(html_report.html(manifest, found.illustration))
    assert not page.open
    for scores in found.metrics["targets"].values():
        for name in FORECASTS:
            for measure, value in scores[name].items():
                percent = measure in {"smape", "coverage_80"}
                assert (f"{value:.1%}" if percent else charts.number(value)) in page.cells, (name, measure)
            if name != "model":
                share = scores["better"][name]["mae"]
                assert f"{abs(share):.1%} {'better' if share > 0 else 'worse'}" in page.cells
    assert charts.number(found.metrics["mean_surprise"]) in page.cells
    assert f"{found.metrics['horizons']['origins']}" in page.cells
    for text in ("tiny version 1", "a tide", "d" * 64, "c" * 64, manifest.sha256, "tide.csv", "torch 2.13", "epoch 2"):
        assert text in page.text
    assert ("80% interval" in page.text) is (head != "point")
    assert ("Reliability" in page.text) is (head != "point")


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    """The page has no script, address or external style, so it looks the same on any machine at any time."""
    manifest, found = evaluated(tmp_path)
    page = html_report.html(manifest, found.illustration)
    assert Page(page).addresses == []
    assert not Page(page).tags & {"script", "link", "img", "iframe", "object", "base", "foreignobject"}
    assert not re.search(r"https?://|url\(|@import|javascript:", page)
    assert "prefers-color-scheme: dark" in page


def test_markup_from_the_data_is_escaped(tmp_path: Path) -> None:
    """Markup in the name of a feature or series, a description, a file or the configuration is shown as text."""
    plain, plain_found = evaluated(tmp_path / "plain", features=("x", "y"))
    manifest, found = evaluated(tmp_path / "nasty", features=("x", NASTY), series=NASTY, description=NASTY)
    provenance: Any = manifest.provenance
    provenance |= {"data": {"file": NASTY}, "config": {NASTY: NASTY}, "versions": {NASTY: NASTY}}
    page = Page(html_report.html(manifest, found.illustration))
    assert not page.open
    assert page.tags == Page(html_report.html(plain, plain_found.illustration)).tags
    assert page.text.count("<script>alert(") >= 9


def test_a_loss_is_written_in_words(tmp_path: Path) -> None:
    """The page says in words, not by colour alone, whether the model beats the naive forecasts."""
    manifest, found = evaluated(tmp_path)
    metrics = found.metrics
    scores = metrics["targets"]["x"]["model"]
    scores["mae"] = 1e6
    worse = Page(html_report.html(manifest, found.illustration)).text
    assert "The model loses to a naive forecast one step ahead: x by MAE against last value; x by MAE" in worse
    scores["mae"] = scores["rmse"] = 1e-6
    metrics["targets"]["x"]["better"] = evaluation._better(
        {name: metrics["targets"]["x"][name] for name in FORECASTS}, evaluation.DECISIVE["forecast"]
    )
    metrics["horizons"]["targets"]["x"]["model"]["mae"] = [1e-6] * 6
    better = Page(html_report.html(manifest, found.illustration)).text
    assert "The model beats every naive forecast one step ahead" in better
    assert "loses" not in better
    metrics["horizons"]["targets"]["x"]["model"]["mae"] = [1e6] * 6
    further = Page(html_report.html(manifest, found.illustration)).text
    assert (
        "Further ahead the model loses, over 6 steps together: x by MAE against last value, seasonal naive" in further
    )


def test_an_older_bundle_has_a_report(tmp_path: Path) -> None:
    """Metrics and provenance without the newer keys still give a report."""
    manifest, found = evaluated(tmp_path, provenance={})
    for scores in found.metrics["targets"].values():
        del scores["drift"], scores["mean"], scores["better"]["drift"], scores["better"]["mean"], scores["reliability"]
        for name in ("model", "last_value", "seasonal_naive"):
            scores[name] = {measure: scores[name][measure] for measure in ("mae", "rmse")}
    del found.metrics["horizons"]
    page = Page(html_report.html(manifest, found.illustration))
    assert "seasonal naive" in page.text
    assert not {"drift", "MASE", "Reliability", "Training"} & set(re.findall(r"\w+", page.text))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.2, 1.1, [0.2, 0.4, 0.6, 0.8, 1.0]), (-3e6, 1e6, [-3e6, -2e6, -1e6, 0, 1e6])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    """Ticks lie within the limits, spaced by 1, 2 or 5 times a power of ten."""
    assert charts.ticks(low, high, 5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.28308, "2.283"),
        (-0.034221, "-0.03422"),
        (1234.56, "1,235"),
        (1.5e-7, "1.500e-07"),
        (4e9, "4.000e+09"),
    ],
)
def test_numbers_are_formatted(value: float, text: str) -> None:
    """Numbers have four digits and thousands separators, and powers of ten only if needed."""
    assert charts.number(value) == text


@pytest.mark.parametrize(
    "values",
    [[5.0], [0.0, 0.0], [1e-30, 2e-30], [1e30, -1e30], [math.nan, 1.0, math.inf, 2.0], [math.nan], [-4.0, -4.0]],
)
def test_any_line_can_be_drawn(values: list[float]) -> None:
    """Constant, tiny, huge and missing values give a drawing whose coordinates all lie within it."""
    xs = np.arange(1.0, len(values) + 1)
    drawn = charts.chart("what", [Line("a", "model", xs, np.array(values), dots=True)], x_label="x", y_label="y")
    assert not re.search(r"nan|inf", drawn)
    body = drawn[drawn.index('viewBox="0 0 800') :]
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", body):
        assert 0 <= float(x) <= 800
        assert 0 <= float(y) <= 260


def test_a_line_follows_its_numbers() -> None:
    """The smallest value is drawn lowest, the first point leftmost, and a missing value breaks the line."""
    ys = np.array([1.0, 3.0, math.nan, 2.0])
    drawn = charts.chart("what", [Line("a", "model", np.arange(4.0), ys)], x_label="x", y_label="y")
    path = re.findall(r'<path class="line model" d="([^"]+)"', drawn)[-1]
    points = [(mark, float(x), float(y)) for mark, x, y in re.findall(r"([ML])([\d.]+) ([\d.]+)", path)]
    assert [mark for mark, _, _ in points] == ["M", "L", "M"]
    assert [x for _, x, _ in points] == sorted(x for _, x, _ in points)
    assert points[0][2] > points[2][2] > points[1][2]
    assert points[2][2] == pytest.approx((points[0][2] + points[1][2]) / 2, abs=0.1)
