"""Line charts as inline SVG, rendered by the template `chart.svg.j2`; colours come from the style sheet of the page.

Owns scales, ticks and paths. Knows nothing of the data that is drawn. A plotting library was tried: with Matplotlib the
five charts of a report have 125 kB instead of 37 kB and their styles inline, so that they ignore the colour scheme of
the reader, and the installation grows by 80 MB.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from markupsafe import Markup

from onward.model.precision import digits
from onward.training.evaluation.point_metrics import Array

LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 40
"""The margins around the plotting area, in pixels; the left one is wider if the labels are."""
CHARACTER = 7
"""The width of a label's character in pixels."""

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
"""The templates of the report; every value that they insert is escaped."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line through the points xs, ys (points,); a point that is not finite is a gap.

    `style` is a class of the style sheet, and `dots` marks each point.
    """

    label: str
    style: str
    xs: Array
    ys: Array
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """The area between `low` and `high` (points,)."""

    label: str
    xs: Array
    low: Array
    high: Array


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values of an axis, from `low` to `high`, to pixels, from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        position = self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)
        return round(position, 1)


def chart(
    description: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    band: Band | None = None,
    from_zero: bool = False,
    whole_x: bool = False,
    size: tuple[int, int] = (800, 260),
) -> Markup:
    """Returns a figure of a legend and a drawing. Screen readers read the description, which is not displayed."""
    width, height = size
    xs = _finite(line.xs for line in lines)
    ys = _finite([*(line.ys for line in lines), *((band.low, band.high) if band else ())])
    y_scale = Scale(*_limits(np.append(ys, 0.0) if from_zero else ys, margin=0.04), height - BOTTOM, TOP)
    y_ticks = ticks(y_scale.low, y_scale.high, 6)
    y_labels = _tick_labels(y_ticks)
    left = max(LEFT, 12 + CHARACTER * max(map(len, y_labels), default=0))
    x_scale = Scale(*_limits(xs, margin=0.0), left, width - RIGHT)
    x_ticks = [tick for tick in ticks(x_scale.low, x_scale.high, 8) if not whole_x or tick == round(tick)]
    drawn = TEMPLATES.get_template("chart.svg.j2").render(
        description=description,
        width=width,
        height=height,
        left=left,
        right=width - RIGHT,
        bottom=height - BOTTOM,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(x_scale(tick), text) for tick, text in zip(x_ticks, _tick_labels(x_ticks), strict=True)],
        y_ticks=[(y_scale(tick), text) for tick, text in zip(y_ticks, y_labels, strict=True)],
        legend={line.label: line.style for line in lines} | ({band.label: "band"} if band else {}),
        band=_area(band, x_scale, y_scale) if band else None,
        lines=[
            (line.style, _path(zip(line.xs, line.ys, strict=True), x_scale, y_scale), _dots(line, x_scale, y_scale))
            for line in lines
        ],
    )
    return Markup(drawn)  # noqa: S704  (the template escapes what it inserts)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Returns round numbers from low to high, spaced by 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [count * step for count in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Returns the value with four significant digits, with thousands separators, or as a power of ten if needed."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-3 <= abs(value) < 1e6:
        decimals = max(0, 3 - math.floor(math.log10(abs(value))))
        return f"{value:,.{decimals}f}"
    return f"{value:.3e}"


def _finite(parts: Iterable[Array]) -> Array:
    values = np.concatenate([np.asarray(part, np.float64) for part in parts])
    values = values[np.isfinite(values)]
    return values if len(values) else np.zeros(1)


def _limits(values: Array, margin: float) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if high - low <= 1e-13 * max(abs(low), abs(high)):
        room = abs(high) / 2 or 1.0
        return low - room, high + room
    return low - (margin * (high - low) if low else 0.0), high + margin * (high - low)


def _tick_labels(values: Sequence[float]) -> list[str]:
    step = abs(values[1] - values[0]) if len(values) > 1 else abs(values[0]) if values else 1.0
    largest = max((abs(value) for value in values), default=0.0)
    if largest >= 1e7 or 0 < step < 1e-5:
        return [f"{value:.{digits(largest, step, 3)}g}" for value in values]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 0
    return [f"{value if abs(value) > step / 2 else 0.0:,.{decimals}f}" for value in values]


def _path(points: Iterable[tuple[float, float]], x_scale: Scale, y_scale: Scale) -> str:
    parts, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{x_scale(x):.1f} {y_scale(y):.1f}")
        pen = "L"
    return "".join(parts)


def _area(band: Band, x_scale: Scale, y_scale: Scale) -> str:
    upper, lower = zip(band.xs, band.high, strict=True), zip(band.xs[::-1], band.low[::-1], strict=True)
    return _path([*upper, *lower], x_scale, y_scale) + "Z"


def _dots(line: Line, x_scale: Scale, y_scale: Scale) -> list[tuple[float, float, str]]:
    if not line.dots:
        return []
    return [
        (x_scale(x), y_scale(y), f"{line.label}: {number(y)} at {number(x)}")
        for x, y in zip(line.xs.tolist(), line.ys.tolist(), strict=True)
        if math.isfinite(y)
    ]
