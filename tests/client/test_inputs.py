"""Inputs as people have them: a service and a session in this process take the same ones, and refuse the same ones."""

import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import onward
from onward.client.inputs import json_step, json_steps
from onward.client.local import LocalModel
from onward.client.sync_client import Client
from onward.errors import InvalidRequest
from onward.model.manifest import Feature
from tests.client.both_clients import Twin
from tests.client.conftest import SECRET
from tests.e2e.server import Server
from tests.helpers import numpy_networks
from tests.helpers.reference_loop import ROOT

FEATURES = (
    Feature(name="load", nullable=True),
    Feature(name="temp"),
    Feature(name="who", kind="category", categories=("ann", "bob"), nullable=True),
    Feature(name="code", kind="category", categories=(7, 12)),
)
NAMES = ["load", "temp", "who", "code"]
ROWS: list[list[Any]] = [[1.5, 20.0, "ann", 7], [None, 21.5, None, 12], [3.25, -4.0, "bob", 7]]
"""Three steps in the plainest form."""
BY_NAME = [dict(zip(NAMES, row, strict=True)) for row in ROWS]


class Row(NamedTuple):
    temp: float
    load: float | None
    code: int
    who: str | None


def pandas_frame() -> pd.DataFrame:
    """The rows with the types that pandas has for missing values, the columns in another order."""
    return pd.DataFrame(
        {
            "who": pd.Categorical(["ann", None, "bob"]),
            "code": pd.array([7, 12, 7], dtype="Int64"),
            "load": pd.array([1.5, None, 3.25], dtype="Float64"),
            "temp": np.array([20.0, 21.5, -4.0], np.float32),
        },
        index=pd.date_range("2024-01-01", periods=3),
    )


def polars_frame() -> pl.DataFrame:
    frame = pl.DataFrame(BY_NAME, schema_overrides={"code": pl.UInt8, "temp": pl.Decimal(10, 2), "who": pl.Categorical})
    return frame.select("who", "temp", "code", "load")


