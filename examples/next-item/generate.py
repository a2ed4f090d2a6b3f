"""Writes events.parquet and prints the best that any model can do on it: python generate.py.

The process. There are 50 items; item i, from 0, has popularity in proportion to 1 / (i + 1). A session has 5 to 20
events, each length as likely. Its first two items are drawn by popularity. After item p and then item c comes, with
probability 0.6, the item follower(p, c), and else an item drawn by popularity.
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
"""By p mod 3. The steps have no factor in common with 50: each item follows one item only."""


class Best(NamedTuple):
    """Expectations per event under the process. A ranking lists the likeliest 20."""

    bits: float
    accuracy: float
    recall_10: float
    mrr: float


def popularity() -> Array:
    weight = 1 / np.arange(1, ITEMS + 1)
    return np.asarray(weight / weight.sum(), np.float64)


def follower(previous: NDArray[np.int64], current: NDArray[np.int64]) -> NDArray[np.int64]:
    """It depends on the item before the last by its remainder only, and cannot be told from the last alone."""
    return np.asarray((STEP[previous % 3] * current + SHIFT[previous % 3]) % ITEMS, np.int64)


def probabilities() -> Array:
    """(p, c, next)"""
    previous, current = np.indices((ITEMS, ITEMS), np.int64)
    told = np.tile((1 - FOLLOWS) * popularity(), (ITEMS, ITEMS, 1))
    told[previous, current, follower(previous, current)] += FOLLOWS
    return told


def events() -> pl.DataFrame:
    """Sessions overlap in time; the log is in the order of time, in seconds from its start.

    All that is random comes from uniform numbers, which numpy keeps the same from release to release.
    """
    random = np.random.default_rng(SEED)
    lengths = SHORTEST + (random.random(SESSIONS) * (LONGEST - SHORTEST + 1)).astype(np.int64)
    starts = np.cumsum(-60 * np.log1p(-random.random(SESSIONS)))
    cumulative = np.cumsum(popularity())
    session, moment, items = [], [], []
    for each, (length, start) in enumerate(zip(lengths.tolist(), starts.tolist(), strict=True)):
        drawn = np.searchsorted(cumulative[:-1], random.random(length), side="right")
        follows = random.random(length) < FOLLOWS
        for step in range(2, length):
            if follows[step]:
                drawn[step] = follower(drawn[step - 2], drawn[step - 1])
        session += [each + 1] * length
        moment += (start + np.cumsum(5 - 30 * np.log1p(-random.random(length)))).tolist()
        items += [f"item-{item + 1:03}" for item in drawn.tolist()]
    seconds = [int(second) for second in moment]
    log = pl.DataFrame({"session": session, "time": seconds, "item": items}, schema_overrides=_SMALL)
    return log.sort("time", "session", maintain_order=True)


_SMALL = {"session": pl.Int32, "time": pl.Int32}


def best(pairs: Array, told: Array) -> Best:
    """pairs: (contexts,) how likely each context is; told: (contexts, next) what then follows."""
    falling = -np.sort(-told, axis=1)
    entropy = -(told * np.log2(told)).sum(axis=1)
    mrr = (falling[:, :20] / np.arange(1, 21)).sum(axis=1)
    each = np.stack([entropy, falling[:, 0], falling[:, :10].sum(axis=1), mrr])
    return Best(*(each @ pairs).tolist())


def share_by_place() -> Array:
    """(LONGEST,) how many events a session has on average at its first place, second place, and so on."""
    lengths = np.arange(SHORTEST, LONGEST + 1)
    return np.array([(lengths > place).mean() for place in range(LONGEST)])


def expected_pairs() -> Array:
    """(p, c) how many events of a session come after p and then c, on average: exact, place by place."""
    told, share = probabilities(), share_by_place()
    now = np.outer(popularity(), popularity())
    total = np.zeros_like(now)
    for place in range(2, LONGEST):
        total += share[place] * now
        now = np.einsum("pc,pcn->cn", now, told)
    return total


def mixed(parts: list[tuple[float, Best]]) -> Best:
    weight = sum(share for share, _ in parts)
    return Best(*(sum(share * part[i] for share, part in parts) / weight for i in range(len(Best._fields))))


def optimum() -> dict[str, Best]:
    """The best per event: by what a model may look at, and with or without each session's first event.

    "item-to-item" knows the process but looks at the last item only, and not at the place; "popularity" knows how
    often each item comes, and nothing else.
    """
    told, share, pairs, popular = probabilities(), share_by_place(), expected_pairs(), popularity()
    single = best(np.ones(1), popular[np.newaxis])
    later = (share[2:].sum(), best(pairs.ravel() / pairs.sum(), told.reshape(-1, ITEMS)))
    joint = share[1] * np.outer(popular, popular) + np.einsum("pc,pcn->cn", pairs, told)  # (c, next) after the first
    context = joint.sum(axis=1)
    every = joint.sum(axis=0) + share[0] * popular
    chain = best(context / context.sum(), joint / context[:, np.newaxis])
    return {
        "whole session, not the first event": mixed([(share[1], single), later]),
        "whole session, every event": mixed([(share[0] + share[1], single), later]),
        "item-to-item, not the first event": chain,
        "popularity, every event": best(np.ones(1), (every / every.sum())[np.newaxis]),
    }


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("events.parquet")
    log = events()
    log.write_parquet(path, compression="zstd", compression_level=19, statistics=False)
    print(f"{len(log):,} events in {log['session'].n_unique():,} sessions, {path.stat().st_size:,} bytes")
    for name, figures in optimum().items():
        told = "  ".join(f"{key} {value:.4f}" for key, value in figures._asdict().items())
        print(f"{name:36}  {told}  perplexity {math.exp(figures.bits * math.log(2)):.3f}")


if __name__ == "__main__":
    main()
