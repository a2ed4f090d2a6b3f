"""A wide table as channels of one network, from its configuration to a bundle."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from onward.training import config
from onward.training.config import ConfigError
from onward.training.run import train

NAMES, NOISE = ("first", "second", "third", "fourth"), np.array([0.5, 2.0, 30.0, 400.0])

CONFIG = """
[data]
path = "wide.csv"
targets = ["first", "second", "third", "fourth"]
missing = ["second"]
channels = "independent"
horizon = 2
[model]
cell = "gru"
units = 6
[train]
epochs = 25
window = 50
batch = 4
learning_rate = 0.02
schedule = "cosine"
"""


def test_channels_of_a_table_are_predicted_as_well_as_they_can_be(tmp_path: Path) -> None:
    """Four autoregressions that differ in level and scale: the error of each is within 5% of its noise.

    A session reads whole rows of the table, with a value missing here and there.
    """
    rng, steps = np.random.default_rng(5), 800
    noise = rng.normal(size=(steps, 4)) * NOISE
    values = np.zeros((steps, 4))
    for step in range(1, steps):
        values[step] = 0.9 * values[step - 1] + noise[step]
    table = pl.DataFrame(values + NOISE * 20, schema=NAMES, orient="row")
    gaps = pl.Series([step % 50 != 7 for step in range(steps)])
    table.with_columns(pl.when(gaps).then(pl.col("second")).alias("second")).write_csv(tmp_path / "wide.csv")
    (tmp_path / "wide.toml").write_text(CONFIG)
    _, model = train(config.read(tmp_path / "wide.toml"), quiet=True)
    metrics: dict[str, Any] = dict(model.manifest.metrics)
    held_out = metrics["steps"]
    best = np.sqrt((noise[-held_out:] ** 2).mean(axis=0))
    for index, name in enumerate(NAMES):
        rmse = metrics["targets"][name]["model"]["rmse"]
        assert rmse < best[index] * (1.1 if name == "second" else 1.05)  # a missing value is no help to the next
    assert [feature.name for feature in model.manifest.features] == list(NAMES)
    assert {part.name: part.size for part in model.manifest.state[0].parts}["h_0"] == 4 * 6


@pytest.mark.parametrize(
    ("predicted", "head"), [('targets = ["word"]\ncategories = ["word"]', "categorical"), ('text = "bytes"', "label")]
)
def test_channels_are_of_numbers(predicted: str, head: str, tmp_path: Path) -> None:
    """Categories, labels and texts have no channels; the message says so."""
    file = tmp_path / "words.toml"
    file.write_text(f'[data]\npath = "words"\n{predicted}\nchannels = "independent"\n[model]\nhead = "{head}"\n')
    with pytest.raises(ConfigError, match='channels = "independent" is for targets that are numbers'):
        config.read(file)
