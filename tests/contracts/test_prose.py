"""Names and text are plain technical English, as far as a program can tell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.reference_loop import ROOT

VAGUE_NAMES = {
    "here", "held", "kept", "known", "one", "other", "others", "place", "said", "there", "told", "wanted",
}  # fmt: skip
"""Names that a noun of the domain replaces, such as `response`, `stored` or `index`."""
ALLOWED_NAMES = {
    ("client/async_client.py", "held"),  # a method of the public client
    ("client/sync_client.py", "held"),
    ("client/results.py", "wanted"),  # a field of the HTTP interface
    ("model/scoring/statistics.py", "wanted"),  # a field of the HTTP interface
    ("service/http/response_schemas.py", "wanted"),
    ("training/config.py", "known"),  # a key of the TOML file: features that are known in advance
}
OPENERS = {
    "also", "and", "at", "but", "by", "down", "each", "for", "from", "how", "in", "is", "it", "its", "not", "nothing",
    "of", "on", "one", "so", "some", "that", "their", "they", "those", "to", "up", "what", "whatever", "where", "which",
    "who", "whoever", "whose", "why", "with", "without",
}  # fmt: skip
"""First words of a docstring whose first sentence has no subject that says what the thing is, returns or does."""
COLUMNS = 120

CODE = [
    "onward/__init__.py",
    "onward/__main__.py",
    "client",
    "bench",
    "model",
    "service/app.py",
    "service/engine",
    "service/errors.py",
    "service/http",
    "service/metrics",
    "service/server",
    "service/store",
    "service/websocket",
    "training",
    "tests/client",
    "tests/conftest.py",
    "tests/contracts",
    "tests/e2e",
    "tests/helpers",
    "tests/model",
    "tests/service",
    "tests/training",
]
"""Files and folders that the checks hold. Still to be added: the other packages and tests."""


def files(suffix: str, *roots: str) -> list[Path]:
    """The file itself, or the files with that suffix in the folder, for each root."""
    paths = [ROOT / root for root in roots]
    return sorted(found for path in paths for found in ([path] if path.is_file() else path.rglob(f"*{suffix}")))


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names of variables, arguments, attributes, functions and classes, with the line that binds each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno


def docstrings(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Docstrings of modules, classes, functions and of the values that they follow, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text, getattr(node, "lineno", 1)
        if isinstance(node, ast.Module | ast.ClassDef):
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
                    value = after.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield value.value.strip(), after.lineno


def faults(path: Path) -> Iterator[str]:
    tree, name_of_file = ast.parse(path.read_text()), path.relative_to(ROOT).as_posix()
    for name, line in bound_names(tree):
        if name.lstrip("_") in VAGUE_NAMES and (name_of_file, name) not in ALLOWED_NAMES:
            yield f"{name_of_file}:{line}: the name {name}"
    for text, line in docstrings(tree):
        if text.split()[0].strip(",.;:`*").lower() in OPENERS:
            yield f"{name_of_file}:{line}: the docstring begins {text.splitlines()[0]!r}"


@pytest.mark.parametrize("root", CODE)
def test_code_uses_nouns_of_the_domain_and_docstrings_with_subjects(root: str) -> None:
    """Names such as `told` and docstrings that begin with `Of` say nothing to a newcomer."""
    assert [fault for path in files(".py", root) for fault in faults(path)] == []


def test_the_check_finds_what_it_looks_for() -> None:
    """A name and an opener of the lists are found in each form."""
    code = 'told = 1\n"""Of it."""\n\n\ndef f(place):\n    """What it is."""\n    f.kept = 2\n'
    tree = ast.parse(code)
    assert {name for name, _ in bound_names(tree)} == {"told", "f", "place", "kept"}
    assert {text for text, _ in docstrings(tree)} == {"Of it.", "What it is."}


def test_lines_of_the_documents_are_short() -> None:
    """Tables, links and commands apart, a line of a document fits an editor."""
    documents = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *files(".md", "docs")]
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in documents
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS and not line.startswith("|") and "http" not in line
    ]
    assert long == []
