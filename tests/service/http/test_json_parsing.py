"""Long JSON documents are parsed in pieces with the result of a whole parse, and checked before objects are built."""

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
    """The parsed document, or "malformed" if it is not JSON."""
    try:
        return json_parsing.parsed(data, LIMITS)
    except RequestError:
        return "malformed"


@settings(max_examples=150, deadline=None)
@given(content=DOCUMENTS, wide=st.booleans(), escaped=st.booleans())
def test_parsing_in_pieces_equals_parsing_the_whole(content: Any, wide: bool, escaped: bool) -> None:
    """The result does not depend on where the pieces end, even if a string contains structural characters."""
    data = json.dumps(content, indent=1 if wide else None, ensure_ascii=escaped).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_parsing, "PIECE", 7)
        patch.setattr(json_parsing, "MOST_DEPTH", 100)
        assert json_parsing.parsed(data, LIMITS) == orjson.loads(data)


@settings(max_examples=150, deadline=None)
@given(content=DOCUMENTS, at=st.integers(0, 10_000), put=st.sampled_from(list('[]{},:"\\ a0-\x00')), cut=st.booleans())
def test_malformed_json_is_refused_wherever_the_pieces_end(content: Any, at: int, put: str, cut: bool) -> None:
    """A document with a changed byte or a missing end is refused exactly if parsing the whole document refuses it."""
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
def test_a_duplicate_key_is_named(monkeypatch: pytest.MonkeyPatch, text: str, piece: int) -> None:
    """The fault has the path of the duplicate key, in a short document and in a long one that is parsed in pieces."""
    monkeypatch.setattr(json_parsing, "PIECE", piece)
    with pytest.raises(InvalidInputError) as caught:
        json_parsing.parsed(text.encode(), LIMITS)
    assert [fault.field for fault in caught.value.faults] == [REPEATS[text]]


def test_bounds_are_enforced_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A document at a bound is accepted, one beyond it is refused by field, and characters in strings do not count."""
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


# Tests over the routes

WITH_JSON_BODY = [operation for operation in OPERATIONS if operation.body is not None]


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


def send(app: Flask, operation: Operation, data: bytes, media: str = "application/json") -> Any:
    path = operation.path.replace("{model}", "pulse").replace("{session_id}", "s")
    return app.test_client().open(path, method=operation.method, data=data, content_type=media)


@pytest.mark.parametrize("operation", WITH_JSON_BODY, ids=lambda operation: operation.operation_id)
def test_every_route_refuses_a_duplicate_key(app: Flask, operation: Operation) -> None:
    response = send(app, operation, b'{"inputs": [1], "horizon": 2, "inputs": [2], "step": 0}')
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "inputs"), response.text


@pytest.mark.parametrize(
    ("body", "media", "field"),
    [
        ('{"inputs":[1],"step":0,"step":0}', "application/json", "step"),
        ('{"inputs":["1"],"inputs":[1]}', "application/json", "inputs"),
        ('{"inputs":[{"ppg":1,"ppg":2}]}', "application/json", "inputs[0].ppg"),
        ('{"ppg":1,"ppg":2}\n', "application/x-ndjson", "ppg"),
    ],
)
def test_a_step_with_a_duplicate_key_does_not_advance_its_session(
    app: Flask, body: str, media: str, field: str
) -> None:
    response = app.test_client().post("/v1/sessions/s/steps", data=body, content_type=media)
    problem = json.loads(response.text)
    assert (problem["status"], problem["errors"][0]["field"]) == (422, field)
    assert app.test_client().get("/v1/sessions/s").json["step"] == 0  # type: ignore[index]


def test_an_item_with_a_duplicate_key_is_refused(app: Flask) -> None:
    body = '{"items":[{"session_id":"s","inputs":[1]},{"session_id":"s","inputs":[1],"session_id":"s"}]}'
    response = app.test_client().post("/v1/steps", data=body, content_type="application/json")
    assert (response.status_code, response.json["errors"][0]["field"]) == (422, "items[1].session_id")  # type: ignore[index]


LARGE = 2**18


@pytest.mark.parametrize("operation", WITH_JSON_BODY, ids=lambda operation: operation.operation_id)
def test_a_large_body_does_not_block_the_event_loop(app: Flask, operation: Operation) -> None:
    """A large body of any shape lets other greenlets run and is never answered 5xx. If it is refused, the problem is
    short and the memory bounded.
    """
    for body in bodies(operation, LARGE):
        if ": in a list" in body.name or body.name.partition(":")[0] in SMALL:
            continue
        statuses: list[tuple[int, int]] = []

        def post(data: bytes = body.data, statuses: list[tuple[int, int]] = statuses) -> None:
            response = send(app, operation, data)
            statuses.append((response.status_code, len(response.data)))

        tracemalloc.start()
        sending, turns = gevent.spawn(post), 0
        while not sending.dead:
            take_loop_turn()
            turns += 1
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        sending.get()
        ((status, size),) = statuses
        assert status < 500, body.name
        if status >= 400:
            assert size < 50_000, body.name
            assert peak < MOST_MEMORY_RATIO * LARGE, (body.name, peak / LARGE)
        if body.name.endswith(": a text"):
            assert turns > LARGE / json_parsing.PIECE, body.name


SMALL = {"session_id", "version", "ttl_s", "interval", "model", "step", "horizon", "future", "seed", "samples", "paths"}
SMALL |= {"temperature", "top_k", "top_p", "repetition_penalty", "logprobs", "request_id", "steps", "request_ids"}
"""Fields of small values: the benchmark tries large bodies for them, and this test omits them to save time."""
MOST_MEMORY_RATIO = 24
"""The most memory that a refused body may take, in multiples of its size: copies of the body, and the part that is
parsed before the refusal. Parsing the whole body takes up to 100 times its size.
"""


def test_a_problem_lists_some_faults_and_counts_the_rest(app: Flask) -> None:
    data = b"{%b}" % b",".join(b'"k%d":1' % number for number in range(5000))
    response = app.test_client().post("/v1/models/pulse/sessions", data=data, content_type="application/json").json
    assert response is not None
    assert (len(response["errors"]), response["more_errors"]) == (problems.MOST_FAULTS, 5000 - problems.MOST_FAULTS)
    assert response["detail"].endswith("; and 4997 more")
    long = app.test_client().post("/v1/models/pulse/sessions", json={"k" * 5000: 1}).json
    assert long is not None
    assert len(long["errors"][0]["field"]) == problems.MOST_TEXT


def test_stop_texts_are_bounded_together(app: Flask) -> None:
    """All stop texts of a request have at most 10000 characters."""
    for stop, status in ((["a" * 10_000], 200), (["a" * 5000, "b" * 5001], 422), (["a" * 10_001], 422)):
        app.test_client().post("/v1/models/characters/sessions", json={"session_id": "c"})
        response = app.test_client().post("/v1/sessions/c/generate", json={"horizon": 1, "stop": stop})
        assert response.status_code == status, response.text
        assert status == 200 or "10000 characters" in response.text


def test_numbers_that_are_not_finite_are_refused_by_field(app: Flask) -> None:
    """A short body with such a number is an invalid request; a long one is malformed JSON."""
    for body, name in (
        (b'{"inputs":[[NaN]]}', "invalid-request"),
        (b'{"inputs":[%b1e400]}' % (b"1.0000000000," * 9000), "malformed-json"),
    ):
        response = app.test_client().post("/v1/sessions/s/steps", data=body, content_type="application/json")
        assert response.json["type"].endswith(name)  # type: ignore[index]
