"""The search for better settings, and the export of a run that was stopped."""

from pathlib import Path

import pytest
import tomlkit
import torch
from click.testing import CliRunner

from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training import config, run
from onward.training.config import ConfigError
from onward.training.fit.training_loop import History
from tests.training.test_run import project

__all__ = ["project"]

SEARCH = """
[tune.search]
"model.units" = [2, 12] # few or many
"train.learning_rate" = { low = 1e-4, high = 1e-1, log = true }
"""


def add(folder: Path, text: str) -> Path:
    file = folder / "tide.toml"
    file.write_text(file.read_text() + text)
    return file


def tune(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["tune", *arguments])
    return done.exit_code, done.output


def test_a_search_writes_better_settings(project: Path) -> None:
    """The search prints the best validation loss and writes its settings, and is reproducible by its seed."""
    file = add(project, SEARCH)
    before = run.fit(config.read(file), quiet=True).history
    status, output = tune(str(file), "--trials", "4")
    assert status == 0, output
    assert f"run 0: validation loss {min(before.validation):.6g}; as it is" in output
    assert all(f"run {number}: " in output for number in range(5))
    better = config.read(file.with_suffix(".tuned.toml"))
    assert "# few or many" in file.with_suffix(".tuned.toml").read_text()
    loss = min(run.fit(better, quiet=True).history.validation)
    assert f"best validation loss {loss:.6g}, before {min(before.validation):.6g}" in output
    assert loss < min(before.validation)
    changed = config.read(file).model_dump()
    changed["model"]["units"], changed["train"]["learning_rate"] = better.model.units, better.train.learning_rate
    assert better.model_dump() == changed
    assert (
        tune(str(file), "--trials", "4", "--out", str(project / "again.toml"))[1].splitlines()[:-2]
        == (output.splitlines()[:-2])
    )
    assert tomlkit.parse((project / "again.toml").read_text()) == tomlkit.parse(
        file.with_suffix(".tuned.toml").read_text()
    )
    assert not (project / "models").exists()


def test_nothing_is_written_if_nothing_is_better(project: Path) -> None:
    file = add(project, '[tune.search]\n"train.learning_rate" = [1e-9, 2e-9]\n')
    status, output = tune(str(file), "--trials", "2")
    assert status == 0
    assert "none of 2 runs was better than" in output
    assert not file.with_suffix(".tuned.toml").exists()


@pytest.mark.parametrize(
    ("search", "says"),
    [
        ('"model.unit" = [1, 2]', "'model.unit' is no setting of the model or the training"),
        ('"data.path" = ["a", "b"]', "'data.path' is no setting"),
        ('"model.head" = ["point", "gaussian"]', "model.head must stay: validation losses could not be compared"),
        ('"model.units" = { low = 8, high = 8 }', "low must be below high"),
        ('"train.clip" = { low = 0, high = 1, log = true }', "above 0 where log is set"),
        ('"model.units" = [8]', "at least 2 items"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(search: str, says: str, project: Path) -> None:
    with pytest.raises(ConfigError, match="tune") as refused:
        config.read(add(project, f"[tune.search]\n{search}\n"))
    assert says in str(refused.value)


def test_without_a_search_there_is_nothing_to_tune(project: Path) -> None:
    status, output = tune(str(project / "tide.toml"))
    assert status == 1
    assert "nothing to search: add [tune.search]" in output


def test_a_run_that_fails_does_not_end_the_search(project: Path) -> None:
    """A learning rate that diverges ends its own run only."""
    file = add(project, '[tune.search]\n"train.learning_rate" = [1e35, 2e35]\n')
    status, output = tune(str(file), "--trials", "1")
    assert status == 0
    assert "run 1: failed; train.learning_rate = " in output


class StopError(Exception):
    pass


def test_a_stopped_run_is_exported_and_resumes(project: Path) -> None:
    """The best weights so far are exported; the checkpoint stays, and --resume ends as the uninterrupted run does."""
    settings = config.read(project / "tide.toml")
    runner, file = CliRunner(), str(project / "tide.toml")
    _, whole = run.train(settings, quiet=True)
    refused = runner.invoke(main, ["export", file])
    assert refused.exit_code == 1
    assert "no run of this configuration was stopped; train it first" in refused.output

    def stop(history: History) -> None:
        if len(history.train) == 2:
            raise StopError

    loaded = run.load_dataset(settings)
    with pytest.raises(StopError):
        run.fit_dataset(settings, loaded, quiet=True, checkpoint=run.checkpoint_of(settings, loaded), on_epoch_end=stop)
    done = runner.invoke(main, ["export", file])
    assert done.exit_code == 0, done.output
    assert f"to continue the run: onward train {file} --resume" in done.output
    early = open_bundle(project / "models/tide/2")
    assert early.manifest.provenance["epochs"] == 2
    restored = run.restore_stopped(settings)
    assert torch.equal(
        torch.tensor(restored.history.validation),
        torch.tensor(early.manifest.provenance["losses"]["validation"]),  # type: ignore[index,call-overload]
    )
    assert runner.invoke(main, ["train", file, "--resume", "--quiet"]).exit_code == 0
    assert open_bundle(project / "models/tide/3").digest == whole.digest
