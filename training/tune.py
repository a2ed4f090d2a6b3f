"""A search for better settings, by Optuna: many runs of one configuration, each with other values.

Owns what is searched and how a run is judged: by its best validation loss, so the test part is seen by none. Runs that
fall behind are given up. Needs the extra `tune`.
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

Told = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """The best run's settings, by key, and its validation loss; that of the configuration as it is; runs made."""

    settings: dict[str, Any]
    loss: float
    loss_before: float
    runs: int


def search(config: Config, trials: int, told: Told) -> Found:
    """Runs the configuration as it is, then with other values `trials` times.

    `told` is given a line a run. Raises ConfigError where there is nothing to search or no run ends well.
    """
    if config.tune is None:
        raise ConfigError('nothing to search: add [tune.search], with lines such as "model.units" = [32, 64]')
    ranges = config.tune.search
    dataset = run.dataset(config)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=config.train.seed),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=3),
    )
    document = config.model_dump(mode="json", exclude={"tune"})

    def trial(one: optuna.Trial) -> float:
        settings = {} if one.number == 0 else {key: _suggested(one, key, among) for key, among in ranges.items()}
        try:
            tried = configs.changed(document, settings, config.folder)
            fitted = run.fitted(tried, dataset, quiet=True, on_epoch_end=lambda history: _watch(one, history))
        except optuna.TrialPruned:
            told(f"run {one.number}: given up, behind the others; {_said(settings)}")
            raise
        except (ConfigError, TrainingError) as error:
            told(f"run {one.number}: failed; {_said(settings)}: {error}")
            raise optuna.TrialPruned from error
        loss = min(fitted.history.validation)
        told(f"run {one.number}: validation loss {loss:.6g}; {_said(settings)}")
        return loss

    study.optimize(trial, n_trials=trials + 1)
    ended = {one.number: one for one in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])}
    if 0 not in ended:
        raise ConfigError("the configuration as it is cannot be run; see the line of run 0")
    best = study.best_trial
    before = ended[0].value
    assert best.value is not None
    assert before is not None
    return Found(dict(best.params), best.value, before, len(study.trials))


def write(file: Path, settings: dict[str, Any], target: Path) -> None:
    """The configuration in `file` with these settings, its comments kept, as `target`."""
    document: Any = tomlkit.parse(file.read_text())
    for key, value in settings.items():
        section, name = key.split(".")
        document.setdefault(section, tomlkit.table())[name] = value
    target.write_text(tomlkit.dumps(document))


def _suggested(one: optuna.Trial, key: str, among: Range | tuple[Any, ...]) -> Any:
    if not isinstance(among, Range):
        return one.suggest_categorical(key, among)
    low, high = among.low, among.high
    if isinstance(low, int) and isinstance(high, int):
        return one.suggest_int(key, low, high, log=among.log)
    return one.suggest_float(key, low, high, log=among.log)


def _watch(one: optuna.Trial, history: training_loop.History) -> None:
    one.report(history.validation[-1], len(history.validation))
    if one.number and one.should_prune():
        raise optuna.TrialPruned


def _said(settings: dict[str, Any]) -> str:
    return (
        ", ".join(
            f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
            for key, value in settings.items()
        )
        or "as it is"
    )
