"""Steps of many sessions in a request, and the fast parser of step bodies against their pydantic schemas."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import orjson
import pytest
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from onward.model.repository import Opened, open_all
from onward.service.app import create_app
from onward.service.engine.batching.batch_row import BatchRow, StepRequest
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.http import request_schemas, step_requests
from onward.service.http.session_ids import TENANT
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from tests.helpers.recorded_bundles import draw, make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse

T = TENANT


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    started = Engine(open_all(ZOO), LmdbStore(tmp_path), Limits())
    started.start()
    yield started
    started.close()


@pytest.fixture
def client(engine: Engine) -> FlaskClient:
    return create_app(Settings(), engine).test_client()


def post(client: FlaskClient, body: Any) -> Any:
    response = client.post("/v1/steps", json=body)
    assert response.status_code == 200, response.text
    return response.json


def test_each_item_has_its_own_status(client: FlaskClient, engine: Engine) -> None:
    """A failed item has the status and the problem that a request of its own would have; the other items succeed."""
    for name, model in (("a", "pulse"), ("w", "weather")):
        engine.create(T, model, session_id=name)
    items: list[dict[str, Any]] = [
        {"session_id": "a", "inputs": [[500]]},
        {"session_id": "nobody", "inputs": [[500]]},
        {"session_id": "w", "inputs": [[1, 2]]},
        {"session_id": "a", "inputs": [501, 502], "step": 1, "request_id": "r"},
        {"session_id": "a", "inputs": [503], "step": 1},
        {"session_id": "w", "inputs": [[1, 2, 3, 4]]},
    ]
    results = post(client, {"items": items})["items"]
    assert [item["session_id"] for item in results] == [item["session_id"] for item in items]
    assert [item["status"] for item in results] == [200, 404, 422, 200, 409, 200]
    assert [item.get("step") for item in results] == [1, None, None, 3, None, 1]
    assert results[1]["problem"]["type"] == "urn:onward:problem:unknown-session"
    assert results[2]["problem"]["errors"][0]["field"] == "inputs[0]"
    assert results[4]["problem"]["expected_step"] == 3
    repeated = post(client, {"items": [items[3]]})["items"][0]
    assert repeated == results[3]


def test_columns_have_the_results_of_items(client: FlaskClient, engine: Engine) -> None:
    """Column by column, the response has the results of the items, whether or not all of them succeed."""
    expected = BareLoop(ZOO / "pulse/1").run(pulse(4))
    names = ["a", "b", "a", "b"]
    for name in "ab":
        engine.create(T, "pulse", session_id=name)
    inputs = [pulse(1), pulse(1), pulse(1, 1), pulse(1, 1)]
    columns = post(client, {"session_ids": names, "inputs": inputs, "request_ids": ["r", None, None, None]})
    assert (columns["statuses"], columns["steps"], columns["problems"]) == ([200] * 4, [1, 1, 2, 2], {})
    for index, step in enumerate((0, 0, 1, 1)):
        for name, rows in {**columns["predictions"], "surprise": columns["surprise"]}.items():
            assert np.array(rows[index], np.float32).tobytes() == expected[name][step : step + 1].tobytes()
    columns = post(client, {"session_ids": ["a", "nobody", "b"], "inputs": [pulse(2, 2), [[1]], pulse(1, 2)]})
    assert (columns["statuses"], columns["steps"]) == ([200, 404, 200], [4, None, 3])
    assert columns["problems"]["1"]["type"] == "urn:onward:problem:unknown-session"
    assert [rows and len(rows) for rows in columns["predictions"]["mean"]] == [2, None, 1]
    assert np.array(columns["predictions"]["mean"][0], np.float32).tobytes() == expected["mean"][2:].tobytes()
    assert columns["predictions"]["mean"][1] is columns["surprise"][1] is None


def test_an_invalid_request_is_refused_as_a_whole(client: FlaskClient, engine: Engine) -> None:
    """No session advances if the request itself is invalid: too many items, unequal columns, an invalid id."""
    engine.create(T, "pulse", session_id="a")
    item = {"session_id": "a", "inputs": [500]}
    invalid: list[tuple[Any, str]] = [
        ({"items": []}, "items"),
        ({"items": [item] * 10_001}, "items"),
        ({"items": [item, {"session_id": "a/b", "inputs": [500]}]}, "items[1].session_id"),
        ({"items": [item, {"session_id": "a", "inputs": [True]}]}, "items[1].inputs[0]"),
        ({"session_ids": ["a", "a"], "inputs": [[500]]}, "inputs"),
        ({"session_ids": ["a"], "inputs": [[500]], "steps": []}, "steps"),
        ({"session_ids": ["a"], "inputs": [[500]], "step": [0]}, "step"),
    ]
    for body, field in invalid:
        response = client.post("/v1/steps", json=body)
        assert response.status_code == 422, response.text
        assert field in [error["field"] for error in response.json["errors"]], response.text  # type: ignore[index]
    assert engine.sessions.get(T, "a").record.step == 0


def test_ten_thousand_items_keep_each_sessions_order(client: FlaskClient, engine: Engine) -> None:
    """The steps of each session are applied in order in a request of the largest size for few sessions."""
    names = [f"s{number}" for number in range(40)]
    for name in names:
        engine.create(T, "pulse", session_id=name)
    response = post(client, {"items": [{"session_id": name, "inputs": [500]} for _ in range(250) for name in names]})
    assert [item["step"] for item in response["items"]] == [step for step in range(1, 251) for _ in names]


NUMBER = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.just("1"))
INPUTS = st.one_of(
    st.lists(NUMBER, max_size=3),
    st.lists(st.lists(NUMBER, max_size=3), max_size=3),
    st.lists(st.one_of(NUMBER, st.lists(NUMBER, max_size=2), st.dictionaries(st.just("x"), NUMBER)), max_size=3),
    NUMBER,
)
BODY = st.fixed_dictionaries(
    {"inputs": INPUTS},
    optional={
        "step": st.one_of(NUMBER, st.integers(0, 5)),
        "request_id": st.one_of(st.text(max_size=3), st.none(), st.integers()),
        "x": st.none(),
    },
)


@given(BODY)
def test_the_fast_parser_agrees_with_the_schema(body: dict[str, Any]) -> None:
    """Pydantic accepts each body that the fast parser accepts, with the same result; pydantic decides on the rest."""
    data = orjson.dumps(body, option=orjson.OPT_PASSTHROUGH_SUBCLASS, default=str) if _is_encodable(body) else b"{}"
    plain = step_requests._plain(step_requests.json_or_none(data), "s")
    if plain is None:
        return
    defined = request_schemas.Step.model_validate_json(data)
    assert plain == StepRequest("s", defined.inputs, defined.step, defined.request_id or "")


def _is_encodable(body: dict[str, Any]) -> bool:
    """True if orjson can encode the body: integers must fit into 64 bits."""
    try:
        orjson.dumps(body)
    except TypeError:
        return False
    return True


@pytest.mark.parametrize(
    "data",
    [
        b'{"inputs": [[500.5], [1]]}',
        b'{"inputs": [1, 2.5], "step": 3, "request_id": "r"}',
        b'{"inputs": [["a", null], [1, "b"]]}',
    ],
)
def test_the_fast_parser_takes_ordinary_bodies(data: bytes) -> None:
    """Valid bodies are parsed by the fast parser, and invalid ones are left to pydantic."""
    assert step_requests._plain(orjson.loads(data), "s") is not None
    with pytest.raises(ValidationError):
        request_schemas.Step.model_validate_json(data.replace(b"1", b"true"))
    assert step_requests._plain(orjson.loads(data.replace(b"1", b"true")), "s") is None


@pytest.mark.parametrize(
    "more",
    [{}, {"steps": None, "request_ids": None}, {"steps": [3, None]}, {"request_ids": [None, "r"]}],
)
def test_the_fast_parser_of_columns_agrees_with_the_schema(more: dict[str, Any]) -> None:
    """Optional columns may be omitted or null."""
    content = {"session_ids": ["a", "b"], "inputs": [[1], [[2.5]]], **more}
    defined = request_schemas.Columns.model_validate(content)
    nothing = [None, None]
    steps_of, ids = defined.steps or nothing, defined.request_ids or nothing
    columns = zip(defined.session_ids, defined.inputs, steps_of, ids, strict=True)
    expected = [StepRequest(name, inputs, step, key or "") for name, inputs, step, key in columns]
    assert step_requests._plain_columns(dict(content)) == expected


@pytest.mark.parametrize(
    "invalid",
    [{"steps": [3]}, {"steps": [-1, 0]}, {"request_ids": ["r", 1]}, {"inputs": [[1]]}, {"session_ids": ["a/b", "b"]},
     {"x": None}, {"inputs": None}, {"session_ids": []}],
)  # fmt: skip
def test_the_fast_parser_leaves_invalid_columns_to_the_schema(invalid: dict[str, Any]) -> None:
    """The fast parser returns None for columns that pydantic must check."""
    content = {"session_ids": ["a", "b"], "inputs": [[1], [[2.5]]], **invalid}
    assert step_requests._plain_columns(content) is None


def test_exact_rnn_outputs_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    """A batch of ragged rows of an RNN has the bits of each row stepped alone if ONWARD_EXACT is set."""
    model = make_bundle(tmp_path / "models", cell="rnn_tanh", layers=2, units=64)
    assert not model.manifest.exact
    engine = Engine(Opened({"tiny": {1: model}}), LmdbStore(tmp_path / "store"), Limits(exact=True))
    engine.start()
    inputs = draw(16, 9)
    for row in range(16):
        engine.create(T, "tiny", session_id=f"s{row}")
    lengths = [1 + row % 9 for row in range(16)]
    results = engine.steps.step_many(
        T, [StepRequest(f"s{row}", inputs[row, :length].tolist()) for row, length in enumerate(lengths)]
    )
    for row, (length, result) in enumerate(zip(lengths, results, strict=True)):
        assert not isinstance(result, Exception)
        loop = BareLoop(tmp_path / "models/tiny/1").run(inputs[row, :length].tolist())
        for name, value in loop.items():
            assert result.outputs[name].tobytes() == value.tobytes(), name
    engine.close()


def test_rollouts_share_batches_with_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forecast shares batches with live steps without an effect on the bits of either or on its session."""
    inputs = pulse(40)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    engine.create(T, "pulse", session_id="f", inputs=inputs[:10])
    engine.create(T, "pulse", session_id="s")
    alone = engine.forecasts.roll(T, "f", ForecastRequest(30)).outputs
    sizes: list[int] = []
    executor = engine._batchers.by_model[engine.models.named("pulse")].executor
    run = executor.run

    def record_size(batch: Sequence[BatchRow]) -> None:
        sizes.append(len(batch))
        run(batch)

    monkeypatch.setattr(executor, "run", record_size)
    forecast = gevent.spawn(engine.forecasts.roll, T, "f", ForecastRequest(30))
    results = [engine.steps.step(T, "s", [row]) for row in inputs]
    assert forecast.get().outputs.tobytes() == alone.tobytes()
    assert np.concatenate([result.outputs["mean"] for result in results]).tobytes() == expected["mean"].tobytes()
    assert sizes.count(2) > 10, sizes
    assert engine.sessions.get(T, "f").record.step == 10
