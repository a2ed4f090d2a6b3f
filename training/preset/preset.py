"""The way from a table to a configuration file: what is found, tried and chosen, in order.

Owns the order of the steps, and the file that they end with.
"""

import os
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomlkit

from onward.model.tables.intervals import Interval
from onward.model.tables.preview import look
from onward.model.tables.settings import TableSettings
from onward.training import config as configs
from onward.training import run
from onward.training.config import Config, ConfigError
from onward.training.preset import candidates, columns, profile, search
from onward.training.preset.choice import Choice, document, merged
from onward.training.preset.columns import Named
from onward.training.preset.search import Budget, Report, Trial

FINAL_SHARE = 0.3
"""The share of the budget for the training of the chosen configuration."""

SECTIONS = ("data", "model", "train", "output")


@dataclass(frozen=True, slots=True)
class Preset:
    """The choices that the preset arrived at, and the trials that led to them, the best one first."""

    choices: list[Choice]
    trials: list[Trial]


def configure(
    file: Path, named: Named, *, name: str, folder: Path, seconds: float, report: Report, given: Mapping[str, Any]
) -> Preset:
    """Returns the configuration that is found for the table in `file` within `seconds`.

    given: values of keys that are not searched, such as `data.decimal`. `report` receives lines of text about what is
    found and tried. Raises DataError, ConfigError or TrainingError.
    """
    budget = Budget(seconds * (1 - FINAL_SHARE), time.process_time())
    table = {key.removeprefix("data."): value for key, value in given.items() if key.startswith("data.")}
    settings = TableSettings.model_validate({key: table[key] for key in table if key in TableSettings.model_fields})
    first = [Choice("data.path", os.path.relpath(file, folder), "the table")]
    preview = look(file, settings)
    first = merged([*first, *columns.find(file, preview, settings, named)], given, "given")
    for choice in first[1:]:
        report(f"  {choice.key} = {choice.value!r}: {choice.reason}")
    values = {choice.key: choice.value for choice in first}
    target = values["data.targets"][0]
    for column, part in columns.explained_by(preview, first).items():
        report(
            f"  HINT: column {column} of a row explains {part:.0%} of {target} in the same row; if it is known in "
            f"advance, such as a plan, add --known {column}"
        )
    dataset = run.load_dataset(_config(name, folder, first))
    if dataset.summary is not None:
        report(dataset.summary.text().rstrip("\n"))
    targets = list(values["data.targets"])
    found = profile.measure(dataset, targets, _interval(dataset.table))
    first = merged([*first, *candidates.base(found)], given, "given")
    trials = search.search(name, folder, found, targets, first, budget, report)
    best = trials[0]
    epochs = max(best.epochs, int(seconds * FINAL_SHARE / best.seconds))
    if epochs < candidates.MOST_EPOCHS:
        best_choices = merged(best.choices, {"train.epochs": epochs}, "what the budget allows")
    else:
        best_choices = best.choices
    refit = Choice(
        "train.refit", value=True, reason="the bundle is trained on all data; its figures are of the fit before"
    )
    return Preset(merged([*best_choices, refit], given, "given"), trials)


def write(preset: Preset, target: Path, table: Path) -> None:
    """Writes the configuration with the reason of each choice beside it. Raises DataError if the file exists."""
    text = tomlkit.document()
    text.add(tomlkit.comment(f"Found by `onward train {table.name}`; each choice has its reason."))
    sections = document(preset.choices)
    reasons = {choice.key: choice.reason for choice in preset.choices}
    for section in SECTIONS:
        if section not in sections:
            continue
        rows = tomlkit.table()
        for key, value in sections[section].items():
            item: Any = tomlkit.item(value)
            if isinstance(value, dict):
                item = tomlkit.inline_table()
                item.update(value)
            item.comment(reasons[f"{section}.{key}"])
            rows.add(key, item)
        text.add(section, rows)
    require_absent(target)
    target.write_text(tomlkit.dumps(text), encoding="utf-8")


def require_absent(target: Path) -> None:
    """Raises ConfigError if there is a configuration of that name."""
    if target.exists():
        raise ConfigError(f"{target} exists: train it with `onward train {target}`, or name another file with --out")


def model_name(table: Path) -> str:
    """Returns a name for the model of a table: that of the file, in the letters that names of models have."""
    stem = table.name.split(".")[0].lower()
    return re.sub(r"[^a-z0-9_-]+", "-", stem).strip("-_") or "model"


def seconds_of(budget: str) -> float:
    """Returns a time such as 90s, 5m or 1h in seconds. Raises ConfigError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)", budget.strip())
    if found is None or not float(found[1]):
        raise ConfigError(f"--budget: {budget!r} is no time such as 90s, 5m or 1h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]]


def values_of(settings: Sequence[str]) -> dict[str, Any]:
    """Returns the values of settings such as `model.units=64`; what is no TOML value is a text. Raises ConfigError."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or key.partition(".")[0] not in SECTIONS or not key.partition(".")[2]:
            raise ConfigError(f"--set: {setting!r} is no setting such as model.units=64")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def _config(name: str, folder: Path, choices: Sequence[Choice]) -> Config:
    return configs.with_settings({"name": name}, {choice.key: choice.value for choice in choices}, folder)


def _interval(settings: TableSettings | None) -> Interval | None:
    if settings is None or settings.interval is None:
        return None
    return Interval.parse(settings.interval, temporal=settings.time_zone is not None)
