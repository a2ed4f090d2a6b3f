"""The repository's code imports its modules by their full names only, `onward.model` and not `model`."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.reference_loop import ROOT

FOLDERS = ("client", "model", "service", "training")
FILES = {
    file for folder in (*FOLDERS, "onward", "tests", "bench", "examples") for file in (ROOT / folder).rglob("*.py")
}
DOTTED = re.compile(rf"(?<![\w./])(?:{'|'.join(FOLDERS)})(?:\.\w+)+")
STATEMENT = re.compile(rf"\b(?:import|from) (?:{'|'.join(FOLDERS)})\b")


def bare_names(source: str) -> Iterator[str]:
    """Names below a top-level folder of the repository that the source, or a string in it, imports or mentions."""
    tree = ast.parse(source)
    docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in FOLDERS)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module] if node.module and node.module.partition(".")[0] in FOLDERS else []
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield from STATEMENT.findall(node.value)
            yield from (name for name in DOTTED.findall(node.value) if is_module(name))


def is_module(name: str) -> bool:
    """True if the dotted name is a module of the repository or an attribute of one."""
    parts = name.split(".")
    paths = (ROOT.joinpath(*parts[:count]) for count in range(2, len(parts) + 1))
    return any(path.with_suffix(".py").is_file() for path in paths)


def test_no_file_uses_a_bare_name() -> None:
    """A bare name imports a second copy of the module at the root of the repository. Elsewhere the import fails or
    loads a package of the user.
    """
    assert len(FILES) > 300
    found = {file.relative_to(ROOT).as_posix(): [*bare_names(file.read_text())] for file in FILES - {Path(__file__)}}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    ["import model", "import service.app", "from model import ZOO", "if True:\n    from client.errors import Problem",
     "run('import service.app')", "run('from model import ZOO')", "patch('service.app.OPERATIONS', 1)"],
)  # fmt: skip
def test_bare_names_are_found(source: str) -> None:
    """Bare names are found in statements, in strings of code and in the names of patched objects."""
    assert [*bare_names(source)]


@pytest.mark.parametrize(
    "source", ["import onward.model", "from onward.service import app", "'model.onnx'", "'a model.'"]
)
def test_full_names_files_and_sentences_are_not_found(source: str) -> None:
    """Full names of modules, names of files and words at the end of a sentence are allowed."""
    assert not [*bare_names(source)]


@pytest.mark.parametrize("name", FOLDERS)
def test_tests_cannot_import_a_bare_name(name: str) -> None:
    """A bare name fails although the root of the repository is on the path of the tests."""
    assert name not in sys.modules
    with pytest.raises(ImportError, match=rf"import onward\.{name}"):
        importlib.import_module(name)
