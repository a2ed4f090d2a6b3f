"""Scores of predicted categories equal those by hand, and count models equal exact sums and known sources."""

import math
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onward.training.evaluation import ranking_metrics
from onward.training.evaluation.ranking_metrics import Bigram, Ids


def ids(*values: int) -> Ids:
    return np.array(values, np.int64)


def test_scores_of_tokens_equal_those_computed_by_hand() -> None:
    """Bits are nats over ln 2, perplexity is the exponential of the mean, and ranks count by their reciprocals."""
    top = np.tile(ids(4, 1, 2), (5, 1))
    scores = ranking_metrics.tokens(np.log([2, 4, 8, 64, 8]), top, ids(4, 2, 1, 0, 4))
    assert scores == pytest.approx({"bits": 3.0, "perplexity": 8.0, "accuracy": 2 / 5, "mrr": (2 + 1 / 3 + 1 / 2) / 5})


def test_recall_counts_only_the_first_ranks() -> None:
    """Rank 10 counts for both recalls, rank 11 for one, rank 21 for none; a list that is too short has none."""
    top = np.tile(np.arange(25), (5, 1))
    actual = ids(0, 9, 10, 19, 20)
    scores = ranking_metrics.tokens(np.zeros(5), top, actual)
    assert (scores["recall_10"], scores["recall_20"]) == pytest.approx((2 / 5, 4 / 5))
    assert scores["mrr"] == pytest.approx((1 + 1 / 10 + 1 / 11 + 1 / 20) / 5)
    assert ranking_metrics.tokens(np.zeros(5), top[:, :20], actual) == scores
    assert ranking_metrics.tokens(np.zeros(5), top[:, :19], actual).keys() == scores.keys() - {"recall_20"}
    assert ranking_metrics.tokens(np.zeros(5), top[:, :9], actual).keys() == scores.keys() - {"recall_20", "recall_10"}
    assert ranking_metrics.tokens(np.zeros(5), top[:, :10], actual)["mrr"] == pytest.approx((1 + 1 / 10) / 5)


def test_categories_that_are_not_listed_are_misses() -> None:
    """The id after the listed ones is never a hit, wherever it is ranked; its surprise and its steps count."""
    top, actual = np.tile(ids(3, *range(3), *range(4, 21)), (5, 1)), ids(3, 0, 3, 1, 3)
    surprise = np.log([2, 4, 8, 64, 8])
    scores = ranking_metrics.tokens(surprise, top, actual, 3)
    expected = {"bits": 3.0, "perplexity": 8.0, "accuracy": 0, "recall_10": 2 / 5, "mrr": (1 / 2 + 1 / 3) / 5}
    assert scores == pytest.approx(expected | {"recall_20": 2 / 5})
    assert ranking_metrics.tokens(surprise, top, actual)["accuracy"] == 3 / 5  # if 3 is a category like the others


def test_impossible_tokens_have_an_infinite_perplexity() -> None:
    """An infinite perplexity is not an error."""
    assert ranking_metrics.tokens(np.array([0.0, 2000.0]), np.array([[0], [0]]), ids(0, 1))["perplexity"] == math.inf


def test_scores_of_labels_equal_those_computed_by_hand() -> None:
    """A class that is predicted but never occurs has an F1 of 0; a class that does neither does not count."""
    scores = ranking_metrics.labels(ids(0, 0, 1, 3, 1, 0), ids(0, 1, 1, 1, 1, 0), 5)
    # class 0: 2 correct of 3 predicted, 2 occur; class 1: 2 correct of 2, 4 occur; class 3: predicted, never occurs
    assert scores == pytest.approx({"accuracy": 4 / 6, "macro_f1": (4 / 5 + 4 / 6 + 0) / 3})
    assert ranking_metrics.labels(ids(2), ids(2), 9) == {"accuracy": 1.0, "macro_f1": 1.0}


def exact_probabilities(
    sequences: Sequence[Sequence[int]], classes: int, context: int
) -> list[tuple[Fraction, Fraction]]:
    """Returns by id the probability under the unigram and under the bigram, as fractions."""
    single = Counter(item for sequence in sequences for item in sequence)
    pairs = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    after = {b: times for (a, b), times in pairs.items() if a == context}
    probabilities = []
    for item in range(classes):
        unigram = Fraction(single[item] + 1, single.total() + classes)
        seen, distinct = sum(after.values()), len(after)
        bigram = (after.get(item, 0) + distinct * unigram) / (seen + distinct) if after else unigram
        probabilities.append((unigram, bigram))
    return probabilities


@st.composite
def logs(draw: st.DrawFn) -> tuple[int, list[list[int]]]:
    classes = draw(st.integers(1, 6))
    return classes, draw(st.lists(st.lists(st.integers(0, classes - 1), max_size=8), max_size=6))


@settings(max_examples=150, deadline=None)
@given(log=logs(), k=st.integers(1, 8))
def test_both_models_equal_their_formulas(log: tuple[int, list[list[int]]], k: int) -> None:
    """Probabilities and rankings, with ties, are exact for every category after every context and after none."""
    classes, sequences = log
    model = Bigram([np.array(sequence, np.int64) for sequence in sequences], classes)
    every = np.arange(classes)
    for context in range(-1, classes):
        fractions = exact_probabilities(sequences, classes, context)
        found = (model.unigram(every, k), model.bigram(np.full(classes, context), every, k))
        for (surprise, top), expected in zip(found, zip(*fractions, strict=True), strict=True):
            assert sum(expected) == 1
            assert np.exp(-surprise) == pytest.approx([float(p) for p in expected], rel=1e-12)
            ranked = sorted(range(classes), key=lambda item: (-expected[item], item))
            assert top.tolist() == [ranked[:k]] * classes


