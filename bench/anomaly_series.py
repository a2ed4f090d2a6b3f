"""Generated series with planted faults, for the benchmark of anomaly scores.

Owns sixteen families of series that resemble measurements of machines, traffic, loads, prices and timings, and the
kinds of faults that are planted in them. A series is level + amplitude x season + noise, passed through what its
sensor does (clipping, counting, rounding); a fault changes one of these parts for a while. Between the faults the
series have what real ones have: drifting levels, days that differ, and outliers that no label marks. Knows nothing of
models or of scores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PROBATION = 0.15
"""The share at the start of each series that is not scored, and has no faults."""
WINDOW_SHARE = 0.1
"""All windows of a series have together this share of its points."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A planted fault: its kind and the points [start, stop) at which it acts."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Series:
    """A series with its faults, and a window [first, last] of points around the start of each."""

    family: str
    number: int
    values: Floats
    faults: tuple[Fault, ...]

    @property
    def name(self) -> str:
        return f"{self.family}-{self.number}"

    @property
    def probation(self) -> int:
        """The number of points that are not scored."""
        return int(PROBATION * len(self.values))

    @property
    def windows(self) -> list[tuple[int, int]]:
        """The first and the last point of each window."""
        if not self.faults:
            return []
        half = int(WINDOW_SHARE * len(self.values) / len(self.faults)) // 2
        return [(fault.start - half, min(fault.start + half, len(self.values) - 1)) for fault in self.faults]


@dataclass
class Parts:
    """The parts of a series before its sensor, which faults change; (points,) each."""

    season: Callable[[Floats], Floats]
    phase: Floats
    amplitude: Floats
    level: Floats
    noise: Floats
    spread: Floats
    """The factor of the noise."""
    stuck: list[slice] = field(default_factory=list)
    absent: list[slice] = field(default_factory=list)

    def values(self, sensor: Callable[[Floats], Floats]) -> Floats:
        values = sensor(self.level + self.amplitude * self.season(self.phase) + self.spread * self.noise)
        for span in self.absent:
            values[span] = values.min()
        for span in self.stuck:
            values[span] = values[span.start]
        return values


@dataclass(frozen=True, slots=True)
class Family:
    """A family of series: how many points, how its parts are drawn, its sensor and the faults that it may have.

    amplitude: of the season, in deviations of the noise. drift: the deviation of a step of the level's random walk
    (mean-reverting over `memory` points). days: the deviation of the logarithm of the amplitude from period to period.
    tail: degrees of freedom of the noise. correlation: of the noise from point to point. bursts: unlabelled outliers
    for each thousand points, of about `burst` deviations.
    """

    points: int
    kinds: tuple[str, ...]
    period: int = 0
    shape: str = "sine"
    week: bool = False
    amplitude: float = 0.0
    drift: float = 0.0
    memory: float = 500.0
    days: float = 0.0
    tail: float = 8.0
    correlation: float = 0.0
    bursts: float = 0.0
    burst: float = 5.0
    sensor: str = "plain"
    centre: float = 50.0
    unit: float = 1.0