STRUCTURED = np.array(
    [(20.0, 1.5, 7, "ann"), (-4.0, 3.25, 7, "bob")],
    [("temp", "f4"), ("load", "f8"), ("code", "i2"), ("who", "U3")],
)
MIXED: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "pandas frame": (pandas_frame, [0, 1, 2]),
    "pandas frame of objects": (lambda: pd.DataFrame(BY_NAME, dtype=object).replace({None: pd.NA}), [0, 1, 2]),
    "polars frame": (polars_frame, [0, 1, 2]),
    "polars named rows": (lambda: polars_frame().rows(named=True), [0, 1, 2]),
    "polars rows in order": (lambda: polars_frame().select(NAMES).rows(), [0, 1, 2]),
    "pandas rows": (lambda: [row for _, row in pandas_frame().iterrows()], [0, 1, 2]),
    "pandas named tuples": (lambda: pandas_frame().itertuples(index=False), [0, 1, 2]),
    "frames of one row": (lambda: [pandas_frame().iloc[[0]], polars_frame()[2]], [0, 2]),
    "named tuples": (lambda: [Row(20.0, 1.5, 7, "ann"), Row(21.5, float("nan"), 12, None)], [0, 1]),
    "structured array": (lambda: STRUCTURED, [0, 2]),
    "object array": (lambda: np.array(ROWS, object), [0, 1, 2]),
    "numpy scalars": (
        lambda: [[np.float32(1.5), np.int64(20), np.str_("ann"), np.uint64(7)], [np.nan, np.float64(21.5), None, 12]],
        [0, 1],
    ),
    "numbers of other types": (
        lambda: [[Decimal("1.50"), Fraction(20), "ann", Decimal(7)], [Decimal("NaN"), Fraction(43, 2), None, 12]],
        [0, 1],
    ),
    "no value": (lambda: [[pd.NA, Decimal("21.5"), pd.NaT, np.int8(12)]], [1]),
}
NUMBERS: dict[str, Callable[[], Any]] = {
    "floats": lambda: [1.0, 2.0, 3.0],
    "float16": lambda: np.array([1, 2, 3], np.float16),
    "long double": lambda: np.array([1, 2, 3], np.longdouble),
    "int8": lambda: np.array([[1], [2], [3]], np.int8),
    "uint64": lambda: np.array([1, 2, 3], np.uint64),
    "masked": lambda: np.ma.masked_array([1.0, 2.0, 3.0, 9.0], [False, False, False, True])[:3],
    "read backwards": lambda: np.array([[3.0], [2.0], [1.0]])[::-1],
    "pandas series": lambda: pd.Series([1, 2, 3], index=["a", "b", "c"]),
    "pandas index": lambda: pd.Index([1, 2, 3]),
    "polars series": lambda: pl.Series("x", [1, 2, 3]),
    "pandas frame": lambda: pd.DataFrame({"x": [1, 2, 3]}),
    "polars frame": lambda: pl.DataFrame({"x": [1, 2, 3]}),
    "tensor": lambda: torch.tensor([[1.0], [2.0], [3.0]]),
    "tensor with a gradient": lambda: torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
    "bfloat16": lambda: torch.tensor([1, 2, 3], dtype=torch.bfloat16),
    "whole tensor": lambda: torch.tensor([1, 2, 3]),
    "rows of a tensor": lambda: list(torch.tensor([[1.0], [2.0], [3.0]])),
    "scalars": lambda: [torch.tensor(1.0), np.array(2), np.float32(3)],
    "single values of arrays": lambda: [torch.tensor([1.0]), np.array([2]), pl.Series([3])],
    "booleans": lambda: [True, 2, Decimal(3)],
    "range": lambda: range(1, 4),
    "deque": lambda: deque([1, 2, 3]),
    "generator": lambda: (value for value in (1, 2, 3)),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of every kind of feature (`mixed`) and of one number (`number`)."""
    folder: Path = tmp_path_factory.mktemp("inputs")
    for name, features in {"mixed": FEATURES, "number": (Feature(name="x"),)}.items():
        signature = numpy_networks.signature(features, features[0].name)
        numpy_networks.export(numpy_networks.network(signature, head="gaussian", units=4), folder)
        manifest = folder / "tiny/1/manifest.json"
        manifest.write_text(manifest.read_text().replace('"tiny"', f'"{name}"'))
        (folder / "tiny").rename(folder / name)
    return folder


@pytest.fixture(scope="module")
def service(repository: Path) -> Iterator[Server]:
    with Server(repository.parent, ONWARD_MODELS=str(repository), ONWARD_SECRET=SECRET) as running:
        yield running


@pytest.fixture
def client(service: Server, twin: Twin) -> Iterator[Client]:
    with twin(service.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def local(repository: Path) -> Mapping[str, LocalModel]:
    return {name: onward.load(repository / name / "1") for name in ("mixed", "number")}


def means(predictions: Any) -> list[bytes]:
    return [prediction["mean"].tobytes() for prediction in predictions]


@pytest.mark.parametrize("form", MIXED)
def test_every_form_of_steps_means_the_same(client: Client, local: Mapping[str, LocalModel], form: str) -> None:
    """Data frames are read by column name, rows of them by their labels; each call of both sessions takes them."""
    make, taken = MIXED[form]
    rows = [ROWS[index] for index in taken]
    expected = means(local["mixed"].session().steps(rows).each)
    with client.session("mixed") as remote:
        assert means(remote.steps(make()).each) == expected
    assert means(local["mixed"].session().steps(make()).each) == expected
    inputs = list(make()) if isinstance(make(), Iterator) else make()  # an event loop waits for no iterator
    for session in (local["mixed"].session(), client.session("mixed")):
        assert means(session.stream(inputs)) == expected
    for (result,) in (local["mixed"].predict([make()]), client.predict("mixed", [make()])):
        assert means(result.predictions.each) == expected
    assert means([local["mixed"].session(inputs=make()).prediction]) == expected[-1:]
    assert means([client.session("mixed", inputs=make()).prediction]) == expected[-1:]
    assert means([client.held("mixed", make()).predictions.last]) == expected[-1:]
    assert means([client.step("mixed", uuid4().hex, make()).last]) == expected[-1:]


@pytest.mark.parametrize("form", NUMBERS)
def test_every_form_of_numbers_means_the_same(client: Client, local: Mapping[str, LocalModel], form: str) -> None:
    make = NUMBERS[form]
    expected = means(local["number"].session().steps([[1.0], [2.0], [3.0]]).each)
    with client.session("number") as remote:
        assert means(remote.steps(make()).each) == expected
    assert means(local["number"].session().steps(make()).each) == expected
    assert means(local["number"].session().stream(make())) == expected


BAD_STEPS: dict[str, tuple[Callable[[], Any], str]] = {
    "a time": (lambda: [ROWS[0], [datetime(2024, 1, 1, tzinfo=UTC), 1.0, "ann", 7]], "inputs[1][0]"),
    "a day by name": (lambda: [BY_NAME[0], BY_NAME[1] | {"temp": date(2024, 1, 1)}], "inputs[1].temp"),
    "a time of numpy": (lambda: [[np.datetime64("2024-01-01", "ns"), 1.0, "ann", 7]], "inputs[0][0]"),
    "a duration": (lambda: [[np.timedelta64(5, "ns"), 1.0, "ann", 7]], "inputs[0][0]"),
    "a time column": (lambda: pandas_frame().assign(temp=pandas_frame().index), "inputs[0].temp"),
    "an array of times": (lambda: np.array(["2024-01-01"] * 4, "M8[ns]").reshape(1, 4), "inputs[0][0]"),
    "an infinity": (lambda: [ROWS[0], [1.0, float("-inf"), "ann", 7]], "inputs[1][1]"),
    "an infinity in an array": (lambda: np.array([[1, 2, 3, 4], [1, 2, np.inf, 4]]), "inputs[1][2]"),
    "an infinity in a frame": (lambda: polars_frame().with_columns(load=pl.lit(float("inf"))), "inputs[0].load"),
    "a number beyond all": (lambda: [[10**400, 1.0, "ann", 7]], "inputs[0][0]"),
    "a number beyond single precision": (lambda: [[1.0, 2**200, "ann", 7]], "inputs[0][1]"),
    "an infinite decimal": (lambda: [[Decimal("Infinity"), 1.0, "ann", 7]], "inputs[0][0]"),
    "a complex number": (lambda: np.ones((1, 4), complex), "inputs[0][0]"),
    "bytes": (lambda: [[1.0, 2.0, b"ann", 7]], "inputs[0][2]"),
    "any object": (lambda: [[1.0, 2.0, object(), 7]], "inputs[0][2]"),
    "a list as a value": (lambda: [[1.0, [2.0], "ann", 7]], "inputs[0][1]"),
    "a missing value that must be": (lambda: [[1.0, pd.NA, "ann", 7]], "inputs[0][1]"),
    "a missing value in a frame": (lambda: polars_frame().with_columns(temp=None), "inputs[0][1]"),
    "an unknown category": (lambda: polars_frame().with_columns(who=pl.lit("eve")), "inputs[0][2]"),
    "a boolean as a category": (lambda: [[1.0, 2.0, True, 7]], "inputs[0][2]"),
    "a column too many": (lambda: pandas_frame().assign(day=1), "inputs[0].day"),
    "a column too few": (lambda: pandas_frame().drop(columns="temp"), "inputs[0].temp"),
    "a column twice": (lambda: pd.concat([pandas_frame(), pandas_frame()[["temp"]]], axis=1), "inputs"),
    "columns without names": (lambda: pd.DataFrame(np.ones((2, 4))), "inputs[0].load"),
    "the index of named tuples": (lambda: list(pandas_frame().itertuples()), "inputs[0].Index"),
    "no step": (lambda: pandas_frame().iloc[:0], "inputs"),
    "one step as several": (lambda: BY_NAME[0], "inputs"),
    "one value as several": (lambda: np.array(5.0), "inputs"),
    "a number as several": (lambda: 5, "inputs"),
    "an array of three axes": (lambda: torch.ones(1, 1, 4), "inputs"),
    "a frame that is not computed yet": (lambda: polars_frame().lazy(), "inputs"),
    "nothing": (lambda: None, "inputs"),
}
BAD_STEP: dict[str, tuple[Callable[[], Any], str]] = {
    "a frame of two rows": (lambda: pandas_frame().iloc[:2], "inputs[0]"),
    "a frame without rows": (lambda: polars_frame().clear(), "inputs[0]"),
    "an array of two axes": (lambda: np.ones((1, 4)), "inputs[0]"),
    "a row with a time": (
        lambda: pandas_frame().assign(load=datetime(2024, 1, 1, tzinfo=UTC)).iloc[0],
        "inputs[0].load",
    ),
    "labels twice": (lambda: pd.Series([1, 2], index=["temp", "temp"]), "inputs[0]"),
    "bytes": (lambda: b"abcd", "inputs[0]"),
    "a generator": (lambda: (value for value in ROWS[0]), "inputs[0]"),
}


def refusal(call: Callable[[], Any], field: str) -> tuple[Any, ...]:
    """Returns what a caller learns of a call that must be refused for this field."""
    with pytest.raises(InvalidRequest) as refused:
        call()
    assert refused.value.errors[0]["field"].startswith(field)
    assert isinstance(refused.value, ValueError)
    return refused.value.type, refused.value.status, refused.value.title, str(refused.value), refused.value.errors


@pytest.mark.parametrize("fault", BAD_STEPS)
def test_both_refuse_the_same_steps_with_the_same_words(
    client: Client, local: Mapping[str, LocalModel], fault: str
) -> None:
    """The field names the step and the feature, whatever the steps are for; no session moves."""
    make, field = BAD_STEPS[fault]
    session = local["mixed"].session(inputs=ROWS)
    with client.session("mixed", inputs=ROWS) as remote:
        assert refusal(lambda: remote.steps(make()), field) == refusal(lambda: session.steps(make()), field)
        of_all = "inputs[1]" + field.removeprefix("inputs")
        calls = (lambda: client.predict("mixed", [ROWS, make()]), lambda: local["mixed"].predict([ROWS, make()]))
        assert refusal(calls[0], of_all) == refusal(calls[1], of_all)
        if (bad := make()) is not None:
            expected = refusal(lambda: local["mixed"].session(inputs=bad), field)
            assert refusal(lambda: client.session("mixed", inputs=bad), field) == expected
            (result,) = client.step_many([(remote, bad)])
            assert isinstance(result, InvalidRequest)
        assert (remote.info().step, session.step_count) == (3, 3)


@pytest.mark.parametrize("fault", BAD_STEP)
def test_both_refuse_the_same_step_with_the_same_words(
    client: Client, local: Mapping[str, LocalModel], fault: str
) -> None:
    make, field = BAD_STEP[fault]
    session = local["mixed"].session(inputs=ROWS)
    with client.session("mixed", inputs=ROWS) as remote:
        expected = refusal(lambda: session.step(make()), field)
        assert refusal(lambda: remote.step(make()), field) == expected
        assert refusal(lambda: list(remote.stream([make()])), field) == expected
        assert refusal(lambda: list(session.stream([make()])), field) == expected


def test_covariates_are_read_as_inputs_are(client: Client, local: Mapping[str, LocalModel]) -> None:
    """The future of a forecast and of a generation, and the inputs before them."""
    future = polars_frame().select("who", "temp", "code")
    with client.session("mixed", inputs=pandas_frame()) as remote:
        session = local["mixed"].session(inputs=ROWS)
        plain = [[row["temp"], row["who"], row["code"]] for row in BY_NAME]
        expected = session.forecast(4, future=plain)["mean"].tobytes()
        for ahead in (remote, session):
            assert ahead.forecast(4, future=future)["mean"].tobytes() == expected
            assert len(list(ahead.generate(3, future=future, inputs=pandas_frame(), seed=1))) == 4
        bad = future.with_columns(temp=pl.lit(float("inf")))
        assert refusal(lambda: remote.forecast(4, future=bad), "future[0].temp") == refusal(
            lambda: session.forecast(4, future=bad), "future[0].temp"
        )
        assert refusal(lambda: remote.forecast(4, inputs=bad, future=future), "inputs[0].temp") == refusal(
            lambda: session.forecast(4, inputs=bad, future=future), "inputs[0].temp"
        )


def test_one_frame_is_not_several_sequences(client: Client, local: Mapping[str, LocalModel]) -> None:
    bad: Any
    for bad in (pandas_frame(), polars_frame(), BY_NAME[0], "text"):
        expected = refusal(lambda: local["mixed"].predict(bad), "inputs")  # noqa: B023  (called at once)
        assert refusal(lambda: client.predict("mixed", bad), "inputs") == expected  # noqa: B023


def test_an_item_that_has_no_form_is_refused_alone(client: Client) -> None:
    """The other items of the call are applied, and so are those of its session."""
    names = [uuid4().hex for _ in range(2)]
    for name in names:
        client.session("number", name, keep=True)
    items: list[Any] = [(names[0], [1.0]), (names[0], [object()]), (names[1], [2.0]), (names[0], [3.0])]
    first, refused, second, third = client.step_many(items)
    assert isinstance(refused, InvalidRequest)
    assert refused.errors[0]["field"] == "inputs[0]"
    assert [result.step for result in (first, second, third)] == [1, 1, 2]  # type: ignore[union-attr]


def test_the_json_form_is_exact() -> None:
    """Whole numbers stay whole, since they may be categories; a decimal number becomes the nearest double."""
    values: list[Any] = [Decimal("0.1"), Decimal(2**64 - 1), np.float32(0.1), 2**70, -(2**63), Decimal("1E+3")]
    assert json_step(values) == [[0.1, 2**64 - 1, float(np.float32(0.1)), float(2**70), -(2**63), 1000]]
    values = [Decimal(7), Decimal("7.0"), np.int8(7), True]
    assert [type(value) for value in json_step(values)[0]] == [
        int, float, int, float,
    ]  # fmt: skip
    assert json_steps(pd.DataFrame({"id": pd.array([2**62 + 1, None], dtype="Int64")})) == [
        {"id": 2**62 + 1}, {"id": None},
    ]  # fmt: skip


def test_no_library_of_frames_is_loaded() -> None:
    code = "import onward.client.inputs as i, sys; i.json_steps([[1.0, None]]); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"pandas", "polars", "torch"} & set(loaded.split())
