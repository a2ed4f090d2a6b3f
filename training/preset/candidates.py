"""The configurations that a search compares, each a list of choices with reasons.

Owns what is proposed for which profile. Held-out error decides between the proposals.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from onward.training.preset.choice import Choice, merged
from onward.training.preset.profile import Profile

PATIENCE = 12
"""Epochs without a better validation loss; the learning rate is halved after a third of them."""

MOST_EPOCHS = 1000

SMALL = 5000
"""The training steps up to which regularisation and the first weights are searched too."""

CHOSEN = "the lowest error on the validation part"


def base(profile: Profile) -> list[Choice]:
    """Returns the choices of size, windows and rate, which depend on the profile alone."""
    rows = profile.rows
    units = 16 if rows < 1000 else 32 if rows < 20_000 else 64 if rows < 200_000 else 128
    window = max(16, min(128, profile.shortest // 2, 2 * (profile.season or 32)))
    batch = 2 ** round(math.log2(min(64, max(1, rows / window / 8))))
    choices = [
        Choice("model.cell", "gru", "as accurate as an LSTM on small data, with less state"),
        Choice("model.units", units, f"{rows:,} steps to learn from"),
        Choice("train.window", window, "two seasons" if profile.season else "half of the shortest series at the most"),
        Choice("train.batch", batch, "about eight optimiser steps an epoch, or more"),
        Choice("train.learning_rate", 0.01 if rows < 20_000 else 0.004, "high at first, because it falls by itself"),
        Choice("train.schedule", "plateau", "the rate is halved where the validation loss no longer falls"),
        Choice("train.patience", PATIENCE, "the training ends by itself"),
        Choice("train.epochs", MOST_EPOCHS, "the training ends by itself"),
    ]
    if profile.series > 20 and profile.shortest < 200:
        choices.append(Choice("train.sampling", "windows", f"{profile.series:,} short series"))
    if profile.season:
        reason = f"the steps of one period repeat with a correlation of {profile.correlation:.2f}"
        choices.append(Choice("data.period", profile.season, reason))
    if profile.heavy_tails:
        choices.append(Choice("model.head", "student_t", "changes have heavy tails"))
    return choices


def variants(profile: Profile, targets: Sequence[str], first: Sequence[Choice]) -> list[list[Choice]]:
    """Returns the candidates, the likeliest first.

    They are all combinations of transform, calendar, differences and scaling and, of several targets, of channels.
    """
    transforms: list[dict[str, Any]] = [{}]
    if profile.wide:
        transforms.append({"data.transforms": dict.fromkeys(profile.wide, "log")})
    if profile.multiplicative:
        transforms.reverse()
    calendars: list[dict[str, Any]] = [{}]
    if entries := calendar_entries(profile):
        calendars.insert(0, {"data.calendar": entries})
    changes: list[dict[str, Any]] = [{}, {"data.changes": list(targets)}]
    if profile.trending:
        changes = [{"data.changes": list(targets)}, {}]
    scalings = [{"model.scaling": name} for name in ("fixed", "causal")]
    if profile.scales_differ:
        scalings.reverse()
    channels = [{"data.channels": "independent"}, {}] if len(targets) > 1 else [{}]
    return [
        merged(first, transform | channel | calendar | change | scaling, CHOSEN)
        for transform, channel, calendar, change, scaling in product(transforms, channels, calendars, changes, scalings)
    ]


def calendar_entries(profile: Profile) -> list[str]:
    """Returns the entries of the calendar that the training part covers at least twice."""
    interval, rows = profile.interval, profile.longest
    if interval is None or not interval.unit:
        return []
    if interval.unit == "month":
        return ["month_of_year"] if interval.count < 12 and rows * interval.count >= 24 else []
    days = interval.count / 86_400 if interval.unit == "second" else interval.count
    entries = []
    if days < 1 and rows * days >= 2:
        entries.append("hour_of_day" if days >= 1 / 24 else "day")
    if days < 7 and rows * days >= 14:
        entries.append("day_of_week")
    if rows * days >= 730:
        entries.append("year")
    return entries


def refinements(profile: Profile, best: Sequence[Choice]) -> list[list[Choice]]:
    """Returns variants of the best candidate, in size, rate, regularisation and, of small data, the first weights."""
    values = {choice.key: choice.value for choice in best}
    units, rate = values["model.units"], values["train.learning_rate"]
    changes: list[dict[str, Any]] = [
        {"model.units": units * 2},
        {"train.learning_rate": rate / 3},
        {"train.averaging": 0.98},
        {"model.head": "gaussian" if values.get("model.head") == "student_t" else "student_t"},
    ]
    if profile.rows < SMALL:
        changes += [{"train.weight_decay": 0.1}, {"model.units": max(4, units // 2)}, {"train.seed": 1}]
    return [merged(best, change, CHOSEN) for change in changes]