def test_popular_items_rank_before_rare_followers() -> None:
    """Popularity weighs more, the more categories follow: 2 * 21 > 28 + 2 * 2, though 3 never followed 0."""
    surprise, top = Bigram([ids(0, 1), ids(0, 2), np.full(20, 3)], 4).bigram(ids(0, 0), ids(3, 1), 4)
    assert np.exp(-surprise) == pytest.approx([42 / 112, 32 / 112])
    assert top[0].tolist() == [3, 1, 2, 0]


def test_pairs_do_not_cross_from_one_sequence_to_the_next() -> None:
    """Empty sequences at any position change nothing."""
    parts = [ids(), ids(0, 1), ids(), ids(2, 0), ids()]
    whole = Bigram([ids(0, 1, 2, 0)], 3).bigram(ids(1), ids(2), 3)
    parted = Bigram(parts, 3).bigram(ids(1), ids(2), 3)
    assert np.exp(-parted[0]) == pytest.approx([2 / 7])
    assert np.exp(-whole[0]) == pytest.approx([(1 + 2 / 7) / 2])


def test_an_unseen_context_is_the_unigram() -> None:
    """The bigram equals the unigram after a category that only ends sequences, that never occurs, and after none."""
    model = Bigram([ids(0, 1, 1, 2), ids(1, 2)], 5)
    surprise, top = model.unigram(ids(1, 2, 4), 4)
    found = model.bigram(ids(2, 4, -1), ids(1, 2, 4), 4)
    assert found[0] == pytest.approx(surprise, rel=1e-12)
    assert found[1].tolist() == top.tolist() == [[1, 2, 0, 3]] * 3


def test_each_step_is_predicted_from_its_own_context() -> None:
    """Contexts may come in any order and repeatedly."""
    model = Bigram([ids(0, 1, 2, 0, 1, 2, 3)], 4)
    context, actual = ids(2, 0, 2, -1, 1, 0), ids(0, 1, 3, 3, 2, 2)
    surprise, top = model.bigram(context, actual, 2)
    for step in range(len(context)):
        alone = model.bigram(context[step : step + 1], actual[step : step + 1], 2)
        assert surprise[step] == alone[0][0]
        assert top[step].tolist() == alone[1][0].tolist()
    assert top[:, 0].tolist() == [0, 1, 0, 0, 2, 1]


def test_no_events_and_a_single_class() -> None:
    """All categories are equally likely without events; a single class is certain, and a longer list is cut."""
    surprise, top = Bigram([], 4).bigram(ids(-1, 3), ids(2, 0), 9)
    assert np.exp(-surprise) == pytest.approx([0.25, 0.25])
    assert top.tolist() == [[0, 1, 2, 3]] * 2
    surprise, top = Bigram([ids(0, 0, 0)], 1).bigram(ids(0, -1), ids(0, 0), 20)
    assert surprise == pytest.approx([0, 0], abs=1e-15)
    assert top.tolist() == [[0], [0]]
    assert Bigram([ids(0, 1)], 2).bigram(ids(), ids(), 2)[1].shape == (0, 2)


def markov(steps: int, seed: int) -> Ids:
    """Returns states of a Markov chain that stays in 0 with probability 0.9, and in 1 with 0.6."""
    draws = np.random.default_rng(seed).random(steps)
    state, states = 0, []
    for draw in draws.tolist():
        state = int(draw >= 0.9) if state == 0 else int(draw < 0.6)
        states.append(state)
    return np.array(states, np.int64)


def test_the_entropy_of_a_markov_source_is_approached() -> None:
    """The bigram comes within 1% of the source's entropy, the unigram only of its own (Cover and Thomas 2006, 4.2)."""

    def entropy(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    model, test_part = Bigram([markov(100_000, 1)], 2), markov(100_000, 2)
    surprise, top = model.bigram(test_part[:-1], test_part[1:], 1)
    scores = ranking_metrics.tokens(surprise, top, test_part[1:])
    assert scores["bits"] == pytest.approx(0.8 * entropy(0.9) + 0.2 * entropy(0.6), rel=0.01)
    assert scores["accuracy"] == pytest.approx(0.8 * 0.9 + 0.2 * 0.6, abs=0.01)
    scores = ranking_metrics.tokens(*model.unigram(test_part, 1), test_part)
    assert scores["bits"] == pytest.approx(entropy(0.8), rel=0.02)


def test_large_catalogues_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of classes x classes or contexts x classes is made; ranking contexts in blocks changes no result."""
    random = np.random.default_rng(3)
    classes, steps = 20_000, 50_000
    events = (classes * random.random(steps) ** 3).astype(np.int64)
    tracemalloc.start()
    try:
        model = Bigram(np.split(events, 500), classes)
        surprise, top = model.bigram(events[:-1], events[1:], 20)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 200e6  # one row of float64 for each context would be 2 GB
    blocks, whole = list[int](), Bigram._likeliest

    def counted(self: Bigram, rows: Ids, distinct: Ids, follows: Ids, k: int) -> Ids:
        blocks.append(int((distinct + k).sum()))
        return whole(self, rows, distinct, follows, k)

    monkeypatch.setattr(ranking_metrics, "_CANDIDATES", 1000)
    monkeypatch.setattr(Bigram, "_likeliest", counted)
    again = model.bigram(events[:2000], events[1:2001], 20)
    assert again[0].tolist() == surprise[:2000].tolist()
    assert again[1].tolist() == top[:2000].tolist()
    largest = int(np.bincount(events).max()) + 20
    assert len(blocks) > 10
    assert max(blocks) < 1000 + largest
