"""Every type and exception that a caller of Onward can receive can be imported from `onward`."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import onward
from onward import errors
from tests.helpers.reference_loop import ROOT

ENTRY_POINTS = [
    onward.Client, onward.AsyncClient, onward.Session, onward.AsyncSession, onward.PendingSession, onward.load,
    onward.LocalModel, onward.LocalSession,
]  # fmt: skip
BASES = {"SessionOperations"}
"""Classes of the annotations that callers do not need by name."""
TRANSLATED = {"AbsentColumnsError", "InputError", "RolloutUnsupportedError", "NonFiniteError", "StateError"}
"""Exceptions of `onward.model` that the client replaces by a Problem or a DataError, or that no caller of the client
can cause: StateError is about records of another model.
"""
BUILT_IN = {"ValueError", "TypeError", "ImportError", "AttributeError"}
FILES = [
    *(file for file in (ROOT / "client").rglob("*.py") if not {"cli", "loadtest"} & set(file.parts)),
    *(ROOT / "model").rglob("*.py"),
    ROOT / "onward/__init__.py",
]


def annotated(entry: Any) -> Iterator[Any]:
    """Yields the classes of Onward in the annotations of a function, or of a class's public methods and fields."""
    functions = [
        member.fget if isinstance(member, property) else member
        for name, member in (vars(entry).items() if inspect.isclass(entry) else [(entry.__name__, entry)])
        if not name.startswith("_") or name in {"__await__", "__aenter__", "__enter__"}
    ]
    hints = [get_type_hints(function) for function in functions if inspect.isfunction(function)]
    hints += [get_type_hints(entry)] if inspect.isclass(entry) else []
    for hint in hints:
        for annotation in hint.values():
            yield from classes(annotation)


def classes(annotation: Any) -> Iterator[Any]:
    if inspect.isclass(annotation) and annotation.__module__.startswith("onward."):
        yield annotation
    for argument in get_args(annotation):
        yield from classes(argument)


def test_every_type_of_an_annotation_can_be_imported() -> None:
    """Types in annotations of the entry points, and of the types that these return, can be imported."""
    queue, met = list[Any](ENTRY_POINTS), set[Any]()
    while queue:
        entry = queue.pop()
        if entry not in met and entry.__name__ not in BASES:
            met.add(entry)
            queue += annotated(entry)
    assert len(met) > 20
    assert {entry.__name__ for entry in met} <= set(onward.__all__)
    assert all(getattr(onward, entry.__name__) is entry for entry in met)


def raised(file: Path) -> Iterator[str]:
    """Yields the names of the exceptions that the file raises: `raise Name(...)` and `raise Name.method(...)`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and node.exc is not None:
            exception = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            exception = exception.value if isinstance(exception, ast.Attribute) else exception
            if isinstance(exception, ast.Name) and exception.id[0].isupper():
                yield exception.id


def test_every_exception_that_is_raised_can_be_imported() -> None:
    """Exceptions that the client and the models raise are public, or callers never receive them."""
    names = {name for file in FILES for name in raised(file)}
    assert {"BundleError", "InvalidRequest", "StepConflict"} <= names
    assert names <= {*onward.__all__, *TRANSLATED, *BUILT_IN, "CheckError"}  # of `onward verify`


def test_every_exception_of_the_tree_is_listed() -> None:
    """All exceptions of `onward.errors` are public and derive from OnwardError."""
    tree = {
        name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)
    }
    assert len(tree) > 40
    assert set(tree) <= set(onward.__all__)
    assert all(issubclass(value, onward.OnwardError) for value in tree.values())


def test_retryable_errors_have_a_common_base() -> None:
    """A problem is a RetryableError exactly if its status is retryable."""
    for problem in onward.Problem.by_type.values():
        assert issubclass(problem, onward.RetryableError) == (problem.code in errors.RETRYABLE_STATUSES), problem
    assert issubclass(onward.UnreachableError, onward.RetryableError)
    assert not issubclass(onward.BundleError, onward.RetryableError)
    assert isinstance(onward.Problem.from_document({"type": "new", "status": 503}), onward.RetryableError)
    assert not isinstance(onward.Problem.from_document({"type": "new", "status": 418}), onward.RetryableError)


@pytest.mark.parametrize("name", onward.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    """Every name of `onward.__all__` is an attribute, and its docstring is not generated."""
    value = getattr(onward, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert (value.__doc__ or "").strip().endswith((".", "`")), name
        assert not (value.__doc__ or "").startswith(f"{name}("), "the docstring is generated by dataclass"


def test_public_names_are_sorted_and_attributes_of_the_package() -> None:
    """`dir(onward)` has all public names, although they are loaded on first use."""
    assert onward.__all__ == sorted(onward.__all__)
    assert set(onward.__all__) <= set(dir(onward))
    with pytest.raises(AttributeError, match="nothing"):
        getattr(onward, "nothing")  # noqa: B009  (mypy knows that it does not exist)


def test_problems_and_results_need_no_httpx() -> None:
    """Problems and results load without httpx, websockets and ONNX Runtime, and `import onward` loads no numpy."""
    code = """
import sys
sys.modules["httpx"] = sys.modules["websockets"] = sys.modules["onnxruntime"] = None
import onward
assert "numpy" not in sys.modules
onward.StepConflict, onward.errors.Problem, onward.UnreachableError, onward.BundleError
assert "numpy" not in sys.modules
onward.Prediction, onward.SessionInfo
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
