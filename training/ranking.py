"""How good predictions of categories are, and the counts that they must beat. Plain numpy, float64.

Owns the formulas for tokens, items and labels. Knows nothing of models or files: categories are ids from 0.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from training.scores import Array

Ids = NDArray[np.int64]

_CANDIDATES = 1 << 20
"""Categories ranked at once: bounded memory for any number of contexts."""


def tokens(surprise: Array, top: Ids, actual: Ids) -> dict[str, float]:
    """Scores of predictions of the next category; at least one.

    surprise: (steps,) in nats. top: (steps, k) the likeliest ids, falling; actual: (steps,). bits: the cross-entropy
    per category. perplexity: its exponential (Jelinek et al. 1977, "Perplexity - a measure of the difficulty of speech
    recognition tasks"). accuracy: recall at 1. recall_10, recall_20: the share of steps whose category is among so
    many, left out where `top` has fewer; mrr: the mean reciprocal rank, 0 beyond the 20th or beyond `top` (Hidasi et
    al. 2016, "Session-based recommendations with recurrent neural networks", section 4).
    """
    nats = float(surprise.mean())
    hit = top[:, :20] == actual[:, np.newaxis]
    with np.errstate(over="ignore"):
        told = {"bits": nats / math.log(2), "perplexity": float(np.exp(nats)), "accuracy": float(hit[:, 0].mean())}
    for most in (10, 20):
        if top.shape[1] >= most:
            told[f"recall_{most}"] = float(hit[:, :most].any(axis=1).mean())
    told["mrr"] = float((hit / np.arange(1, hit.shape[1] + 1)).sum(axis=1).mean())
    return told


def labels(said: Ids, actual: Ids, classes: int) -> dict[str, float]:
    """The share that is right, and the mean of F1 over the classes; at least one label.

    F1 is 2 TP / (2 TP + FP + FN) (van Rijsbergen 1979, chapter 7, with evenly weighted precision and recall). The mean
    is that of each class's own (Opitz and Burst 2019, "Macro F1 and macro F1"); a class that neither occurs nor is
    said has none.
    """
    right = said == actual
    both = np.bincount(said, minlength=classes) + np.bincount(actual, minlength=classes)  # 2 TP + FP + FN
    hits = np.bincount(actual[right], minlength=classes)
    met = both > 0
    return {"accuracy": float(right.mean()), "macro_f1": float((2 * hits[met] / both[met]).mean())}


class Bigram:
    """Counts of categories and of pairs that follow one another within a sequence, and two models by them.

    unigram: p(b) = (c(b) + 1) / (N + classes), Laplace's rule; its ranking is "most popular".
    bigram: p(b | a) = (c(ab) + T(a) p(b)) / (c(a) + T(a)), where T(a) is how many categories were seen after a, and
    c(a) how often any was (Witten and Bell 1991, method C, interpolated: Chen and Goodman 1998, section 2.6); its
    ranking is item-to-item Markov. Where nothing was seen after a, or there is no a, it is the unigram.

    Ranks compare whole numbers, so that equal probabilities are equal, and the smaller id goes first. Each model gives
    the surprise, (steps,) in nats, and the min(k, classes) likeliest ids, (steps, k).
    """

    def __init__(self, sequences: Sequence[Ids], classes: int) -> None:
        events = np.concatenate([np.empty(0, np.int64), *sequences])
        last = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64) - 1
        pairs = events[:-1] * classes + events[1:]
        followed = np.ones(len(events), bool)
        followed[last[last >= 0]] = False  # before the first event there are empty sequences only
        self._keys, self._times = np.unique(pairs[followed[:-1]], return_counts=True)  # a * classes + b, rising
        # row a of the sparse matrix of pairs is [starts[a], starts[a + 1]); one more row, empty, is "no context"
        self._starts = np.searchsorted(self._keys, np.arange(classes + 2) * classes)
        self._seen = np.concatenate([[0], np.cumsum(self._times)])[self._starts]
        self._weight = np.bincount(events, minlength=classes) + 1  # (classes,) p(b) times `_total`
        self._total = len(events) + classes
        self._order = np.argsort(-self._weight, kind="stable")
        self.classes = classes

    def unigram(self, actual: Ids, k: int) -> tuple[Array, Ids]:
        """`top` is one row, shown for every step."""
        surprise = math.log(self._total) - np.log(self._weight[actual])
        best = self._order[:k]
        return surprise, np.broadcast_to(best, (len(actual), len(best)))

    def bigram(self, context: Ids, actual: Ids, k: int) -> tuple[Array, Ids]:
        """context: (steps,) the category before each, -1 where there is none."""
        rows, place = np.unique(np.where(context < 0, self.classes, context), return_inverse=True)
        distinct = np.diff(self._starts)[rows]
        follows = np.maximum(distinct, 1)  # T(a); 1 makes a context that nothing followed the unigram
        whole = (np.diff(self._seen)[rows] + follows) * np.float64(self._total)
        score = self._times_of(rows[place], actual) * self._total + follows[place] * self._weight[actual]
        surprise = np.log(whole)[place] - np.log(score)
        k = min(k, self.classes)
        top = np.empty((len(rows), k), np.int64)
        block = np.cumsum(distinct + k) // _CANDIDATES
        for each in np.unique(block):
            chosen = block == each
            top[chosen] = self._best(rows[chosen], distinct[chosen], follows[chosen], k)
        return surprise, top[place]

    def _times_of(self, row: Ids, after: Ids) -> Ids:
        """c(ab), 0 where b never followed a."""
        key = row * self.classes + after
        at = np.searchsorted(self._keys, key)
        known = at < len(self._keys)
        known[known] = self._keys[at[known]] == key[known]
        times = np.zeros(len(key), np.int64)
        times[known] = self._times[at[known]]
        return times

    def _best(self, rows: Ids, distinct: Ids, follows: Ids, k: int) -> Ids:
        """(rows, k) the likeliest after each row.

        They are among those that followed it and the k most popular: any other has k before it by popularity, and none
        of them loses by having followed.
        """
        each = np.arange(len(rows))
        offsets = np.cumsum(distinct) - distinct
        entries = np.arange(distinct.sum()) + np.repeat(self._starts[rows] - offsets, distinct)
        row = np.concatenate([np.repeat(each, distinct), np.repeat(each, k)])
        after = np.concatenate([self._keys[entries] % self.classes, np.tile(self._order[:k], len(rows))])
        _, once = np.unique(row * self.classes + after, return_index=True)
        row, after = row[once], after[once]
        score = self._times_of(rows[row], after) * self._total + follows[row] * self._weight[after]
        ranked = np.lexsort((-score, row))  # stable: ids rise already
        counts = np.bincount(row, minlength=len(rows))
        first = np.cumsum(counts) - counts
        best: Ids = after[ranked[first[:, np.newaxis] + np.arange(k)]]
        return best
