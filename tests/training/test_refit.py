"""A second fit to all of the data, with the figures of the first; and runs without a validation or a test part."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training import config, run
from onward.training.data import datasets
from onward.training.errors import DataError
from onward.training.evaluation import evaluation
from onward.training.fit import optimisation
from tests.training.test_run import CONFIG, project

__all__ = ["project"]


def settings(project: Path, *changes: tuple[str, str]) -> config.Config:
    text = CONFIG
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    (project / "tide.toml").write_text(text)
    return config.read(project / "tide.toml")


def onward(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


REFIT = ("epochs = 3", "epochs = 4\nrefit = true")


def test_a_refit_publishes_the_second_fit_with_the_figures_of_the_first(project: Path) -> None:
    """The weights and statistics are those of all steps, and the metrics those of the network that did not see them."""
    first = run.train(settings(project), quiet=True)[1]
    once = settings(project, ("epochs = 3", "epochs = 4"))
    plain = run.train(once, quiet=True)[1]
    _, model = run.train(settings(project, REFIT), quiet=True)
    metrics: Any = dict(model.manifest.metrics)
    provenance: Any = model.manifest.provenance
    assert metrics.pop("refit") == {"epochs": provenance["best_epoch"], "steps": 300}
    assert metrics == plain.manifest.metrics
    assert model.digest not in (plain.digest, first.digest)
    assert provenance["losses"] == plain.manifest.provenance["losses"]
    assert len(provenance["refit"]["losses"]["train"]) == provenance["refit"]["epochs"] == provenance["best_epoch"]
    assert not (project / ".training").exists()


def test_a_refit_is_the_fit_to_everything_for_the_best_number_of_epochs(project: Path) -> None:
    """The weights are those of `split = "none"` with that many epochs: the same seed, and statistics of all steps."""
    refitted = run.fit(settings(project, REFIT), quiet=True)
    assert refitted.refitted is not None
    assert refitted.refitted.dataset.parts == {"train": 300, "validation": 0, "test": 0}
    epochs = refitted.history.best + 1
    everything = settings(project, ("period = 12", 'split = "none"'), ("epochs = 3", f"epochs = {epochs}"))
    plain = run.fit(everything, quiet=True)
    for name, weights in plain.network.state_dict().items():
        assert torch.equal(refitted.refitted.network.state_dict()[name], weights)
    values = np.concatenate([series.values for series in plain.dataset.series])
    torch.testing.assert_close(plain.network.input_layer.statistics.mean, torch.from_numpy(values.mean(axis=0)))


def test_a_refit_repeats_the_learning_rates_of_the_best_epochs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cosine falls over all epochs, not over those of the refit; a plateau is where the first fit had it."""
    seen: list[tuple[int, int]] = []
    real = optimisation.learning_rates

    def spy(train: config.Train, **keys: Any) -> Any:
        seen.append((keys["epoch"], len(keys["validation"])))
        return real(train, **keys)

    monkeypatch.setattr(optimisation, "learning_rates", spy)
    fitted = run.fit(settings(project, REFIT, ("window = 20", 'window = 20\nschedule = "plateau"')), quiet=True)
    assert fitted.refitted is not None
    count = len(fitted.history.train)
    assert seen[:count] == [(epoch, epoch) for epoch in range(count)]
    assert seen[count:] == [(epoch, epoch) for epoch in range(fitted.history.best + 1)]


def test_the_command_and_the_report_say_whose_figures_they_are(project: Path) -> None:
    """The table, the report and a later evaluation on the same table tell the first fit from the second."""
    settings(project, REFIT)
    done = onward("train", project / "tide.toml", "--quiet")
    assert done.exit_code == 0, done.output
    epochs = open_bundle(project / "models/tide/1").manifest.provenance["best_epoch"]
    plural = "s" if epochs != 1 else ""
    words = f"the model was then trained anew on all 300 steps for {epochs} epoch{plural}"
    assert done.stdout.splitlines()[1] == f"figures of the first fit, which did not see these steps; {words}"
    report = (project / "models/tide/1/report.html").read_text()
    assert f"those of the first fit; {words}" in report
    evaluated = onward("evaluate", project / "models/tide/1", project / "tide.csv")
    assert "WARNING: the model was trained on these steps" in evaluated.stdout
    longer = project / "longer.csv"
    longer.write_text((project / "tide.csv").read_text() + "south,150,0.1,1.0\nsouth,151,0.1,2.0\nsouth,152,0,2.5\n")
    newer = onward("evaluate", project / "models/tide/1", longer, "--test-from", "150")
    assert newer.stdout.splitlines()[0] == "tide 1: one step ahead on 3 held-out steps"
    assert "WARNING: the model was trained" not in newer.stdout