FAMILIES = {
    "machine": Family(
        18_000, ("shift", "drift", "absent", "spike"), drift=0.15, memory=2000, tail=5, correlation=0.6, centre=85
    ),
    "room": Family(
        7_000, ("shift", "stuck", "amplitude", "drift"), 24, amplitude=2, drift=0.15, memory=400, days=0.2, centre=71
    ),
    "taxi": Family(
        10_000, ("absent", "amplitude", "shift", "spike"), 48, "two", week=True, amplitude=6, days=0.1, correlation=0.5,
        sensor="clip", centre=15, unit=900,
    ),
    "mentions": Family(
        15_000, ("burst", "spike", "shift"), 288, amplitude=1.2, drift=0.04, days=0.15, tail=3, bursts=1.5, burst=8,
        sensor="count", centre=2, unit=6,
    ),
    "batch-load": Family(
        4_032, ("shift", "absent", "period", "burst"), 144, "square", amplitude=12, days=0.05, tail=4, bursts=1,
        sensor="percent", centre=6, unit=2.5,
    ),
    "network": Family(
        4_700, ("spike", "noise", "shift", "burst"), tail=2.5, correlation=0.3, bursts=4, burst=12, sensor="exp",
        centre=9, unit=0.25,
    ),
    "price": Family(
        1_600, ("spike", "shift", "noise"), 24, amplitude=0.5, drift=0.1, memory=200, tail=3, bursts=3, burst=4,
        sensor="exp", centre=-1, unit=0.25,
    ),
    "travel": Family(
        2_500, ("spike", "burst", "shift"), 96, "two", amplitude=2, days=0.3, tail=3, bursts=4, burst=6, sensor="clip",
        centre=8, unit=40,
    ),
    "daily": Family(
        4_032, ("amplitude", "absent", "stuck", "shift"), 288, "square", amplitude=14, tail=30, centre=20, unit=4,
    ),
    "key-hold": Family(3_800, ("shift", "noise", "spike"), drift=0.05, tail=6, sensor="exp", centre=-2, unit=0.3),
    "latency": Family(
        4_032, ("spike", "shift", "burst"), tail=6, correlation=0.2, bursts=1, burst=6, sensor="clip", centre=18,
        unit=2.5,
    ),
    "disk": Family(
        4_032, ("burst", "shift", "spike"), tail=2, correlation=0.1, sensor="rare", centre=-2.0, unit=1e5
    ),
    "cluster": Family(
        17_000, ("shift", "period", "noise", "drift"), 60, "saw", amplitude=2, drift=0.06, memory=3000, days=0.3,
        correlation=0.5, bursts=0.5, sensor="percent", centre=14, unit=3,
    ),
    "speed": Family(
        2_500, ("absent", "shift", "noise"), 96, "dips", amplitude=5, days=0.3, tail=4, correlation=0.4, bursts=3,
        burst=-5, sensor="clip", centre=22, unit=3,
    ),
    "rotor": Family(4_000, ("period", "amplitude", "stuck", "spike"), 37, amplitude=20, tail=30, centre=0),
    "quiet": Family(4_032, (), 144, amplitude=1.5, drift=0.02, tail=5, bursts=1, centre=45),
}  # fmt: skip
TUNED_ON = ("machine", "taxi", "network", "price", "daily", "key-hold", "speed", "quiet")
"""The families on which constants were chosen; the others are reported."""


def _bell(values: Floats) -> Floats:
    return np.asarray(np.exp(-(values**2)), np.float64)


SHAPES: dict[str, Callable[[Floats], Floats]] = {
    "sine": lambda phase: np.sin(2 * np.pi * phase),
    "two": lambda phase: np.sin(2 * np.pi * phase) - 0.6 * np.sin(4 * np.pi * phase) + 0.3 * np.cos(6 * np.pi * phase),
    "square": lambda phase: np.asarray(phase % 1 > 0.6, np.float64),
    "saw": lambda phase: phase % 1 - 0.5,
    "dips": lambda phase: -_bell((phase % 1 - 0.35) / 0.05) - 0.7 * _bell((phase % 1 - 0.7) / 0.07),
}  # fmt: skip
SENSORS: dict[str, Callable[[Floats], Floats]] = {
    "plain": lambda values: values,
    "clip": lambda values: np.maximum(values, 0.5),
    "count": lambda values: np.floor(np.exp(np.minimum(values / 2, 6))),
    "percent": lambda values: np.asarray(np.round(np.clip(values, 0.2, 39), 2), np.float64),
    "exp": lambda values: np.exp(np.minimum(values / 4, 12)),
    "rare": lambda values: np.where(values > 0, np.minimum(values, 40), 0.0),
}


def draw(family: str, number: int) -> Series:
    """Draws a series of a family; equal arguments give equal series."""
    spec, seed = FAMILIES[family], crc32(f"{family} {number}".encode())
    rng, choice = np.random.default_rng(seed), Random(seed)
    points = int(spec.points * rng.uniform(0.9, 1.1))
    parts = _parts(spec, points, rng)
    faults = []
    if spec.kinds:
        count = choice.choice((1, 2, 2, 3, 4))
        room = (0.97 - 0.2) / count
        for turn in range(count):
            start = int(points * (0.2 + room * (turn + choice.uniform(0.1, 0.7))))
            kind = spec.kinds[(number + turn) % len(spec.kinds)]
            faults.append(plant(kind, parts, start, spec, rng))
    sensor, unit, offset = SENSORS[spec.sensor], spec.unit, rng.uniform(0.7, 1.3)
    return Series(family, number, sensor_unit(parts.values(sensor), spec.sensor, unit * offset), tuple(faults))


def sensor_unit(values: Floats, sensor: str, unit: float) -> Floats:
    """Returns the values in the family's unit; what the sensor counts or clips stays as it is."""
    return values if sensor == "count" else values * unit


