"""Calendar features are compared with Python's own calendar, and are followed into the manifest."""

import json
import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest

from onward.model import calendar
from onward.training.config import Config, ConfigError, Data, read
from onward.training.data import datasets
from onward.training.errors import DataError
from onward.training.run import train

UNITS: tuple[calendar.Cycle, ...] = ("hour", "day", "week", "year")
TIMES = [datetime(2023, 12, 30) + timedelta(hours=7.37 * step) for step in range(300)]  # noqa: DTZ001  (wall clock)


def expected(time: datetime) -> list[float]:
    """Returns the four cycles, computed with Python's datetime."""
    hours = time.hour + time.minute / 60 + time.second / 3600
    turns = [
        (time.minute + time.second / 60) / 60,
        hours / 24,
        (time.isoweekday() - 1 + time.hour / 24) / 7,
        (time.timetuple().tm_yday - 1) / 365.25,
    ]
    return [wave(2 * math.pi * turn) for turn in turns for wave in (math.sin, math.cos)]


def table(folder: Path, times: list[object], name: str = "t.csv") -> Path:
    frame = pl.DataFrame({"when": times, "x": np.sin(np.arange(len(times)))})
    (frame.write_csv if name.endswith("csv") else frame.write_parquet)(folder / name)
    return folder / name


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("lead", [0, 1])
def test_calendar_features_equal_pythons(tmp_path: Path, name: str, lead: Literal[0, 1]) -> None:
    """The features equal Python's over months that include a leap day, to the second: those of the next step's time."""
    settings = Data(path=name, targets=("x",), time="when", calendar=UNITS, lead=lead)
    dataset = datasets.load(table(tmp_path, list(TIMES), name), settings)
    assert settings.inputs == ("x", *calendar.names("when", UNITS))
    assert [feature.lead for feature in dataset.features] == [0, *[lead] * 8]
    times = [*TIMES[lead:], *[TIMES[-1] + (TIMES[1] - TIMES[0])] * lead]
    np.testing.assert_allclose(dataset.series[0].values[:, 1:], [expected(time) for time in times], atol=1e-6)


def test_each_feature_has_its_formula() -> None:
    """The formula is the one by which a client computes the feature."""
    formulas = calendar.formulas("when", ("year",))
    assert formulas == {
        "when_year_sin": "sin(2 pi (day of the year - 1) / 365.25) of when as written",
        "when_year_cos": "cos(2 pi (day of the year - 1) / 365.25) of when as written",
    }
    assert set(calendar.formulas("when", UNITS)) == set(calendar.names("when", UNITS))


@pytest.mark.parametrize(
    ("times", "units", "message"),
    [
        (list(range(50)), ("year",), "column when: a calendar needs dates or times"),
        ([time.date() for time in TIMES[::4]], ("day",), "column when: calendar day needs a time of day"),
    ],
)
def test_a_column_without_such_a_cycle_is_refused(
    tmp_path: Path, times: list[object], units: tuple[calendar.Cycle, ...], message: str
) -> None:
    """Numbers have no calendar, and dates have no hours."""
    settings = Data(path="t.csv", targets=("x",), time="when", calendar=units)
    with pytest.raises(DataError, match=message):
        datasets.load(table(tmp_path, times), settings)


def configuration(folder: Path, *, keys: str) -> Path:
    file = folder / "c.toml"
    file.write_text(
        f'name = "c"\n[data]\npath = "t.csv"\ntargets = ["x"]\n{keys}\n[model]\nunits = 4\n'
        '[train]\nepochs = 1\n[output]\nrepository = "models"\n'
    )
    return file


def test_a_calendar_without_a_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calendar needs a time column"):
        read(configuration(tmp_path, keys='calendar = ["year"]'))
    with pytest.raises(ConfigError, match="calendar names a feature twice"):
        read(configuration(tmp_path, keys='time = "when"\ncalendar = ["year", "year"]'))


def test_the_manifest_lists_calendar_features_with_formulas(tmp_path: Path) -> None:
    """A trained bundle lists the features in order with their formulas; forecasts need them as future covariates."""
    table(tmp_path, list(TIMES))
    config: Config = read(configuration(tmp_path, keys='time = "when"\ncalendar = ["day", "year"]'))
    bundle, model = train(config, quiet=True)
    manifest = json.loads((bundle / "manifest.json").read_text())
    features = {feature["name"]: (feature["role"], feature["formula"] is not None) for feature in manifest["features"]}
    assert list(features) == ["x", "when_day_sin", "when_day_cos", "when_year_sin", "when_year_cos"]
    assert list(features.values()) == [("observed", False), *[("known", True)] * 4]
    assert model.manifest.can_forecast
    assert model.manifest.future_covariates == ("when_day_sin", "when_day_cos", "when_year_sin", "when_year_cos")