def test_a_stopped_refit_is_resumed_and_exported(project: Path) -> None:
    """A fit goes on from its own checkpoint; export publishes the refit if it is complete, or else the first fit."""
    configured = settings(project, REFIT)
    whole = run.train(configured, quiet=True)[1]
    fitted = run.fit(configured, quiet=True)
    assert fitted.refitted is not None
    complete = configured.refit_checkpoint_file.read_bytes()
    assert onward("export", project / "tide.toml").exit_code == 0
    assert open_bundle(project / "models/tide/2").digest == whole.digest
    configured.refit_checkpoint_file.unlink()
    assert onward("export", project / "tide.toml").exit_code == 0
    first = open_bundle(project / "models/tide/3").manifest
    assert "refit" not in first.metrics
    assert "refit" not in first.provenance
    configured.refit_checkpoint_file.write_bytes(complete)
    done = onward("train", project / "tide.toml", "--resume", "--quiet")
    assert (done.exit_code, done.stderr) == (0, "")
    assert open_bundle(project / "models/tide/4").digest == whole.digest
    assert not (project / ".training").exists()


def test_a_run_that_starts_anew_ignores_an_earlier_refit(project: Path) -> None:
    """The checkpoint of an earlier refit is removed with the first fit that it followed."""
    configured = settings(project, REFIT)
    run.fit(configured, quiet=True)
    plain = settings(project)
    run.fit(plain, quiet=True)
    assert not configured.refit_checkpoint_file.exists()


@pytest.mark.parametrize("held_out", ['split = "none"', "test = 0"])
def test_without_a_test_part_nothing_is_scored(held_out: str, project: Path) -> None:
    """The bundle, the table and the report have no figures; --must-beat is refused before the training."""
    settings(project, ("period = 12", f"period = 12\n{held_out}"))
    refused = onward("train", project / "tide.toml", "--must-beat", "--quiet")
    assert refused.stderr.endswith("nothing is held out, so no naive forecast can be beaten: set data.test\n")
    assert not (project / ".training").exists()
    done = onward("train", project / "tide.toml", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "tide 1: nothing is held out, so nothing is scored"
    manifest = json.loads((project / "models/tide/1/manifest.json").read_text())
    assert manifest["metrics"] == {"task": "forecast", "steps": 0, "targets": {}}
    validates = held_out == "test = 0"
    assert bool(manifest["provenance"]["losses"]["validation"]) == validates
    report = (project / "models/tide/1/report.html").read_text()
    assert "Nothing is held out" in report
    assert ("which has the lowest validation loss" in report) == validates
    evaluated = onward("evaluate", project / "models/tide/1", project / "tide.csv")
    assert evaluated.stderr.endswith(
        "nothing is held out: name the first scored time by --test-from, or use --config\n"
    )


def test_without_a_validation_part_all_epochs_are_trained(project: Path) -> None:
    """The weights are those after the last epoch, whatever `patience` is."""
    keys = "period = 12\nvalidation = 0"
    fitted = run.fit(settings(project, ("period = 12", keys), ("epochs = 3", "epochs = 5\npatience = 1")), quiet=True)
    assert (len(fitted.history.train), fitted.history.best, fitted.history.validation) == (5, 4, [])
    _, model = run.train(settings(project, ("period = 12", keys)), quiet=True)
    dataset = datasets.load(project / "tide.csv", settings(project, ("period = 12", keys)).data)
    assert model.manifest.metrics == evaluation.measure(model, dataset.series, 12, 12).metrics


@pytest.mark.parametrize(("key", "needs"), [("refit = true", "train.refit"), ('schedule = "plateau"', "schedule")])
def test_what_needs_a_validation_is_refused_without_one(key: str, needs: str, project: Path) -> None:
    """The error comes before the training, and names the setting."""
    for part in ('split = "none"', "validation = 0"):
        configured = settings(project, ("period = 12", part), ("window = 20", f"window = 20\n{key}"))
        with pytest.raises(DataError, match=f"no step validates, which .*{needs}.* needs: set data.validation"):
            run.fit(configured)
    (project / "tide.toml").write_text(CONFIG.replace("period = 12", part) + '[tune.search]\n"model.units" = [6, 7]\n')
    assert "no step validates" in onward("tune", project / "tide.toml").stderr
