"""`data.refuse_beyond`: limits by the training part, in which table they refuse rows, and the manifest's features."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.training.config import Data
from onward.training.data import limits
from onward.training.data.datasets import Dataset, load
from onward.training.errors import DataError

NOISE = np.random.default_rng(0).normal(50.0, 2.0, 1000)


def dataset(folder: Path, table: dict[str, Any], **settings: Any) -> Dataset:
    lines = [",".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    (folder / "x.csv").write_text("\n".join([",".join(table), *lines]) + "\n")
    features = [name for name in table if name not in ("s", "t")]
    keys = {"path": "x.csv", "targets": ["x"], "features": features, "refuse_beyond": 8}
    return load(folder / "x.csv", Data.model_validate(keys | settings))


def with_value(value: float, *rows: int) -> NDArray[np.float64]:
    changed = NOISE.copy()
    changed[[row - 1 for row in rows]] = value
    return changed


def test_limits_are_deviations_from_the_median_of_the_training_part(tmp_path: Path) -> None:
    """Normal noise has its own deviation; neither a later part nor a spike in the training part widens the limits."""
    loaded = dataset(tmp_path, {"x": NOISE})
    assert loaded.features[0].limits == pytest.approx((50 - 16, 50 + 16), rel=0.03)
    assert loaded.summary is not None
    assert loaded.summary.facts()["limits"].startswith("x 3")
    part = loaded.series[0].train[:, 0]
    assert limits.find(part, 8) == pytest.approx(loaded.features[0].limits, rel=1e-6)
    spiked = part.copy()
    spiked[10:13] = 1e9
    assert limits.find(spiked, 8) == pytest.approx(loaded.features[0].limits, rel=0.01)
    assert dataset(tmp_path, {"x": NOISE}, refuse_beyond=None).features == (Feature(name="x"),)


@pytest.mark.parametrize("row", [5, 500, 800, 1000])
def test_rows_beyond_are_refused_in_every_part(row: int, tmp_path: Path) -> None:
    """The refusal counts the rows, names the first with their values, and says what helps."""
    with pytest.raises(DataError) as refused:
        dataset(tmp_path, {"x": with_value(1e9, row)})
    message = str(refused.value)
    assert f"x.csv: row {row}, column x: 1000000000.0 is beyond the limits of this column, 3" in message
    assert "which data.refuse_beyond sets" in message
    assert "data.missing_values" in message
    with pytest.raises(DataError, match=r"\(3 such rows; also row 700: 70\.0, row 701: 70\.0\)"):
        dataset(tmp_path, {"x": with_value(70.0, 4, 700, 701)})
    assert dataset(tmp_path, {"x": with_value(1e9, row)}, refuse_beyond=None).steps == 1000


def test_a_marker_of_missing_values_is_not_beyond(tmp_path: Path) -> None:
    loaded = dataset(tmp_path, {"x": with_value(-9999, 20, 990)}, missing=["x"], missing_values=[-9999])
    assert loaded.features[0].limits == pytest.approx((34, 66), rel=0.03)


def test_a_bundle_refuses_rows_by_its_own_limits(tmp_path: Path) -> None:
    """A table that is read for a bundle has the bundle's limits, whatever is in its training part."""
    features = dataset(tmp_path, {"x": NOISE}).features
    data = Data(path="x.csv", targets=("x",))
    (tmp_path / "x.csv").write_text("x\n" + "".join(f"{value + 15}\n" for value in NOISE))
    assert features[0].limits is not None
    beyond = np.count_nonzero(features[0].limits[1] < NOISE + 15)
    assert 0 < beyond < 1000
    with pytest.raises(DataError, match=rf"\({beyond} such rows; also "):
        load(tmp_path / "x.csv", data, (features, ()))


def test_what_has_limits(tmp_path: Path) -> None:
    """Numbers of any role have limits; categories, calendar features, differenced features and constants have none."""
    table = {
        "x": NOISE, "rain": np.where(np.arange(1000) % 10, 0.0, NOISE), "level": np.cumsum(NOISE),
        "c": np.arange(1000) % 3, "same": np.ones(1000), "t": np.arange(1000) * 3600,
    }  # fmt: skip
    keys: dict[str, Any] = {"changes": ["level"], "categories": ["c"], "time": "t", "time_format": "%s"}
    found = {
        feature.name: feature.limits
        for feature in dataset(tmp_path, table, known=["rain"], calendar=["day"], **keys).features
    }
    assert {name for name, pair in found.items() if pair is not None} == {"x", "rain"}
    assert found["rain"] is not None
    assert found["rain"][0] < 0 < 60 < found["rain"][1], "a column that is mostly zero has a deviation"


def test_the_setting_needs_a_number_that_it_limits() -> None:
    for keys in ({"categories": ["x"]}, {"changes": ["x"]}):
        with pytest.raises(ValueError, match="refuse_beyond is about numbers that are not differenced"):
            Data.model_validate({"path": "x.csv", "targets": ["x"], "refuse_beyond": 5} | keys)
    for wrong in (0, -1, float("inf"), float("nan"), "5"):
        with pytest.raises(ValueError, match="refuse_beyond"):
            Data.model_validate({"path": "x.csv", "targets": ["x"], "refuse_beyond": wrong})
