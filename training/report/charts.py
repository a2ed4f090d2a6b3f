"""Line charts as inline SVG, drawn without a library; colours come from the page's style sheet.

Owns scales, ticks and marks. Knows nothing of what is drawn.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from onward.training.evaluation.point_metrics import Array

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40


@dataclass(frozen=True, slots=True)
class Line:
    """xs, ys: (points,); `style` is a class of the style sheet. A point that is not finite is a gap."""

    label: str
    style: str
    xs: Array
    ys: Array
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    label: str
    xs: Array
    low: Array
    high: Array


@dataclass(frozen=True, slots=True)
class Scale:
    """From data to pixels, one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from low to high: 1, 2 or 5 times a power of ten apart."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def chart(
    what: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    band: Band | None = None,
    from_zero: bool = False,
    whole_x: bool = False,
    size: tuple[int, int] = (800, 260),
) -> str:
    """A figure: the legend and the drawing. what: said to those who cannot see it, and to nobody else."""
    width, height = size
    xs = _finite(line.xs for line in lines)
    ys = _finite([*(line.ys for line in lines), *((band.low, band.high) if band else ())])
    across = Scale(*_limits(xs, margin=0.0), LEFT, width - RIGHT)
    up = Scale(*_limits(np.append(ys, 0.0) if from_zero else ys, margin=0.04), height - BOTTOM, TOP)
    marks = [_grid(across, up, whole_x=whole_x)]
    if band is not None:
        edge = [*zip(band.xs, band.high, strict=True), *zip(band.xs[::-1], band.low[::-1], strict=True)]
        marks.append(f'<path class="band" d="{_path(edge, across, up)}Z"/>')
    marks += [_line(line, across, up) for line in lines]
    marks.append(f'<text class="axis" x="{(LEFT + width - RIGHT) / 2:.0f}" y="{height - 4}">{escape(x_label)}</text>')
    return (
        f"<figure>{_legend(lines, band, y_label)}"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(what)}">{"".join(marks)}</svg></figure>'
    )


def number(value: float) -> str:
    """Four digits, as people write them."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        places = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{places}f}"
    return f"{value:.3e}"


def _finite(parts: Iterable[Array]) -> Array:
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    values = values[np.isfinite(values)]
    return values if len(values) else np.zeros(1)


def _limits(values: Array, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 1.0
        return low - room, high + room
    return low - (margin * (high - low) if low else 0.0), high + margin * (high - low)


def _grid(across: Scale, up: Scale, *, whole_x: bool) -> str:
    marks = []
    levels = ticks(up.low, up.high, 6)
    for value, text in zip(levels, _labels(levels), strict=True):
        y = up(value)
        marks.append(f'<line class="rule" x1="{across.start:g}" x2="{across.stop:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        marks.append(f'<text class="tick up" x="{across.start - 8:g}" y="{y + 4:.1f}">{text}</text>')
    places = [value for value in ticks(across.low, across.high, 8) if not whole_x or value == round(value)]
    for value, text in zip(places, _labels(places), strict=True):
        marks.append(f'<text class="tick" x="{across(value):.1f}" y="{up.start + 17:g}">{text}</text>')
    return "".join(marks)


def _labels(values: Sequence[float]) -> list[str]:
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) if values else 1.0
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e7 or 0 < step < 1e-5:
        return [f"{value:.3g}" for value in values]
    places = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return [f"{value if abs(value) > step / 2 else 0.0:,.{places}f}" for value in values]


def _path(points: Iterable[tuple[float, float]], across: Scale, up: Scale) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{across(x):.1f} {up(y):.1f}")
        pen = "L"
    return "".join(parts)


def _line(line: Line, across: Scale, up: Scale) -> str:
    points = list(zip(line.xs.tolist(), line.ys.tolist(), strict=True))
    drawn = f'<path class="line {line.style}" d="{_path(points, across, up)}"/>'
    if line.dots:
        drawn += "".join(
            f'<circle class="dot {line.style}" cx="{across(x):.1f}" cy="{up(y):.1f}" r="3.2">'
            f"<title>{escape(line.label)}: {number(y)} at {number(x)}</title></circle>"
            for x, y in points
            if math.isfinite(y)
        )
    return drawn


def _legend(lines: Sequence[Line], band: Band | None, y_label: str) -> str:
    seen: dict[str, str] = {}
    for line in lines:
        seen.setdefault(line.label, f'<path class="line {line.style}" d="M0 6H24"/>')
    if band is not None:
        seen[band.label] = '<rect class="band" width="24" height="12"/>'
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 24 12" aria-hidden="true">{mark}</svg>{escape(label)}</span>'
        for label, mark in seen.items()
    )
    return f'<figcaption><span class="unit">{escape(y_label)}</span>{keys}</figcaption>'
