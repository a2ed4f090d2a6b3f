"""Faults that would show after the training are found before it, and a full disk loses nothing that existed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from onward.__main__ import main
from onward.model.repository import open_bundle
from onward.training import config, run
from onward.training.errors import DataError, TrainingError
from onward.training.fit import output_folders
from tests.training.test_run import CONFIG, ROOT, project

__all__ = ["project"]

UNWRITABLE = Path("/proc/nope")  # not even by root


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("folder", [".", "new", "new/and/deeper"])
def test_the_check_leaves_nothing(folder: str, tmp_path: Path) -> None:
    """A folder that can be written passes, and neither it nor its parents remain if they were made for the check."""
    (tmp_path / "before").touch()
    output_folders.require_writable(tmp_path / folder)
    assert entries(tmp_path) == ["before"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A folder of the system, a file in the way, a dangling link and a full disk are refused with folder and reason."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for folder, reason in (
        (UNWRITABLE, "No such file or directory"),
        (Path("/proc"), ""),
        (tmp_path / "file", "it is not a folder"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "link", "it is not a folder"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(TrainingError) as refused:
            output_folders.require_writable(folder)
        assert str(refused.value).startswith(f"{folder}: cannot be written: {reason}")
    with pytest.raises(TrainingError, match=r"MB are free on this disk, and the run needs [\d,]+ MB"):
        output_folders.require_writable(tmp_path / "new", weights=2**50)
    assert entries(tmp_path) == ["file", "link"]


@pytest.mark.parametrize("fault", ["repository", "name", "checkpoint"])
def test_outputs_are_checked_before_the_data_is_read(fault: str, project: Path) -> None:
    """An unwritable repository, name or checkpoint ends the command at once, in one line, and leaves nothing."""
    text = CONFIG.replace('"tide.csv"', '"absent.csv"')
    if fault == "repository":
        text = text.replace('"models"', f'"{UNWRITABLE}"')
    elif fault == "name":
        (project / "models").mkdir()
        (project / "models" / "tide").touch()
    else:
        (project / ".training").touch()
    (project / "tide.toml").write_text(text)
    before = entries(project)
    for command in ("train", "export"):
        done = CliRunner().invoke(main, [command, str(project / "tide.toml")])
        assert (done.exit_code, done.stdout) == (1, "")
        assert "cannot be written: " in done.stderr.splitlines()[-1]
    assert entries(project) == before


def test_the_file_of_a_search_is_checked_first(project: Path) -> None:
    """A file for the settings that cannot be written ends `onward tune` before its first run."""
    (project / "tide.toml").write_text(CONFIG + '[tune.search]\n"model.units" = [6, 7]\n')
    done = CliRunner().invoke(main, ["tune", str(project / "tide.toml"), "--out", f"{UNWRITABLE}/x.toml"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"onward: {UNWRITABLE}: cannot be written: No such file or directory\n"


def test_the_output_folder_is_no_part_of_the_run(project: Path) -> None:
    """A stopped run is exported to another folder, under another description, and resumed there."""
    file = project / "tide.toml"
    whole = run.train(config.read(file), quiet=True)[1]
    run.fit(config.read(file), quiet=True)
    file.write_text(CONFIG.replace('"models"', '"elsewhere"').replace("two tides", "tides"))
    done = CliRunner().invoke(main, ["export", str(file)])
    assert done.exit_code == 0, done.output
    assert open_bundle(project / "elsewhere/tide/1").manifest.description == "tides"
    done = CliRunner().invoke(main, ["train", str(file), "--resume", "--quiet"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert open_bundle(project / "elsewhere/tide/2").digest == whole.digest
    assert not (project / ".training").exists()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
del sys.argv[1]
from onward.__main__ import main
main()
"""
"""The command `onward` in a process that can write no file beyond a size, as on a full disk."""


def limited(size: int, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", LIMITED, str(size), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_a_full_disk_keeps_the_last_checkpoint(project: Path) -> None:
    """A checkpoint that cannot be written ends the run with the file and the reason; what existed stays whole."""
    settings = config.read(project / "tide.toml")
    run.fit(settings, quiet=True)
    before, content = entries(project), settings.checkpoint_file.read_bytes()
    done = limited(len(content) // 2, "train", "tide.toml", cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        "onward: .training/tide/checkpoint.pt: cannot be written: File too large; the last checkpoint, if there is "
        "any, stays, and --resume continues from it"
    )
    assert "Traceback" not in done.stderr
    assert (entries(project), settings.checkpoint_file.read_bytes()) == (before, content)


def test_a_full_disk_publishes_nothing(project: Path) -> None:
    """A bundle that cannot be written ends with the way on; no file of it remains, and a later export succeeds."""
    run.fit(config.read(project / "tide.toml"), quiet=True)
    done = limited(2000, "export", "tide.toml", cwd=project)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "onward: models/tide/1: cannot be written: File too large; nothing is published; the weights are in "
        ".training/tide/checkpoint.pt, from which `onward export` publishes them, to another output.repository too\n"
    )
    assert entries(project / "models") == []
    assert CliRunner().invoke(main, ["export", str(project / "tide.toml")]).exit_code == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("period = 12", 'period = 200\npart = "part"'), "data.period: 200 steps is more than series south has before"),
        (("period = 12", "missing = ['level']"), "no value of level is held out: all are missing"),
    ],
)
def test_a_test_part_that_cannot_be_scored_is_found_first(
    change: tuple[str, str], says: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A period longer than a series and a target without held-out values are refused before the first epoch."""
    (project / "tide.toml").write_text(CONFIG.replace(*change))
    lines = (project / "tide.csv").read_text().splitlines()
    parts = {"north": "train", "south": "test", "west": "validation"}
    rows = [line.split(",") for line in lines[1:]]
    rows += [["west", *row[1:]] for row in rows if row[0] == "north"]
    rows = [[*row[:3], "" if "level" in change[1] and int(row[1]) >= 100 else row[3], parts[row[0]]] for row in rows]
    (project / "tide.csv").write_text("\n".join([lines[0] + ",part", *map(",".join, rows)]))
    monkeypatch.setattr(run, "fit_dataset", lambda *_, **__: pytest.fail("the training began"))
    with pytest.raises(DataError, match=says):
        run.fit(config.read(project / "tide.toml"))
