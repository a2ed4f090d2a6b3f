"""A load test that checks every answer: sessions that are created, stepped and forecast at a chosen rate.

This module owns the schedule of requests, the measurements and the checks. It knows nothing of output. A request's
latency counts from the time when it was due, so that a service which falls behind cannot hide it.
"""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from math import ceil
from random import Random
from typing import Any

import numpy as np

from onward.client.async_client import AsyncClient, AsyncSession
from onward.client.local import LocalModel
from onward.client.results import Forecast, Outputs, Prediction
from onward.errors import Problem, UnreachableError

KINDS = ("steps", "forecasts", "creates")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
TOLERANCE = 1e-4
"""The tolerance for models whose kernels round differently in a batch, relative to an output's largest number."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The load of one run.

    sessions: the number of sessions at once, all of one version. rate: requests a second of all sessions together; 0:
    as many as are answered. mix: the relative frequency of each of KINDS. inputs: steps to send, over and over.
    """

    model: str
    version: int
    sequences: Sequence[Sequence[Any]]
    sessions: int
    rate: float
    seconds: float
    mix: Mapping[str, float]
    horizon: int = 10
    seed: int = 0


@dataclass(slots=True)
class SessionRecord:
    """The inputs of one session, taken from its sequence, and the answers to them.

    doubtful: the last step failed without a response.
    """

    session_id: str
    sequence: Sequence[Any] = ()
    sent: list[Any] = field(default_factory=list)
    predictions: list[Prediction] = field(default_factory=list)
    forecasts: list[Forecast] = field(default_factory=list)
    doubtful: bool = False


@dataclass(slots=True)
class Report:
    """The result of a run; latencies in seconds, by kind. unsent: requests at a rate that were due but not sent."""

    seconds: float = 0.0
    unsent: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    checked: int = 0
    sessions: list[SessionRecord] = field(default_factory=list)

    def table(self) -> list[dict[str, Any]]:
        """Returns for each kind of request its count, its rate, and quantiles of its latency in milliseconds."""
        rows: list[dict[str, Any]] = []
        for kind, seconds in self.latencies.items():
            if seconds:
                quantiles = {name: float(np.quantile(seconds, level)) * 1e3 for name, level in QUANTILES.items()}
                rows.append({"kind": kind, "count": len(seconds), "a_second": len(seconds) / self.seconds} | quantiles)
        return rows


class Load:
    """A run of a plan. `tick` is called with the seconds that have passed since it was last called."""

    def __init__(self, client: AsyncClient, plan: Plan, tick: Callable[[float], None] = lambda _: None) -> None:
        self._client, self._plan, self._tick = client, plan, tick
        self._chance, self._numbers = Random(plan.seed), count()  # noqa: S311  (load, not secrets)
        self._sequences = cycle(plan.sequences)
        self.report = Report(unsent=ceil(plan.rate * plan.seconds))

    async def run(self) -> Report:
        self._began = time.monotonic()
        await asyncio.gather(self._ticking(), *(self._run_session() for _ in range(self._plan.sessions)))
        self.report.seconds = time.monotonic() - self._began
        unsettled = iter(self.report.sessions)
        await asyncio.gather(*(self._settle_all(unsettled) for _ in range(self._plan.sessions)))
        return self.report

    async def _ticking(self) -> None:
        before = self._began
        while (now := time.monotonic()) < self._began + self._plan.seconds:
            self._tick(now - before)
            before = now
            await asyncio.sleep(0.1)

    async def _due(self) -> float | None:
        """Waits until the next request is due. Returns the time when it was due; None when time is up."""
        now, number, plan = time.monotonic(), next(self._numbers), self._plan
        due = self._began + number / plan.rate if plan.rate else now
        if now >= self._began + plan.seconds or (plan.rate and number >= plan.rate * plan.seconds):
            return None
        await asyncio.sleep(max(0.0, due - now))
        self.report.unsent -= bool(plan.rate)
        return due

    async def _run_session(self) -> None:
        """Sends the requests of one session, one after another; begins another session after a doubtful step."""
        session: AsyncSession | None = None
        record = SessionRecord("")
        kinds, weights = zip(*self._plan.mix.items(), strict=True)
        while (due := await self._due()) is not None:
            kind = "creates" if session is None else self._chance.choices(kinds, weights)[0]
            try:
                if session is None or kind == "creates":
                    session = await self._client.session(self._plan.model, version=self._plan.version)
                    record = SessionRecord(session.id, next(self._sequences))
                    self.report.sessions.append(record)
                elif kind == "steps":
                    record.sent.append(record.sequence[len(record.sent) % len(record.sequence)])
                    record.predictions.append(await session.step(record.sent[-1]))
                else:
                    record.forecasts.append(await session.forecast(self._plan.horizon))
            except (Problem, UnreachableError) as error:
                self.report.errors[getattr(error, "name", "") or type(error).__name__] += 1
                if kind == "steps":
                    record.doubtful, session = True, None
            else:
                self.report.latencies[kind].append(time.monotonic() - due)

    async def _settle_all(self, records: Iterator[SessionRecord]) -> None:
        for record in records:
            await self._settle(record)

    async def _settle(self, record: SessionRecord) -> None:
        """Checks that the session is at the step after its acknowledged steps, and deletes it."""
        counts = [prediction.step for prediction in record.predictions]
        if counts != list(range(1, len(counts) + 1)):
            self.report.wrong.append(f"session {record.session_id}: its steps were answered as {counts[:20]}")
        try:
            session = await self._client.attach(record.session_id)
            await session.delete()
        except (Problem, UnreachableError) as error:
            self.report.wrong.append(f"session {record.session_id}: {error}")
            return
        self.report.checked += len(counts)
        if session.step_count - len(counts) not in ((0, 1) if record.doubtful else (0,)):
            self.report.wrong.append(
                f"session {record.session_id} is at step {session.step_count}; {len(counts)} steps were acknowledged"
            )


