"""The examples: each configuration trains, and ends in a bundle."""

from pathlib import Path

import pytest

from onward.model.repository import open_bundle
from onward.training import config, run
from onward.training.config import Config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FILES = sorted(ROOT.glob("examples/*/*.toml"))
SMALL = {"model.units": 8, "train.epochs": 1, "data.horizon": 2}


def small(file: Path, repository: Path) -> Config:
    """Returns the configuration with few units, a single epoch, and its bundle and checkpoint in `repository`."""
    original = config.read(file)
    settings = {
        **SMALL,
        "output.repository": str(repository),
        "data.path": str(original.data_file),
        "data.package": None,
    }
    return config.with_settings(original.model_dump(mode="json"), settings, repository)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_ends_in_a_bundle(file: Path, tmp_path: Path) -> None:
    """A small run of a single epoch passes all steps: data, fit, export, proof, checks, report."""
    bundle, model = run.train(small(file, tmp_path), quiet=True)
    assert model.manifest.name == file.stem
    assert open_bundle(bundle).manifest.metrics == model.manifest.metrics
    assert (bundle / "report.html").read_text().startswith("<!doctype html>")


def test_every_example_is_explained() -> None:
    """Every example has a README with its command, and a row in the table of docs/training.md."""
    assert len(FILES) == 6
    for file in FILES:
        path = file.relative_to(ROOT).as_posix()
        assert f"onward train {path}" in (file.parent / "README.md").read_text()
        assert f"| `{file.stem}` |" in (ROOT / "docs/training.md").read_text()
