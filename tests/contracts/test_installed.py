"""An installed Onward works in a folder with packages of any name, and makes nothing but `onward` importable."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.e2e.server import Server
from tests.helpers.reference_loop import ROOT, ZOO

FOLDERS = ("client", "model", "service", "training")
SOURCES = (*FOLDERS, "onward", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "examples")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--quiet", "--no-deps", "--no-index"]
CONFIGURATION = """
name = "wave"
[data]
path = "wave.csv"
targets = ["level"]
horizon = 1
[model]
cell = "gru"
units = 4
[train]
epochs = 1
window = 20
[output]
repository = "models"
"""


@dataclass(frozen=True)
class Installation:
    """An environment with Onward installed, and the folder of the user's packages in which it is run."""

    python: Path
    folder: Path

    @property
    def command(self) -> Path:
        return self.python.with_name("onward")

    @property
    def environment(self) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}

    def run(self, *command: str | Path) -> str:
        """Returns the output of the command, run in the folder; the command must succeed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built from a copy of the sources: the build neither leaves files in the repository nor takes leftovers
    from it.
    """
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    leave = shutil.ignore_patterns("__pycache__", "bundles", ".training")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=leave)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command: list[str | Path] = [*PIP, "wheel", *OFFLINE, "--no-build-isolation", "--wheel-dir", target, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def environment_with(wheel: Path, folder: Path) -> Path:
    """Returns the interpreter of a new virtual environment with the wheel, which borrows this one's dependencies."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([*PIP, "--python", python, "install", *OFFLINE, wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # a path in a .pth file makes the packages in it importable, but no editable installation
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packages of the user that have the names of Onward's parts and fail at import."""
    folder = tmp_path_factory.mktemp("hostile")
    for name in (*FOLDERS, "tests"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f'raise RuntimeError("{name} of the user was imported")\n')
    return folder


@pytest.fixture(scope="module")
def wheel_installation(wheel: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return Installation(environment_with(wheel, tmp_path_factory.mktemp("environment")), folder)


@pytest.fixture(scope="module", params=["editable", "wheel"])
def installation(request: pytest.FixtureRequest, folder: Path) -> Installation:
    """An installation of each kind; the editable one is that of this interpreter."""
    if request.param == "editable":
        return Installation(Path(sys.executable), folder)
    installed = request.getfixturevalue("wheel_installation")
    assert isinstance(installed, Installation)
    return installed


def test_the_wheel_has_one_package(wheel: Path) -> None:
    """The wheel has the data files beside the code, and neither tests nor compiled files."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"onward"}
    files = {
        "onward/py.typed", "onward/model/zoo/pulse/1/model.onnx", "onward/service/server/gunicorn.conf.py",
        "onward/service/store/lua/commit.lua", "onward/training/report/report.css",
    }  # fmt: skip
    assert files <= set(names)
    assert not [name for name in names if "/tests/" in name or name.endswith(".pyc")]


def test_only_onward_can_be_imported(installation: Installation) -> None:
    """The flag -I removes the current folder from the path, so only installed packages can be imported."""
    code = f"import importlib.util as u; print([name for name in {('onward', *FOLDERS)} if u.find_spec(name)])"
    assert installation.run(installation.python, "-I", "-c", code) == "['onward']\n"


def test_onward_is_imported_beside_packages_of_the_user(installation: Installation) -> None:
    """The client can be imported, and a bundle runs in this process."""
    code = (
        "import onward; onward.Client, onward.AsyncClient\n"
        f"print(onward.load({str(ZOO / 'pulse/1')!r}).session().step([1.0]).step)"
    )
    assert installation.run(installation.python, "-c", code) == "1\n"


def test_onward_runs_as_a_module_and_as_a_command(installation: Installation) -> None:
    """Both ways work, although `python -m` puts the current folder first on the path."""
    for command in ([installation.python, "-m", "onward"], [installation.command]):
        assert "verified" in installation.run(*command, "verify", ZOO / "pulse/1")


def test_onward_trains_beside_packages_of_the_user(wheel_installation: Installation) -> None:
    """`onward train` publishes a bundle. One training takes 10 s, so only the wheel is tested."""
    rows = [str(number % 7) for number in range(200)]
    folder = wheel_installation.folder
    (folder / "wave.csv").write_text("level\n" + "\n".join(rows) + "\n")
    (folder / "wave.toml").write_text(CONFIGURATION)
    assert "bundle:" in wheel_installation.run(wheel_installation.command, "train", "--quiet", "wave.toml")
    assert json.loads((folder / "models/wave/1/manifest.json").read_text())["name"] == "wave"


class InstalledServer(Server):
    """The server of an installation's `onward serve`, started in its folder."""

    def __init__(self, installation: Installation, store: Path) -> None:
        super().__init__(store, PYTHONPATH="", ONWARD_WORKERS="1")
        self.command, self.cwd = [installation.command, "serve"], installation.folder


def test_onward_serves_beside_packages_of_the_user(installation: Installation, tmp_path: Path) -> None:
    """The command finds its gunicorn configuration, its workers and its models."""
    with InstalledServer(installation, tmp_path) as server:
        created = httpx.post(f"{server.url}/v1/models/pulse/sessions", json={"session_id": "s"})
        stepped = httpx.post(f"{server.url}/v1/sessions/s/steps", json={"inputs": [1.0]})
    assert (created.status_code, stepped.status_code, stepped.json()["step"]) == (201, 200, 1)