def replay(local: LocalModel, record: SessionRecord) -> str | None:
    """Repeats a session in this process. Returns the first difference of its answers; None if there is none."""
    # with ONWARD_ACCURACY=0 a service does not measure accuracy
    accuracy = any(step.error is not None or step.anomaly is not None for step in record.predictions)
    session = LocalModel(local.model, accuracy=accuracy).session()
    forecasts = defaultdict[int, list[Forecast]](list)
    for forecast in record.forecasts:
        forecasts[forecast.step].append(forecast)
    exact = local.model.manifest.exact
    for step in range(len(record.predictions) + 1):
        if step:
            expected, answer = session.step(record.sent[step - 1]), record.predictions[step - 1]
            if not same(answer, expected, exact=exact) or not _same_scores(answer, expected, exact=exact):
                return (
                    f"session {record.session_id}: step {step} was answered {dict(answer)}; expected {dict(expected)}"
                )
        for forecast in forecasts[step]:
            if not same(forecast, session.forecast(_horizon(forecast)), exact=exact):
                return f"session {record.session_id}: a forecast at step {step} differs"
    return None


def _horizon(forecast: Forecast) -> int:
    return len(next(iter(forecast.values())))


def same(answer: Outputs, expected: Outputs, *, exact: bool) -> bool:
    """Returns True if the outputs have the same bits, or are close if the model's kernels are not exact."""
    return set(answer) == set(expected) and all(_close(answer[name], expected[name], exact=exact) for name in expected)


def _same_scores(answer: Prediction, expected: Prediction, *, exact: bool) -> bool:
    """Compares the scores of the input. Ranks, and differences of nearly equal numbers, are compared only if exact."""
    if not exact:
        return _close(answer.surprise, expected.surprise, exact=False)
    names = ("surprise", "error", "anomaly")
    scores = [[np.array(getattr(step, name), float) for name in names] for step in (answer, expected)]
    return all(_close(*pair, exact=True) for pair in zip(*scores, strict=True))


def _close(answer: Any, expected: Any, *, exact: bool) -> bool:
    answer, expected = np.asarray(answer), np.asarray(expected)
    if exact or expected.dtype == object:
        return np.array_equal(answer, expected, equal_nan=expected.dtype != object)
    scale = float(np.abs(expected).max(initial=0.0))
    return answer.shape == expected.shape and bool(np.allclose(answer, expected, rtol=0, atol=TOLERANCE * scale))
