"""Calendar features: the phase of a time within its hour, day, week or year, as a point on a circle.

Owns their names and formulas. Training derives them from the time column; the manifest states each formula, because in
service the client computes and sends them.
"""

import math

import polars as pl

_PHASES = {
    "hour": "(minute + second / 60) / 60",
    "day": "(hour + minute / 60 + second / 3600) / 24",
    "week": "(ISO weekday - 1 + hour / 24) / 7",
    "year": "(day of the year - 1) / 365.25",
}
_WAVES = ("sin", "cos")


def names(column: str, units: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names of a time column's features, two for each unit."""
    return tuple(formulas(column, units))


def formulas(column: str, units: tuple[str, ...]) -> dict[str, str]:
    """Returns, for each feature, the formula by which a client computes it."""
    return {f"{column}_{unit}_{wave}": f"{wave}(2 pi {_PHASES[unit]}) of {column}" for unit in units for wave in _WAVES}


def expressions(column: str, units: tuple[str, ...]) -> list[pl.Expr]:
    """Returns the expressions that compute the features from the time column."""
    time = pl.col(column).cast(pl.Datetime)
    hours = time.dt.hour() + time.dt.minute() / 60 + time.dt.second() / 3600
    phases = {
        "hour": (time.dt.minute() + time.dt.second() / 60) / 60,
        "day": hours / 24,
        "week": (time.dt.weekday() - 1 + time.dt.hour() / 24) / 7,
        "year": (time.dt.ordinal_day() - 1) / 365.25,
    }
    columns = []
    for unit in units:
        angle = phases[unit] * 2 * math.pi
        columns += [angle.sin().alias(f"{column}_{unit}_sin"), angle.cos().alias(f"{column}_{unit}_cos")]
    return columns
