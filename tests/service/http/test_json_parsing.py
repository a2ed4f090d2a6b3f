"""Long documents are read in pieces, as a whole one would be, and refused before anything is made of them."""

import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import gevent
import orjson
import pytest
from flask import Flask
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.bodies import bodies
from onward.model.repository import open_all
from onward.service.app import OPERATIONS, create_app
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.event_loop import take_loop_turn
from onward.service.errors import InvalidInputError
from onward.service.http import json_parsing, problems
from onward.service.http.operations import Operation
from onward.service.http.problems import RequestError
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from onward.service.store.signed_tokens import SignedTokens
from tests.helpers.reference_loop import ZOO

LIMITS = Limits()
TEXTS = st.text(st.sampled_from('ab,:[]{}"\\\u00e9\u2028\U0001f600 \n0'), max_size=12)
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6),
    max_leaves=40,
)


def outcome(data: bytes) -> Any:
    """What it says; or which problem it is."""
    try:
        return json_parsing.parsed(data, LIMITS)
    except RequestError:
        return "malformed"


@settings(max_examples=150, deadline=None)
@given(content=DOCUMENTS, wide=st.booleans(), escaped=st.booleans())
def test_pieces_are_the_whole(content: Any, wide: bool, escaped: bool) -> None:
    """Wherever the cuts are, texts that look like structure among it."""
    data = json.dumps(content, indent=1 if wide else None, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_parsing, "PIECE", 7)
        patch.setattr(json_parsing, "MOST_DEPTH", 100)
        assert json_parsing.parsed(data, LIMITS) == orjson.loads(data)


@settings(max_examples=150, deadline=None)
@given(content=DOCUMENTS, at=st.integers(0, 10_000), put=st.sampled_from(list('[]{},:"\\ a0-\x00')), cut=st.booleans())
def test_what_is_no_json_is_refused_wherever_the_cuts_are(content: Any, at: int, put: str, cut: bool) -> None:
    """A byte that is another, or a document that ends too early, is refused just where a whole reading refuses it."""
    data = json.dumps([content, content, 0]).encode()
    at %= len(data)
    data = data[:at] if cut else data[:at] + put.encode() + data[at + 1 :]
    try:
        expected = orjson.loads(data)
    except orjson.JSONDecodeError:
        expected = "malformed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_parsing, "PIECE", 7)
        patch.setattr(json_parsing, "MOST_DEPTH", 100)
        try:
            assert outcome(data) == expected
        except InvalidInputError:
            assert expected == "malformed" or _repeats(data)


def _repeats(data: bytes) -> bool:
    found: list[bool] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found.append(len(dict(pairs)) < len(pairs))
        return dict(pairs)

    json.loads(data, object_pairs_hook=look)
    return any(found)


REPEATS = {
    '{"a":1,"a":1}': "a",
    '{"a":1,"\\u0061":2}': "a",
    '{"inputs":[{"x":1},{"x":1,"x":2}]}': "inputs[1].x",
    '{"a":{"b":[0,{"c":1,"d":"\\"","c":2}]}}': "a.b[1].c",
    '{"a":"\\u0022\\u0022","a":"b"}': "a",
    '{"b":"\\u0022\\u0022","a":"","a":""}': "a",
    '[{"a":[],"b":{},"a":[]}]': "[0].a",
}


@pytest.mark.parametrize("piece", [7, 65_536])
@pytest.mark.parametrize("text", REPEATS)
def test_a_key_that_stands_twice_is_named(monkeypatch: pytest.MonkeyPatch, text: str, piece: int) -> None:
    """With where its object is, in a short document and in pieces of a long one."""
    monkeypatch.setattr(json_parsing, "PIECE", piece)
    with pytest.raises(InvalidInputError) as caught:
        json_parsing.parsed(text.encode(), LIMITS)
    assert [fault.field for fault in caught.value.faults] == [REPEATS[text]]


