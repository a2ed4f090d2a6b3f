"""Load on a service whose every answer is checked: sessions that step, forecast and come and go at a chosen rate.

Owns what is asked when, what is measured, and what counts as wrong. Knows nothing of how it is printed. A request's
latency counts from when it was due, so that a service which falls behind cannot hide it.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import ceil
from random import Random
from typing import Any

import numpy as np

from onward.client.async_client import AsyncClient, AsyncSession
from onward.client.errors import Problem, UnreachableError
from onward.client.local import Local
from onward.client.results import Forecast, Outputs, Prediction

KINDS = ("steps", "forecasts", "creates")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
TOLERANCE = 1e-4
"""Of models whose kernels round differently in a batch, relative to the largest number of an output."""


@dataclass(frozen=True, slots=True)
class Plan:
    """sessions: how many at once, all of one version. rate: requests a second of all together, 0: as many as are
    answered. mix: how often each of KINDS, beside the others. inputs: steps to send, over and over.
    """

    model: str
    version: int
    inputs: Sequence[Any]
    sessions: int
    rate: float
    seconds: float
    mix: Mapping[str, float]
    horizon: int = 10
    seed: int = 0


@dataclass(slots=True)
class Life:
    """One session as its client knows it: what it sent and was told. In doubt: its last step failed unanswered."""

    session_id: str
    sent: list[Any] = field(default_factory=list)
    told: list[Prediction] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    doubtful: bool = False


@dataclass(slots=True)
class Found:
    """What a run has seen; latencies in seconds, by kind. unsent: requests at a rate that were due and not sent."""

    seconds: float = 0.0
    unsent: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    lives: list[Life] = field(default_factory=list)

    def table(self) -> list[dict[str, Any]]:
        """Of each kind that was asked for: how many, how many a second, and latencies in milliseconds."""
        rows: list[dict[str, Any]] = []
        for kind, taken in self.latencies.items():
            if taken:
                told = {name: float(np.quantile(taken, level)) * 1e3 for name, level in QUANTILES.items()}
                rows.append({"kind": kind, "count": len(taken), "a_second": len(taken) / self.seconds} | told)
        return rows


class Load:
    """One run of a plan. `tick` is called with the seconds that have passed since it was last called."""

    def __init__(self, client: AsyncClient, plan: Plan, tick: Callable[[float], None] = lambda _: None) -> None:
        self._client, self._plan, self._tick = client, plan, tick
        self._chance, self._numbers = Random(plan.seed), count()  # noqa: S311  (load, not secrets)
        self.found = Found(unsent=ceil(plan.rate * plan.seconds))

    async def run(self) -> Found:
        self._began = time.monotonic()
        await asyncio.gather(self._ticking(), *(self._client_of_one() for _ in range(self._plan.sessions)))
        self.found.seconds = time.monotonic() - self._began
        left = iter(self.found.lives)
        await asyncio.gather(*(self._settle_all(left) for _ in range(self._plan.sessions)))
        return self.found

    async def _ticking(self) -> None:
        before = self._began
        while (now := time.monotonic()) < self._began + self._plan.seconds:
            self._tick(now - before)
            before = now
            await asyncio.sleep(0.1)

    async def _due(self) -> float | None:
        """When the next request is due, once it is; None when time is up."""
        now, number, plan = time.monotonic(), next(self._numbers), self._plan
        due = self._began + number / plan.rate if plan.rate else now
        if now >= self._began + plan.seconds or (plan.rate and number >= plan.rate * plan.seconds):
            return None
        await asyncio.sleep(max(0.0, due - now))
        self.found.unsent -= bool(plan.rate)
        return due

    async def _client_of_one(self) -> None:
        """A session and its requests, one after another; after a failure that leaves it in doubt, another session."""
        session: AsyncSession | None = None
        life = Life("")
        kinds, weights = zip(*self._plan.mix.items(), strict=True)
        while (due := await self._due()) is not None:
            kind = "creates" if session is None else self._chance.choices(kinds, weights)[0]
            try:
                if session is None or kind == "creates":
                    session = await self._client.session(self._plan.model, version=self._plan.version)
                    life = Life(session.id)
                    self.found.lives.append(life)
                elif kind == "steps":
                    life.sent.append(self._plan.inputs[len(life.sent) % len(self._plan.inputs)])
                    life.told.append(await session.step(life.sent[-1]))
                else:
                    life.forecasts.append(await session.forecast(self._plan.horizon))
            except (Problem, UnreachableError) as error:
                self.found.errors[getattr(error, "name", "") or type(error).__name__] += 1
                if kind == "steps":
                    life.doubtful, session = True, None
            else:
                self.found.latencies[kind].append(time.monotonic() - due)

    async def _settle_all(self, lives: Iterator[Life]) -> None:
        for life in lives:
            await self._settle(life)

    async def _settle(self, life: Life) -> None:
        """The session is where its acknowledged steps end; then it is ended."""
        counts = [one.step for one in life.told]
        if counts != list(range(1, len(counts) + 1)):
            self.found.wrong.append(f"session {life.session_id}: its steps were answered as {counts[:20]}")
        try:
            session = await self._client.attach(life.session_id)
            await session.delete()
        except (Problem, UnreachableError) as error:
            self.found.wrong.append(f"session {life.session_id}: {error}")
            return
        self.found.checked += len(counts)
        if session.step_count - len(counts) not in ((0, 1) if life.doubtful else (0,)):
            self.found.wrong.append(
                f"session {life.session_id} is at step {session.step_count}; {len(counts)} steps were acknowledged"
            )


def replay(local: Local, life: Life) -> str | None:
    """What is wrong with the answers of one session, by the same steps in process; None where nothing is."""
    counted = any(one.error is not None or one.anomaly is not None for one in life.told)  # a service may be told not to
    session = Local(local.model, accuracy=counted).session()
    forecasts = defaultdict[int, list[Forecast]](list)
    for one in life.forecasts:
        forecasts[one.step].append(one)
    exact = local.model.manifest.exact
    for step in range(len(life.told) + 1):
        if step:
            right, told = session.step(life.sent[step - 1]), life.told[step - 1]
            if not same(told, right, exact=exact) or not _seen_alike(told, right, exact=exact):
                return f"session {life.session_id}: step {step} was answered {dict(told)}, and is {dict(right)}"
        for one in forecasts[step]:
            if not same(one, session.forecast(_horizon(one)), exact=exact):
                return f"session {life.session_id}: a forecast at step {step} is another"
    return None


def _horizon(forecast: Forecast) -> int:
    return len(next(iter(forecast.values())))


def same(told: Outputs, right: Outputs, *, exact: bool) -> bool:
    """Bit for bit, or, where the model's kernels are not exact, as close as they are."""
    return set(told) == set(right) and all(_close(told[name], right[name], exact=exact) for name in right)


def _seen_alike(told: Prediction, right: Prediction, *, exact: bool) -> bool:
    """What is told of the input. Ranks and small differences of what is nearly the same are not, so only if exact."""
    if not exact:
        return _close(told.surprise, right.surprise, exact=False)
    pairs = ((told.surprise, right.surprise), (told.error, right.error), (told.anomaly, right.anomaly))
    return all(_close(np.array(mine, float), np.array(other, float), exact=True) for mine, other in pairs)


def _close(told: Any, right: Any, *, exact: bool) -> bool:
    mine, other = np.asarray(told), np.asarray(right)
    if exact or other.dtype == object:
        return np.array_equal(mine, other, equal_nan=other.dtype != object)
    scale = float(np.abs(other).max(initial=0.0))
    return mine.shape == other.shape and bool(np.allclose(mine, other, rtol=0, atol=TOLERANCE * scale))
