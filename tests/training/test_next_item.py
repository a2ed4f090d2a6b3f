"""The generated example: its log comes from its process, and its optimum is the score of the process itself."""

import importlib.util
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from polars.testing import assert_frame_equal

from onward.training.evaluation import ranking_metrics
from onward.training.evaluation.ranking_metrics import Bigram

FOLDER = Path(__file__).parents[2] / "examples" / "next-item"
POPULAR = np.array([1 / i for i in range(1, 51)]) / sum(1 / i for i in range(1, 51))


@cache
def generator() -> Any:
    spec = importlib.util.spec_from_file_location("next_item_generate", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def log() -> pl.DataFrame:
    return pl.read_parquet(FOLDER / "events.parquet")


@cache
def sessions() -> list[list[int]]:
    """Returns the items of each session, numbered from 0, in the order of the file."""
    items = log().group_by("session", maintain_order=True).agg("item")["item"].to_list()
    return [[int(item.removeprefix("item-")) - 1 for item in session] for session in items]


def after(before: list[int]) -> NDArray[np.float64]:
    """Returns the probability of each next item, as the README describes the process."""
    if len(before) < 2:
        return POPULAR
    step, shift = [(3, 1), (7, 18), (9, 31)][before[-2] % 3]
    following = 0.4 * POPULAR
    following[(step * before[-1] + shift) % 50] += 0.6
    return following


def scored() -> Iterator[tuple[int, float, float, float, float]]:
    """Yields for each event its position in its session, bits, top-1 and top-10 hits, and reciprocal rank."""
    for session in sessions():
        for position, item in enumerate(session):
            following = after(session[:position])
            chance = following[item]
            rank = 1 + int((following > chance).sum()) + int((following[:item] == chance).sum())
            yield position, -math.log2(chance), rank == 1, rank <= 10, 1 / rank if rank <= 20 else 0


def test_the_generator_writes_the_file() -> None:
    assert_frame_equal(generator().events(), log())


def test_the_log_is_well_formed() -> None:
    """Time rises over the log while sessions overlap, each session has 5 to 20 events, and every item occurs."""
    assert log().schema == {"session": pl.Int32, "time": pl.Int32, "item": pl.String}
    assert log()["time"].is_sorted()
    assert log().select(pl.struct("session", "time").is_unique().all()).item()
    assert log()["session"].rle().len() > 2 * log()["session"].n_unique()
    assert {len(session) for session in sessions()} == set(range(5, 21))
    assert log()["item"].n_unique() == 50


@pytest.mark.parametrize(
    ("name", "first"), [("whole session, not the first event", 1), ("whole session, every event", 0)]
)
def test_the_process_scores_the_optimum_on_the_file(name: str, first: int) -> None:
    """Every score is within four standard errors, which are small, of its mean over the events of the file."""
    values = np.array([figures for position, *figures in scored() if position >= first], np.float64)
    error = values.std(axis=0) / math.sqrt(len(values))
    assert (error < [0.02, 0.01, 0.01, 0.01]).all()
    assert (np.abs(values.mean(axis=0) - generator().optimum()[name]) < 4 * error).all()


def test_counts_of_pairs_reach_the_item_to_item_optimum() -> None:
    """Counts are within 3% of the optimum and not below it; the whole session is worth much more."""
    optimum = generator().optimum()
    cut = len(sessions()) * 7 // 10
    model = Bigram([np.array(session) for session in sessions()[:cut]], 50)
    context = np.concatenate([session[:-1] for session in sessions()[cut:]])
    actual = np.concatenate([session[1:] for session in sessions()[cut:]])
    scores = ranking_metrics.tokens(*model.bigram(context, actual, 20), actual)
    chain = optimum["item-to-item, not the first event"]
    assert chain.bits < scores["bits"] < 1.03 * chain.bits
    assert scores["accuracy"] == pytest.approx(chain.accuracy, abs=0.02)
    assert scores["mrr"] == pytest.approx(chain.mrr, abs=0.02)
    scores = ranking_metrics.tokens(*model.unigram(actual, 20), actual)
    assert scores["bits"] == pytest.approx(optimum["popularity, every event"].bits, rel=0.02)
    assert optimum["whole session, not the first event"].bits < 0.85 * chain.bits


def test_the_readme_has_the_optimum() -> None:
    """The README shows the optimum to four digits."""
    text = (FOLDER / "README.md").read_text()
    for name, figures in generator().optimum().items():
        row = f"| {name} | {' | '.join(f'{figure:.4f}' for figure in figures)} |"
        assert row in text
