"""A valid configuration file is read, and an invalid one is refused with its faults."""

import re
import tomllib
from pathlib import Path

import pytest

from onward.training import config
from onward.training.config import ConfigError, Data
from tests.helpers.reference_loop import ROOT

GOOD = """
name = "tide"
[data]
path = "tide.csv"
targets = ["level"]
features = ["level", "wind"]
[train]
epochs = 3
learning_rate = 1
[output]
repository = "../models"
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "conf" / "tide.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return file


def test_a_good_file_is_read(tmp_path: Path) -> None:
    """Paths are relative to the file, keys that are left out have defaults, and columns stay in order."""
    settings = config.read(written(tmp_path, GOOD))
    assert (settings.name, settings.train.epochs, settings.train.learning_rate, settings.train.batch) == (
        "tide",
        3,
        1.0,
        32,
    )
    assert settings.data.inputs == ("level", "wind")
    assert settings.data_file == tmp_path / "conf" / "tide.csv"
    assert settings.repository == tmp_path / "models"
    assert (settings.model.cell, settings.model.head) == ("lstm", "gaussian")
    alone = config.read(written(tmp_path, GOOD.replace('features = ["level", "wind"]', "")))
    assert alone.data.inputs == ("level",)


FAULTS = {
    "unknown key with a near one": ("epochs", "epoch", "train.epoch: unknown key, did you mean epochs?"),
    "unknown key of a section": ("[train]", "[train]\nzzz = 1", "train.zzz: unknown key"),
    "unknown section": ("[train]", "[trian]", "trian: unknown key, did you mean train?"),
    "unknown table in a section": ("[train]", "[train.batches]\nx = 1\n[train]", "train.batches: unknown key, did you"),
    "key that only code sets": ('name = "tide"', 'name = "tide"\nfolder = "x"', "folder: unknown key"),
    "text for a number": ("epochs = 3", 'epochs = "3"', "train.epochs: Input should be a valid integer"),
    "a fraction of an epoch": ("epochs = 3", "epochs = 3.0", "train.epochs: Input should be a valid integer"),
    "a boolean": ("epochs = 3", "epochs = true", "train.epochs: Input should be a valid integer"),
    "no epochs": ("epochs = 3", "epochs = 0", "train.epochs: Input should be greater than or equal to 1"),
    "a rate of nought": ("learning_rate = 1", "learning_rate = 0.0", "train.learning_rate: Input should be greater"),
    "a rate that is no number": ("learning_rate = 1", "learning_rate = nan", "train.learning_rate: Input should be"),
    "a boundless rate": ("learning_rate = 1", "learning_rate = inf", "train.learning_rate: Input should be"),
    "a burn-in of streams": (
        "epochs = 3",
        "epochs = 3\nburn_in = 2",
        'train: Value error, burn_in is for sampling = "windows"',
    ),
    "an unknown schedule": ("epochs = 3", 'schedule = "cosin"', "train.schedule: Input should be 'constant', 'cosine'"),
    "a boundless decay": ("epochs = 3", "weight_decay = inf", "train.weight_decay: Input should be a finite number"),
    "a switch that is text": ("epochs = 3", 'compile = "no"', "train.compile: Input should be a valid boolean"),
    "an unknown cell": (
        "[train]",
        '[model]\ncell = "tcn"\n[train]',
        "model.cell: Input should be 'rnn_tanh', 'rnn_relu'",
    ),
    "one column for a list": (
        'targets = ["level"]',
        'targets = "level"',
        "data.targets: Input should be a valid tuple",
    ),
    "a number for a column": ('targets = ["level"]', "targets = [1]", "data.targets.0: Input should be a valid string"),
    "no targets": ('targets = ["level"]', "targets = []", "data: .*nothing is predicted: set targets"),
    "a column twice": (
        '"level", "wind"',
        '"level", "wind", "wind"',
        "data: Value error, features names a column twice",
    ),
    "a target that is not read": (
        '["level", "wind"]',
        '["wind"]',
        "data: .*features must include every target.*add level",
    ),
    "a period of one": ("[train]", "[data.x]\n[train]", "data.x: unknown key"),
    "a name for no folder": ('name = "tide"', 'name = "My Tide"', "name: String should match pattern"),
    "a missing key": ('path = "tide.csv"', "", "data.path: Field required"),
    "not TOML": ("[train]", "[train", "not TOML: "),
    "not TOML for a key given twice": ("epochs = 3", "epochs = 3\nepochs = 4", "not TOML: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_file_names_the_key(fault: str, tmp_path: Path) -> None:
    """The message names the file and the key of the fault, and a similar key if one exists."""
    good, bad, says = FAULTS[fault]
    assert good in GOOD
    file = written(tmp_path, GOOD.replace(good, bad))
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")) as refused:
        config.read(file)
    assert str(refused.value).startswith(f"{file}: ")


def test_all_faults_are_reported_together(tmp_path: Path) -> None:
    """The message names both faults of a file with two faults."""
    file = written(tmp_path, GOOD.replace("epochs", "epoch").replace("path", "paht"))
    with pytest.raises(ConfigError, match=r"data\.path: .*data\.paht: .*train\.epoch: "):
        config.read(file)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """An absent file, a folder and text that is not UTF-8 are configuration errors, not tracebacks."""
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        config.read(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.read(tmp_path)
    file = written(tmp_path, "")
    file.write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not TOML: "):
        config.read(file)


def test_every_key_of_training_is_documented() -> None:
    """The example of docs/training.md has each key of [train] with a valid value."""
    _, text, *_ = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/training.md").read_text(), re.DOTALL)
    shown = tomllib.loads(text)["train"]
    assert set(shown) == set(config.Train.model_fields)
    config.Train.model_validate(shown)


def test_a_label_and_a_lead_of_zero_leave_features_at_their_step() -> None:
    """A label is of the step itself, and `lead = 0` is the meaning of earlier versions."""
    data = {"path": "t.csv", "features": ("y", "plan"), "known": ("plan",)}
    assert Data.model_validate(data | {"targets": ("y",)}).ahead == ("plan",)
    assert Data.model_validate(data | {"targets": ("y",), "lead": 0}).ahead == ()
    assert Data.model_validate(data | {"label": "kind"}).ahead == ()