def _parts(spec: Family, points: int, rng: np.random.Generator) -> Parts:
    noise = rng.standard_t(spec.tail, points) / np.sqrt(spec.tail / (spec.tail - 2) if spec.tail > 2 else 4)
    shocks = rng.standard_normal(points) * spec.drift
    level, moved = np.empty(points), 0.0
    correlated, last, rest = np.empty(points), 0.0, np.sqrt(1 - spec.correlation**2)
    for point in range(points):
        moved += shocks[point] - moved / spec.memory
        last = spec.correlation * last + rest * noise[point]
        level[point], correlated[point] = moved, last
    bursts = rng.random(points) < spec.bursts / 1000
    correlated[bursts] += spec.burst * rng.exponential(0.7, bursts.sum()) + spec.burst * 0.3
    amplitude, phase = np.full(points, spec.amplitude), np.zeros(points)
    if spec.period:
        phase = np.arange(points) / spec.period + rng.uniform(0, 1)
        periods = points // spec.period + 2
        factors = np.exp(spec.days * rng.standard_normal(periods))
        if spec.week:
            factors[np.arange(periods) % 7 >= 5] *= 0.75
        amplitude = amplitude * factors[(phase - phase[0] % 1).astype(int)]
    return Parts(SHAPES[spec.shape], phase, amplitude, spec.centre + level, correlated, np.ones(points))


def plant(kind: str, parts: Parts, start: int, spec: Family, rng: np.random.Generator) -> Fault:
    """Plants a fault into the parts of a series."""
    points = len(parts.level)
    length = int(points * rng.uniform(0.01, 0.03))
    if spec.period:
        length = max(length, int(spec.period * rng.uniform(0.5, 1.2)))
    stop, sign = min(start + length, points), float(rng.choice((-1.0, 1.0)))
    if spec.sensor in {"count", "rare", "exp"}:
        sign = 1.0
    return Fault(kind, start, _PLANTERS[kind](Planting(parts, spec, rng, start, stop, sign)))


class Planting(NamedTuple):
    """A series into which a fault is planted, the points [start, stop) drawn for it, and whether it goes up or down."""

    parts: Parts
    spec: Family
    rng: np.random.Generator
    start: int
    stop: int
    sign: float

    @property
    def span(self) -> slice:
        """The points of the fault."""
        return slice(self.start, self.stop)

    @property
    def reach(self) -> float:
        """The unit of changes of the level: a deviation of the noise, or half the season."""
        return max(1.0, 0.5 * self.spec.amplitude)


def _spike(at: Planting) -> int:
    stop = at.start + int(at.rng.integers(1, 4))
    at.parts.noise[at.start : stop] += at.sign * at.rng.uniform(9, 16) * max(1.0, 0.12 * at.spec.amplitude)
    return stop


def _shift(at: Planting) -> int:
    stop = len(at.parts.level) if at.rng.random() < 0.4 else at.stop
    at.parts.level[at.start : stop] += at.sign * at.rng.uniform(3.0, 6.0) * at.reach
    return stop


def _drift(at: Planting) -> int:
    length = at.stop - at.start
    rise = np.concatenate((np.linspace(0, 1, length - length // 4), np.full(length // 4, 1.0)))
    at.parts.level[at.span] += at.sign * at.rng.uniform(6, 10) * at.reach * rise
    return at.stop


def _noise(at: Planting) -> int:
    at.parts.spread[at.span] *= at.rng.uniform(3, 5)
    return at.stop


def _amplitude(at: Planting) -> int:
    at.parts.amplitude[at.span] *= at.rng.choice((0.25, 1.8))
    return at.stop


def _period(at: Planting) -> int:
    phase = at.parts.phase
    phase[at.span] = phase[at.start] + (phase[at.span] - phase[at.start]) * at.rng.choice((0.6, 1.6))
    phase[at.stop :] += phase[at.stop - 1] - phase[at.stop] if at.stop < len(phase) else 0
    return at.stop


def _burst(at: Planting) -> int:
    length = at.stop - at.start
    hit = at.rng.random(length) < 0.25
    hit[0] = True
    at.parts.noise[at.span] += hit * at.rng.uniform(5, 10, length) * max(1.0, 0.1 * at.spec.amplitude)
    return at.stop


def _stuck(at: Planting) -> int:
    at.parts.stuck.append(at.span)
    return at.stop


def _absent(at: Planting) -> int:
    at.parts.absent.append(at.span)
    return at.stop


_PLANTERS: dict[str, Callable[[Planting], int]] = {
    "spike": _spike, "shift": _shift, "drift": _drift, "noise": _noise, "amplitude": _amplitude, "period": _period,
    "burst": _burst, "stuck": _stuck, "absent": _absent,
}  # fmt: skip


def corpus(families: Sequence[str], numbers: Sequence[int]) -> list[Series]:
    """Draws the series of the families with these numbers."""
    return [draw(family, number) for family in families for number in numbers]
