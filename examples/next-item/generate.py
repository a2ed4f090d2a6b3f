"""Writes events.parquet and prints the best possible scores of a model on it: python generate.py.

The process has 50 items. The popularity of item i, numbered from 0, is proportional to 1 / (i + 1). A session has 5 to
20 events, and each length is equally likely. The first two items of a session are drawn by popularity. After item p and
then item c, the next item is follower(p, c) with probability 0.6, and otherwise an item drawn by popularity.
"""

import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

Array = NDArray[np.float64]

ITEMS, SHORTEST, LONGEST = 50, 5, 20
SESSIONS, SEED = 3200, 1
FOLLOWS = 0.6
STEP, SHIFT = np.array([3, 7, 9]), np.array([1, 18, 31])
"""The factors and offsets by p mod 3. No factor shares a divisor with 50, so each item follows a single item."""


class Scores(NamedTuple):
    """The expected scores per event under the process; a ranking lists the likeliest 20 items."""

    bits: float
    accuracy: float
    recall_10: float
    mrr: float


def popularity() -> Array:
    """Returns (items,) the probability of each item by popularity."""
    weight = 1 / np.arange(1, ITEMS + 1)
    return np.asarray(weight / weight.sum(), np.float64)


def follower(previous: NDArray[np.int64], current: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the favoured next item, which depends on `current` and on the remainder of `previous` by 3."""
    return np.asarray((STEP[previous % 3] * current + SHIFT[previous % 3]) % ITEMS, np.int64)


def probabilities() -> Array:
    """Returns (previous, current, next) the probability of the next item after two items."""
    previous, current = np.indices((ITEMS, ITEMS), np.int64)
    following = np.tile((1 - FOLLOWS) * popularity(), (ITEMS, ITEMS, 1))
    following[previous, current, follower(previous, current)] += FOLLOWS
    return following


def events() -> pl.DataFrame:
    """Returns the log, ordered by time in seconds from its start; sessions overlap in time.

    All random values come from uniform numbers, which numpy reproduces from release to release.
    """
    random = np.random.default_rng(SEED)
    lengths = SHORTEST + (random.random(SESSIONS) * (LONGEST - SHORTEST + 1)).astype(np.int64)
    starts = np.cumsum(-60 * np.log1p(-random.random(SESSIONS)))
    cumulative = np.cumsum(popularity())
    session, moment, items = [], [], []
    for index, (length, start) in enumerate(zip(lengths.tolist(), starts.tolist(), strict=True)):
        drawn = np.searchsorted(cumulative[:-1], random.random(length), side="right")
        follows = random.random(length) < FOLLOWS
        for step in range(2, length):
            if follows[step]:
                drawn[step] = follower(drawn[step - 2], drawn[step - 1])
        session += [index + 1] * length
        moment += (start + np.cumsum(5 - 30 * np.log1p(-random.random(length)))).tolist()
        items += [f"item-{item + 1:03}" for item in drawn.tolist()]
    seconds = [int(second) for second in moment]
    log = pl.DataFrame({"session": session, "time": seconds, "item": items}, schema_overrides=_SMALL)
    return log.sort("time", "session", maintain_order=True)


_SMALL = {"session": pl.Int32, "time": pl.Int32}


def best(contexts: Array, following: Array) -> Scores:
    """Returns the scores of the best model.

    contexts: (contexts,) the probability of each context; following: (contexts, next) of the next item after it.
    """
    falling = -np.sort(-following, axis=1)
    entropy = -(following * np.log2(following)).sum(axis=1)
    mrr = (falling[:, :20] / np.arange(1, 21)).sum(axis=1)
    by_context = np.stack([entropy, falling[:, 0], falling[:, :10].sum(axis=1), mrr])
    return Scores(*(by_context @ contexts).tolist())


def share_by_position() -> Array:
    """Returns (LONGEST,) the share of sessions that have an event at each position."""
    lengths = np.arange(SHORTEST, LONGEST + 1)
    return np.array([(lengths > position).mean() for position in range(LONGEST)])


def expected_pairs() -> Array:
    """Returns (previous, current) the exact mean number of events of a session that follow two items."""
    following, share = probabilities(), share_by_position()
    pair = np.outer(popularity(), popularity())
    total = np.zeros_like(pair)
    for position in range(2, LONGEST):
        total += share[position] * pair
        pair = np.einsum("pc,pcn->cn", pair, following)
    return total


def weighted_mean(parts: list[tuple[float, Scores]]) -> Scores:
    """Returns the mean of scores by their weights."""
    weight = sum(share for share, _ in parts)
    return Scores(*(sum(share * part[field] for share, part in parts) / weight for field in range(len(Scores._fields))))


def optimum() -> dict[str, Scores]:
    """Returns the scores of the best model, by the inputs that it may use, with or without each session's first event.

    "item-to-item" knows the process but uses only the last item, and not its position; "popularity" knows only how
    often each item occurs.
    """
    following, share, pairs, popular = probabilities(), share_by_position(), expected_pairs(), popularity()
    single = best(np.ones(1), popular[np.newaxis])
    later = (share[2:].sum(), best(pairs.ravel() / pairs.sum(), following.reshape(-1, ITEMS)))
    joint = share[1] * np.outer(popular, popular) + np.einsum("pc,pcn->cn", pairs, following)  # (current, next)
    context = joint.sum(axis=1)
    items = joint.sum(axis=0) + share[0] * popular
    chain = best(context / context.sum(), joint / context[:, np.newaxis])
    return {
        "whole session, not the first event": weighted_mean([(share[1], single), later]),
        "whole session, every event": weighted_mean([(share[0] + share[1], single), later]),
        "item-to-item, not the first event": chain,
        "popularity, every event": best(np.ones(1), (items / items.sum())[np.newaxis]),
    }


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("events.parquet")
    log = events()
    log.write_parquet(path, compression="zstd", compression_level=19, statistics=False)
    print(f"{len(log):,} events in {log['session'].n_unique():,} sessions, {path.stat().st_size:,} bytes")
    for name, figures in optimum().items():
        scores = "  ".join(f"{key} {value:.4f}" for key, value in figures._asdict().items())
        print(f"{name:36}  {scores}  perplexity {math.exp(figures.bits * math.log(2)):.3f}")


if __name__ == "__main__":
    main()