def test_bounds_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is at a bound is taken, what is beyond it is refused and named, texts that look like it are neither."""
    monkeypatch.setattr(json_parsing, "PIECE", 7)
    monkeypatch.setattr(json_parsing, "MOST_ITEMS", 5)
    monkeypatch.setattr(json_parsing, "MOST_MEMBERS", 5)
    few = Limits(max_steps=5, max_horizon=5, max_sequences=5)
    for data in (
        b"[10,20,30,40,50]",
        b'{"a":1,"b":2,"c":3,"d":4,"e":5}',
        b'["[[[[[[[[[[[,,,,,,,,,,{{{"]',
        b"[[[[[[[[1]]]]]]]]",
    ):
        assert json_parsing.parsed(data, few) == orjson.loads(data)
    for data, field in (
        (b'{"a":[10,20,30,40,50,60]}', "a"),
        (b'[{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6}]', "[0]"),
        (b"[[[[[[[[[1]]]]]]]]]", "body"),
        (b"[" + b",".join([b"[[[]]]"] * 5) + b"]", "body"),
    ):
        with pytest.raises(InvalidInputError, match="at most") as caught:
            json_parsing.parsed(data, few)
        assert caught.value.faults[0].field == field


# Over the routes

TAKE_JSON = [operation for operation in OPERATIONS if operation.body is not None]


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flask]:
    limits = Limits(max_steps=1000, history=5)
    store = LmdbStore(tmp_path_factory.mktemp("store"))
    engine = Engine(open_all(ZOO), store, limits, seal=SignedTokens(["0123456789abcdef" * 2]))
    engine.start()
    app = create_app(Settings(), engine)
    assert app.test_client().post("/v1/models/pulse/sessions", json={"session_id": "s"}).status_code == 201
    yield app
    engine.close()


def ask(app: Flask, operation: Operation, data: bytes, media: str = "application/json") -> Any:
    path = operation.path.replace("{model}", "pulse").replace("{session_id}", "s")
    return app.test_client().open(path, method=operation.method, data=data, content_type=media)


@pytest.mark.parametrize("operation", TAKE_JSON, ids=lambda one: one.operation_id)
def test_every_route_refuses_a_key_that_stands_twice(app: Flask, operation: Operation) -> None:
    answer = ask(app, operation, b'{"inputs": [1], "horizon": 2, "inputs": [2], "step": 0}')
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "inputs"), answer.text


@pytest.mark.parametrize(
    ("body", "media", "field"),
    [
        ('{"inputs":[1],"step":0,"step":0}', "application/json", "step"),
        ('{"inputs":["1"],"inputs":[1]}', "application/json", "inputs"),
        ('{"inputs":[{"ppg":1,"ppg":2}]}', "application/json", "inputs[0].ppg"),
        ('{"ppg":1,"ppg":2}\n', "application/x-ndjson", "ppg"),
    ],
)
def test_a_step_does_not_move_its_session_by_a_key_that_stands_twice(
    app: Flask, body: str, media: str, field: str
) -> None:
    answer = app.test_client().post("/v1/sessions/s/steps", data=body, content_type=media)
    problem = json.loads(answer.text)
    assert (problem["status"], problem["errors"][0]["field"]) == (422, field)
    assert app.test_client().get("/v1/sessions/s").json["step"] == 0  # type: ignore[index]


def test_an_item_with_a_key_twice_is_refused(app: Flask) -> None:
    body = '{"items":[{"session_id":"s","inputs":[1]},{"session_id":"s","inputs":[1],"session_id":"s"}]}'
    answer = app.test_client().post("/v1/steps", data=body, content_type="application/json")
    assert (answer.status_code, answer.json["errors"][0]["field"]) == (422, "items[1].session_id")  # type: ignore[index]


LARGE = 2**18


@pytest.mark.parametrize("operation", TAKE_JSON, ids=lambda one: one.operation_id)
def test_no_large_body_holds_the_loop_up(app: Flask, operation: Operation) -> None:
    """In whatever shape: what is refused makes few objects, the problem is short, and others have their turn meanwhile,
    again and again; nothing is answered 5xx.
    """
    for body in bodies(operation, LARGE):
        if ": in a list" in body.name or body.name.partition(":")[0] in SMALL:
            continue
        statuses: list[tuple[int, int]] = []

        def answered(data: bytes = body.data, statuses: list[tuple[int, int]] = statuses) -> None:
            answer = ask(app, operation, data)
            statuses.append((answer.status_code, len(answer.data)))

        tracemalloc.start()
        asking, turns = gevent.spawn(answered), 0
        while not asking.dead:
            take_loop_turn()
            turns += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        asking.get()
        ((status, size),) = statuses
        assert status < 500, body.name
        if status >= 400:
            assert size < 50_000, body.name
            assert peak < MOST_OF_BODY * LARGE, (body.name, peak / LARGE)
        if body.name.endswith(": a text"):
            assert turns > LARGE / json_parsing.PIECE, body.name


SMALL = {"session_id", "version", "ttl_s", "interval", "model", "step", "horizon", "future", "seed", "samples", "paths"}
SMALL |= {"temperature", "top_k", "top_p", "repetition_penalty", "logprobs", "request_id", "steps", "request_ids"}
"""Fields that the bench tries, and this test leaves out for time."""
MOST_OF_BODY = 24
"""Memory that a refused body may take, in its own size: copies of it, and what is read before it is refused. To read it
whole takes up to 100 times its size.
"""


def test_a_problem_lists_some_faults_and_counts_the_rest(app: Flask) -> None:
    data = b"{%b}" % b",".join(b'"k%d":1' % number for number in range(5000))
    answer = app.test_client().post("/v1/models/pulse/sessions", data=data, content_type="application/json").json
    assert answer is not None
    assert (len(answer["errors"]), answer["more_errors"]) == (problems.MOST_FAULTS, 5000 - problems.MOST_FAULTS)
    assert answer["detail"].endswith("; and 4997 more")
    long = app.test_client().post("/v1/models/pulse/sessions", json={"k" * 5000: 1}).json
    assert long is not None
    assert len(long["errors"][0]["field"]) == problems.MOST_TEXT


def test_stops_are_bounded_together(app: Flask) -> None:
    for stop, status in ((["a" * 10_000], 200), (["a" * 5000, "b" * 5001], 422), (["a" * 10_001], 422)):
        app.test_client().post("/v1/models/characters/sessions", json={"session_id": "c"})
        answer = app.test_client().post("/v1/sessions/c/generate", json={"horizon": 1, "stop": stop})
        assert answer.status_code == status, answer.text
        assert status == 200 or "10000 characters" in answer.text


def test_numbers_that_are_not_finite_are_refused_by_field(app: Flask) -> None:
    """Where a body is short; a long one with them is no JSON."""
    for body, name in (
        (b'{"inputs":[[NaN]]}', "invalid-request"),
        (b'{"inputs":[%b1e400]}' % (b"1.0000000000," * 9000), "malformed-json"),
    ):
        answer = app.test_client().post("/v1/sessions/s/steps", data=body, content_type="application/json")
        assert answer.json["type"].endswith(name)  # type: ignore[index]
