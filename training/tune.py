"""A search for better settings by Optuna: many runs of a configuration, each with other values.

Owns the search space and the objective, which is the best validation loss, so that no run uses the test part. Runs that
fall behind are pruned. Needs the extra `tune`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import tomlkit

from onward.training import config as configs
from onward.training import run
from onward.training.config import Config, ConfigError, Range
from onward.training.errors import TrainingError
from onward.training.fit import training_loop


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The settings by key and the validation loss of the best run; the loss before the search; the number of runs."""

    settings: dict[str, Any]
    loss: float
    loss_before: float
    runs: int


def search(config: Config, trials: int, report: Callable[[str], None]) -> SearchResult:
    """Runs the configuration as it is, then `trials` times with other values, and returns the best run.

    `report` is called with a line for each run. Raises ConfigError if there is nothing to search, or if the
    configuration as it is cannot be run.
    """
    if config.tune is None:
        raise ConfigError('nothing to search: add [tune.search], with lines such as "model.units" = [32, 64]')
    ranges = config.tune.search
    dataset = run.load_dataset(config)
    if not dataset.has_validation:
        raise ConfigError("runs are compared by their validation loss, and no step validates: set data.validation")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=config.train.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
    )
    document = config.model_dump(mode="json", exclude={"tune"})

    def objective(trial: optuna.Trial) -> float:
        settings = {} if trial.number == 0 else {key: _suggest(trial, key, values) for key, values in ranges.items()}
        try:
            config_of_trial = configs.with_settings(document, settings, config.folder)
            fitted = run.fit_dataset(
                config_of_trial, dataset, quiet=True, on_epoch_end=lambda history: _prune(trial, history)
            )
        except optuna.TrialPruned:
            report(f"run {trial.number}: pruned, behind the other runs; {_text(settings)}")
            raise
        except (ConfigError, TrainingError) as error:
            report(f"run {trial.number}: failed; {_text(settings)}: {error}")
            raise optuna.TrialPruned from error
        loss = min(fitted.history.validation)
        report(f"run {trial.number}: validation loss {loss:.6g}; {_text(settings)}")
        return loss

    study.optimize(objective, n_trials=trials + 1)
    complete = {trial.number: trial for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])}
    if 0 not in complete:
        raise ConfigError("the configuration as it is cannot be run; see the line of run 0")
    best = study.best_trial
    before = complete[0].value
    assert best.value is not None
    assert before is not None
    return SearchResult(dict(best.params), best.value, before, len(study.trials))


def write(file: Path, settings: dict[str, Any], target: Path) -> None:
    """Writes the configuration in `file` with these settings to `target`, and preserves its comments."""
    document: Any = tomlkit.parse(file.read_text())
    for key, value in settings.items():
        section, name = key.split(".")
        document.setdefault(section, tomlkit.table())[name] = value
    target.write_text(tomlkit.dumps(document))


def _suggest(trial: optuna.Trial, key: str, values: Range | tuple[Any, ...]) -> Any:
    if not isinstance(values, Range):
        return trial.suggest_categorical(key, values)
    low, high = values.low, values.high
    if isinstance(low, int) and isinstance(high, int):
        return trial.suggest_int(key, low, high, log=values.log)
    return trial.suggest_float(key, low, high, log=values.log)


def _prune(trial: optuna.Trial, history: training_loop.History) -> None:
    trial.report(history.validation[-1], len(history.validation))
    if trial.number and trial.should_prune():
        raise optuna.TrialPruned


def _text(settings: dict[str, Any]) -> str:
    pairs = [
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}" for key, value in settings.items()
    ]
    return ", ".join(pairs) or "as it is"
