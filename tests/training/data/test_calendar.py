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
from onward.training.config import ConfigError, Data, read
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
    keys = 'time = "when"\ncalendar = ["day", "month_of_year", "trend"]'
    bundle, model = train(read(configuration(tmp_path, keys=keys)), quiet=True)
    x, *derived = json.loads((bundle / "manifest.json").read_text())["features"]
    assert (x["name"], x["role"], x["lead"], x["formula"]) == ("x", "observed", 0, None)
    assert [feature["formula"] for feature in derived] == [
        "sin(2 pi (hour + minute / 60 + second / 3600) / 24) of when + 26532 seconds as written",
        "cos(2 pi (hour + minute / 60 + second / 3600) / 24) of when + 26532 seconds as written",
        "month (1 to 12) of when + 26532 seconds as written",
        "(days since 2000-01-01T00:00:00) / 365.25 of when + 26532 seconds as written",
    ]
    assert all((feature["role"], feature["lead"]) == ("known", 1) for feature in derived)
    assert derived[2]["categories"] == list(range(1, 13))
    assert model.manifest.can_forecast
    assert model.manifest.future_covariates == ("when_day_sin", "when_day_cos", "when_month_of_year", "when_trend")
    assert model.manifest.data is not None
    assert model.manifest.data.interval == 26_532


def test_a_calendar_of_irregular_times_has_no_lead(tmp_path: Path) -> None:
    """The calendar is that of the step itself where no interval tells the time of the predicted one."""
    gaps = np.random.default_rng(1).exponential(3600, 300).cumsum()
    times = [datetime(2024, 1, 1) + timedelta(seconds=float(gap)) for gap in gaps]  # noqa: DTZ001  (wall clock)
    settings = Data(path="t.csv", targets=("x",), time="when", calendar=("hour_of_day",))
    dataset = datasets.load(table(tmp_path, list(times)), settings)
    assert (dataset.features[1].lead, dataset.features[1].formula) == (0, "hour (0 to 23) of when as written")
    assert dataset.series[0].values[:, 1].tolist() == [time.hour for time in times]
