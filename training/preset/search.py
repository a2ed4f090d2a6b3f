"""The search of the preset: candidates are trained for ever longer, and the better half goes on (successive halving).

Owns the budget and the score. The source of the method is Jamieson and Talwalkar 2016. The score is the error on the
validation part, one step ahead and over the horizon, in units of the last value's; the test part is not used.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onward.training import config as configs
from onward.training import run
from onward.training.config import Config, ConfigError
from onward.training.data.datasets import Dataset, Series
from onward.training.errors import DataError, TrainingError
from onward.training.evaluation import evaluation
from onward.training.export import export_bundle
from onward.training.preset import candidates
from onward.training.preset.choice import Choice
from onward.training.preset.profile import Profile

Report = Callable[[str], None]

STEPS_A_SECOND = 10_000
"""The training steps of a small network in a second, about. It decides how much of large data a round is trained on."""

FEWEST_EPOCHS = 5
"""The epochs that a candidate should have in its round; of large data it is therefore trained on a part."""

FEWEST_STEPS = 2000
"""The least number of steps that a candidate is trained on."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A candidate that was trained."""

    choices: list[Choice]
    score: float
    epochs: int
    """The epochs of its training; the best weights may be those of an earlier one."""
    seconds: float
    """The time of an epoch."""


@dataclass(slots=True)
class Budget:
    """Seconds of the processor's time, so that a busy machine does not change what is found."""

    seconds: float
    began: float

    @property
    def left(self) -> float:
        return max(0.0, self.began + self.seconds - time.process_time())


def search(
    name: str,
    folder: Path,
    profile: Profile,
    targets: Sequence[str],
    first: list[Choice],
    budget: Budget,
    report: Report,
) -> list[Trial]:
    """Returns the trials, the best one first. Raises DataError, ConfigError or TrainingError if no candidate trains."""
    datasets: dict[str, Dataset] = {}
    share = budget.left * 0.6
    best = _halve(name, folder, candidates.variants(profile, targets, first), share, datasets, report)
    if best[0].choices and budget.left > 1.0:
        refined = candidates.refinements(profile, best[0].choices)
        best += _halve(name, folder, refined, budget.left, datasets, report)
    return sorted(best, key=lambda trial: trial.score)


def _halve(
    name: str,
    folder: Path,
    proposals: list[list[Choice]],
    seconds: float,
    datasets: dict[str, Dataset],
    report: Report,
) -> list[Trial]:
    """Returns the trials of all rounds; a round has half of the candidates of the one before it, and twice the time."""
    rounds = max(1, len(proposals).bit_length() - 1)
    finished: dict[int, Trial] = {}
    until = time.process_time() + seconds
    survivors = list(range(len(proposals)))
    for _ in range(rounds):
        each = seconds / rounds / len(survivors)
        steps = max(FEWEST_STEPS, int(each * STEPS_A_SECOND / FEWEST_EPOCHS))
        for index in survivors:
            if time.process_time() > until:
                break
            before = finished.get(index)
            trial = _train(name, folder, proposals[index], each, steps, datasets, report)
            if trial is not None and (before is None or trial.score < before.score):
                finished[index] = trial
        survivors = sorted((index for index in survivors if index in finished), key=lambda index: finished[index].score)
        survivors = survivors[: max(1, len(survivors) // 2)]
    if not finished:
        raise TrainingError("no candidate could be trained; the lines above say why")
    return sorted(finished.values(), key=lambda trial: trial.score)


def _train(
    name: str,
    folder: Path,
    choices: list[Choice],
    seconds: float,
    steps: int,
    datasets: dict[str, Dataset],
    report: Report,
) -> Trial | None:
    try:
        config = configs.with_settings({"name": name}, {choice.key: choice.value for choice in choices}, folder)
        key = config.data.model_dump_json()
        if key not in datasets:
            datasets[key] = run.load_dataset(config)
        dataset = shortened(datasets[key], steps)
        began = time.process_time()
        fitted = run.fit_dataset(
            config, dataset, quiet=True, on_epoch_end=lambda _: time.process_time() > began + seconds
        )
        took = time.process_time() - began
        score = validation_score(config, dataset, fitted)
    except (ConfigError, DataError, TrainingError, export_bundle.ExportError) as error:
        report(f"  failed    {describe(choices)}: {error}")
        return None
    if not np.isfinite(score):
        return None
    report(f"  {score:8.4f}  {describe(choices)} ({len(fitted.history.train)} epochs)")
    epochs = len(fitted.history.train)
    return Trial(choices, score, epochs, took / epochs)


def shortened(dataset: Dataset, steps: int) -> Dataset:
    """Returns the data set with about so many training steps: the last ones of each series, or of some of them."""
    if sum(len(item.train) for item in dataset.series) <= steps:
        return dataset
    training = [item for item in dataset.series if len(item.train)]
    untrained = [item for item in dataset.series if not len(item.train)]
    count = min(len(training), max(1, steps // 200))
    chosen = [training[index] for index in np.linspace(0, len(training) - 1, count).astype(int)]
    each = max(2, steps // count)
    starts = [max(0, item.validation_from - each) for item in chosen]
    series = [
        replace(
            item,
            values=item.values[start:],
            labels=None if item.labels is None else item.labels[start:],
            validation_from=item.validation_from - start,
            test_from=item.test_from - start,
        )
        for item, start in zip(chosen, starts, strict=True)
    ]
    return replace(dataset, series=(*series, *untrained))


def describe(choices: Sequence[Choice]) -> str:
    """Returns the settings of a candidate that differ between candidates."""
    values = {choice.key: choice.value for choice in choices}
    words = [f"{values['model.cell']} {values['model.units']}", values.get("model.scaling", "fixed")]
    if "data.transforms" in values:
        words.append("/".join(sorted(set(values["data.transforms"].values()))))
    if "data.changes" in values:
        words.append("changes")
    if "data.channels" in values:
        words.append("channels")
    words += values.get("data.calendar", [])
    keys = ("model.head", "train.averaging", "train.weight_decay", "train.seed")
    words += [f"{key.partition('.')[2]} {values[key]}" for key in keys if values.get(key)]
    return ", ".join(words) + f", rate {values['train.learning_rate']:.3g}"


def validation_score(config: Config, dataset: Dataset, fitted: run.FittedNetwork) -> float:
    """Returns the error on the validation part in units of the last value's: one step ahead, and over the horizon."""
    model = export_bundle.draft(fitted.network)
    validation = [_ending_with_validation(item) for item in dataset.series if item.test_from > item.validation_from]
    metrics = evaluation.measure(model, validation, None, config.data.horizon).metrics
    scores = []
    for target, table in metrics["targets"].items():
        parts = [_ratio(table["model"]["mae"], table["last_value"]["mae"])]
        if (horizons := metrics.get("horizons")) and horizons["steps"] > 1:
            errors = horizons["targets"][target]
            parts.append(_ratio(float(np.mean(errors["model"]["mae"])), float(np.mean(errors["last_value"]["mae"]))))
        scores.append(float(np.mean(parts)))
    return float(np.mean(scores))


def _ratio(error: float, naive: float) -> float:
    return error / naive if naive > 0 else (0.0 if error == 0 else float("inf"))


def _ending_with_validation(series: Series) -> Series:
    """Returns the series without its test part, with the validation part in its place."""
    return replace(series, values=series.values[: series.test_from], test_from=series.validation_from)
