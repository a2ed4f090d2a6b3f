"""Ranking and classification metrics, and the count models that a network must beat, in plain numpy and float64.

Owns the formulas for tokens, items and labels. Knows nothing of models or files: categories are ids from 0.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onward.training.evaluation.point_metrics import Array

Ids = NDArray[np.int64]

_CANDIDATES = 1 << 20
"""The most categories that are ranked at once, so that memory is bounded for any number of contexts."""


def tokens(surprise: Array, top: Ids, actual: Ids, listed: float = math.inf) -> dict[str, float]:
    """Returns the scores of at least one prediction of the next category.

    surprise: (steps,) in nats. top: (steps, k) the likeliest ids in falling order; actual: (steps,). listed: the number
    of listed categories, if the id after them stands for all others: a step with that id is a miss whatever was
    predicted, but its surprise counts, because the id has a probability of its own. bits is the
    cross-entropy per category. perplexity is the exponential of the cross-entropy in nats (Jelinek et al. 1977,
    "Perplexity - a measure of the difficulty of speech recognition tasks"). accuracy is the recall at 1. recall_10 and
    recall_20 are the shares of steps whose category is among the first 10 and 20; they are left out if k is smaller.
    mrr is the mean reciprocal rank, 0 beyond rank 20 or beyond k (Hidasi et al. 2016, "Session-based recommendations
    with recurrent neural networks", section 4).
    """
    nats = float(surprise.mean())
    hit = (top[:, :20] == actual[:, np.newaxis]) & (actual < listed)[:, np.newaxis]
    with np.errstate(over="ignore"):
        scored = {"bits": nats / math.log(2), "perplexity": float(np.exp(nats)), "accuracy": float(hit[:, 0].mean())}
    for most in (10, 20):
        if top.shape[1] >= most:
            scored[f"recall_{most}"] = float(hit[:, :most].any(axis=1).mean())
    scored["mrr"] = float((hit / np.arange(1, hit.shape[1] + 1)).sum(axis=1).mean())
    return scored


def labels(predicted: Ids, actual: Ids, classes: int) -> dict[str, float]:
    """Returns the accuracy and the macro F1 of at least one predicted label.

    F1 is 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979, chapter 7, with evenly weighted precision and recall). Macro F1
    is the mean of the F1 of each class (Opitz and Burst 2019, "Macro F1 and macro F1"); a class that neither occurs nor
    is predicted has no F1 and is left out.
    """
    correct = predicted == actual
    denominators = np.bincount(predicted, minlength=classes) + np.bincount(actual, minlength=classes)  # 2 TP + FP + FN
    true_positives = np.bincount(actual[correct], minlength=classes)
    defined = denominators > 0
    f1 = 2 * true_positives[defined] / denominators[defined]
    return {"accuracy": float(correct.mean()), "macro_f1": float(f1.mean())}


class Bigram:
    """Counts of categories and of adjacent pairs within sequences, and the unigram and bigram models of them.

    unigram: p(b) = (c(b) + 1) / (N + classes), Laplace's rule; its ranking is "most popular".
    bigram: p(b | a) = (c(ab) + T(a) p(b)) / (c(a) + T(a)), where T(a) is the number of distinct categories that
    followed a, and c(a) the number of times that a was followed (Witten and Bell 1991, method C, interpolated: Chen and
    Goodman 1998, section 2.6); its ranking is item-to-item Markov. If nothing followed a, or there is no a, the bigram
    equals the unigram.

    Ranks compare whole numbers, so that equal probabilities compare equal, and the smaller id comes first. Each model
    returns the surprise, (steps,) in nats, and the min(k, classes) likeliest ids, (steps, k).
    """

    def __init__(self, sequences: Sequence[Ids], classes: int) -> None:
        events = np.concatenate([np.empty(0, np.int64), *sequences])
        last = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64) - 1
        pairs = events[:-1] * classes + events[1:]
        followed = np.ones(len(events), bool)
        followed[last[last >= 0]] = False  # -1: only empty sequences precede the first event
        self._pairs, self._pair_counts = np.unique(pairs[followed[:-1]], return_counts=True)  # a * classes + b, rising
        # row a of the sparse matrix of pairs is [starts[a], starts[a + 1]); an extra empty row stands for no context
        self._starts = np.searchsorted(self._pairs, np.arange(classes + 2) * classes)
        self._seen = np.concatenate([[0], np.cumsum(self._pair_counts)])[self._starts]
        self._weight = np.bincount(events, minlength=classes) + 1  # (classes,) p(b) times `_total`
        self._total = len(events) + classes
        self._order = np.argsort(-self._weight, kind="stable")
        self.classes = classes

    def unigram(self, actual: Ids, k: int) -> tuple[Array, Ids]:
        """Returns the surprise and the likeliest ids, which are the same row at every step."""
        surprise = math.log(self._total) - np.log(self._weight[actual])
        best = self._order[:k]
        return surprise, np.broadcast_to(best, (len(actual), len(best)))

    def bigram(self, context: Ids, actual: Ids, k: int) -> tuple[Array, Ids]:
        """Returns the surprise and the likeliest ids after each context.

        context: (steps,) the category before each step, -1 if there is none.
        """
        rows, row_of = np.unique(np.where(context < 0, self.classes, context), return_inverse=True)
        distinct = np.diff(self._starts)[rows]
        follows = np.maximum(
            distinct, 1
        )  # T(a); 1 makes the bigram of a context that nothing followed equal the unigram
        whole = (np.diff(self._seen)[rows] + follows) * np.float64(self._total)
        score = self._count_pairs(rows[row_of], actual) * self._total + follows[row_of] * self._weight[actual]
        surprise = np.log(whole)[row_of] - np.log(score)
        k = min(k, self.classes)
        top = np.empty((len(rows), k), np.int64)
        block = np.cumsum(distinct + k) // _CANDIDATES
        for number in np.unique(block):
            members = block == number
            top[members] = self._likeliest(rows[members], distinct[members], follows[members], k)
        return surprise, top[row_of]

    def _count_pairs(self, row: Ids, after: Ids) -> Ids:
        """Returns c(ab), which is 0 if b never followed a."""
        key = row * self.classes + after
        index = np.searchsorted(self._pairs, key)
        seen = index < len(self._pairs)
        seen[seen] = self._pairs[index[seen]] == key[seen]
        counts = np.zeros(len(key), np.int64)
        counts[seen] = self._pair_counts[index[seen]]
        return counts

    def _likeliest(self, rows: Ids, distinct: Ids, follows: Ids, k: int) -> Ids:
        """Returns (rows, k) the likeliest ids after each row.

        The candidates are the categories that followed the row, and the k most popular ones. Any other category ranks
        behind k more popular ones, and having followed the row never lowers the score of a category.
        """
        every = np.arange(len(rows))
        offsets = np.cumsum(distinct) - distinct
        entries = np.arange(distinct.sum()) + np.repeat(self._starts[rows] - offsets, distinct)
        row = np.concatenate([np.repeat(every, distinct), np.repeat(every, k)])
        after = np.concatenate([self._pairs[entries] % self.classes, np.tile(self._order[:k], len(rows))])
        _, once = np.unique(row * self.classes + after, return_index=True)
        row, after = row[once], after[once]
        score = self._count_pairs(rows[row], after) * self._total + follows[row] * self._weight[after]
        ranked = np.lexsort((-score, row))  # a stable sort: ids are rising already
        counts = np.bincount(row, minlength=len(rows))
        first = np.cumsum(counts) - counts
        likeliest: Ids = after[ranked[first[:, np.newaxis] + np.arange(k)]]
        return likeliest
