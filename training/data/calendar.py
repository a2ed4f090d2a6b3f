"""Calendar features: where in the hour, day, week or year a time lies, as a point on a circle.

Owns their names and formulas. They are derived from the time column here, and named in the manifest with their formula,
because a client computes and sends them.
"""

import math

import polars as pl

_TURN = {
    "hour": "(minute + second / 60) / 60",
    "day": "(hour + minute / 60 + second / 3600) / 24",
    "week": "(ISO weekday - 1 + hour / 24) / 7",
    "year": "(day of the year - 1) / 365.25",
}
_WAVES = ("sin", "cos")


def names(column: str, units: tuple[str, ...]) -> tuple[str, ...]:
    """The features of a time column, two a unit."""
    return tuple(f"{column}_{unit}_{wave}" for unit in units for wave in _WAVES)


def formulas(column: str, units: tuple[str, ...]) -> dict[str, str]:
    """By feature, how a client computes it."""
    return {f"{column}_{unit}_{wave}": f"{wave}(2 pi {_TURN[unit]}) of {column}" for unit in units for wave in _WAVES}


def expressions(column: str, units: tuple[str, ...]) -> list[pl.Expr]:
    """The features as columns."""
    time = pl.col(column).cast(pl.Datetime)
    hours = time.dt.hour() + time.dt.minute() / 60 + time.dt.second() / 3600
    turns = {
        "hour": (time.dt.minute() + time.dt.second() / 60) / 60,
        "day": hours / 24,
        "week": (time.dt.weekday() - 1 + time.dt.hour() / 24) / 7,
        "year": (time.dt.ordinal_day() - 1) / 365.25,
    }
    return [
        (turns[unit] * 2 * math.pi).sin().alias(f"{column}_{unit}_sin")
        if wave == "sin"
        else (turns[unit] * 2 * math.pi).cos().alias(f"{column}_{unit}_cos")
        for unit in units
        for wave in _WAVES
    ]
