"""`onward train TABLE`: from a table to a configuration, its reasons, and a bundle."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from onward.__main__ import main
from onward.training import config


def command(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, ["train", *arguments])


def monthly(file: Path, months: int = 144) -> None:
    """Writes a series with a trend, and a season that is proportional to its level."""
    rng, t = np.random.default_rng(1), np.arange(months)
    season = np.array([0.0, 0.05, 0.12, 0.1, 0.08, 0.2, 0.3, 0.3, 0.15, 0.0, -0.1, 0.02])[t % 12]
    level = np.exp(4.8 + 0.01 * t + season + 0.015 * rng.standard_normal(months).cumsum())
    rows = [f"{1949 + i // 12}-{i % 12 + 1:02d}-01,{level[i]:.1f}\n" for i in t]
    file.write_text("month,passengers\n" + "".join(rows))


@pytest.mark.slow
def test_a_table_alone_is_trained_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The preset finds log, differences and calendar, halves the error of the seasonal naive, and explains itself."""
    monthly(tmp_path / "Air Passengers.csv")
    done = command(tmp_path, monkeypatch, "Air Passengers.csv", "--target", "passengers", "--budget", "20s")
    assert done.exit_code == 0, done.output
    text = (tmp_path / "air-passengers.toml").read_text()
    chosen = tomllib.loads(text)
    assert chosen["data"]["transforms"] == {"passengers": "log"}
    assert chosen["data"]["changes"] == ["passengers"]
    assert chosen["data"]["calendar"] == ["month_of_year"]
    assert chosen["data"]["period"] == 12
    settings = [line for line in text.splitlines() if "=" in line]
    assert all(" # " in line for line in settings), "each choice has its reason"
    manifest = json.loads((tmp_path / "models/air-passengers/1/manifest.json").read_text())
    table = manifest["metrics"]["targets"]["passengers"]
    assert table["model"]["mae"] < 0.6 * table["seasonal_naive"]["mae"]
    assert manifest["metrics"]["refit"]
    assert config.read(tmp_path / "air-passengers.toml").train.refit

    again = command(tmp_path, monkeypatch, "Air Passengers.csv")
    assert again.exit_code == 1
    assert "air-passengers.toml exists: train it with `onward train air-passengers.toml`" in again.output


@pytest.mark.slow
def test_a_named_plan_decides_the_next_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error on y = 2 x plan + noise is within 5% of the noise; without the name a hint says what to add."""
    rng = np.random.default_rng(3)
    plan, noise = rng.standard_normal(3000), 0.5 * rng.standard_normal(3000)
    rows = [f"{x:.6f},{2 * x + e:.6f}\n" for x, e in zip(plan, noise, strict=True)]
    (tmp_path / "t.csv").write_text("plan,y\n" + "".join(rows))
    done = command(tmp_path, monkeypatch, "t.csv", "--target", "y", "--known", "plan", "--budget", "30s")
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "models/t/1/manifest.json").read_text())
    assert manifest["metrics"]["targets"]["y"]["model"]["rmse"] < 1.05 * float(np.sqrt((noise[-450:] ** 2).mean()))

    options = ("--budget", "1s", "--out", "other.toml", "--set", "train.epochs=1", "--set", "model.units=4")
    done = command(tmp_path, monkeypatch, "t.csv", "--target", "y", *options)
    assert "HINT: column plan of a row explains 9" in done.output
    assert "add --known plan" in done.output
    chosen = tomllib.loads((tmp_path / "other.toml").read_text())
    assert (chosen["train"]["epochs"], chosen["model"]["units"]) == (1, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget", "soon"), "--budget: 'soon' is no time such as 90s, 5m or 1h"),
        (("--set", "units"), "--set: 'units' is no setting such as model.units=64"),
        (("--target", "z"), "no column z; it has month, passengers"),
        (("--resume",), "to resume the run of a TABLE, name the configuration that was found: t.toml"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    """An error says what is wrong, and nothing is written."""
    monthly(tmp_path / "t.csv")
    done = command(tmp_path, monkeypatch, "t.csv", *options)
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["t.csv"]


def test_options_of_a_table_are_not_for_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.toml").write_text('[data]\npath = "t.csv"\ntargets = ["y"]\n')
    done = command(tmp_path, monkeypatch, "t.toml", "--target", "y")
    assert done.exit_code == 2
    assert "--target are for a TABLE; a CONFIG says this in its sections" in done.output
