"""Generations: the drawn steps, how a generation ends, resumes, and stops when its client has left."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient

from onward.model.repository import open_all
from onward.model.sampling.generation import GeneratedStep, GenerationEnd, GenerationOptions
from onward.service.app import create_app
from onward.service.engine.engine import Engine, Limits
from onward.service.engine.forecasting.forecast_start import ForecastRequest
from onward.service.http import response_schemas
from onward.service.settings import Settings
from onward.service.store.lmdb import LmdbStore
from tests.helpers.analytic_models import ar1, markov
from tests.helpers.recorded_bundles import FEATURES, make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse
from tests.helpers.sse_reader import ReceivedEvent, fields_of, read

T = "tenant"
CHANCES = [[0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1], [0.3, 0.3, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]]
PROMPT = "The "


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Markov chain and a process written by hand, a model with covariates, points, and what ships."""
    folder = tmp_path_factory.mktemp("models")
    markov(folder, CHANCES, "abc", unknown=True)
    markov(folder, [[0.2] * 5] * 5, (10, 20, 30, 40, 50), name="even")
    ring = [[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]
    markov(folder, ring, (0xE2, 0x82, 0xAC), name="bytes", text="bytes")
    ar1(folder, 1e30, 1.0)
    make_bundle(folder, name="covariate", features=FEATURES, targets=("z", "x"))
    make_bundle(folder, name="points", head="point")
    for name in ("pulse", "characters"):
        (folder / name).symlink_to(ZOO / name)
    return folder


@pytest.fixture
def engine(models: Path, tmp_path: Path) -> Iterator[Engine]:
    started = Engine(open_all(models), LmdbStore(tmp_path), Limits())
    started.start()
    yield started
    started.close()


@pytest.fixture
def client(engine: Engine) -> FlaskClient:
    """A session `s` of each model, by the model's name."""
    made = create_app(Settings(), engine).test_client()
    for model in engine.models.by_name:
        assert made.post(f"/v1/models/{model}/sessions", json={"session_id": model}).status_code == 201
    return made


def drawn(
    engine: Engine,
    session: str,
    ahead: ForecastRequest,
    options: GenerationOptions = GenerationOptions(),  # noqa: B008
    seed: int = 1,
) -> list[GeneratedStep]:
    """The steps of a draw that comes to its horizon."""
    *steps, end = engine.generations.begin(T, session, ahead, options, seed=seed).steps()
    assert isinstance(end, GenerationEnd)
    assert end.reason == "horizon"
    assert len(steps) == ahead.horizon
    return [step for step in steps if isinstance(step, GeneratedStep)]


def tokens(steps: Sequence[GeneratedStep]) -> list[int]:
    return [int(step.values[0]) for step in steps]


def generate(
    client: FlaskClient, session: str, headers: dict[str, str] | None = None, **body: Any
) -> list[ReceivedEvent]:
    answer = client.post(f"/v1/sessions/{session}/generate", json=body, headers=headers or {})
    assert (answer.status_code, answer.content_type) == (200, "text/event-stream"), answer.text
    assert (answer.headers["Cache-Control"], answer.headers["X-Accel-Buffering"]) == ("no-store", "no")
    response_schemas.GeneratedEvents.model_validate(fields_of(answer.text))
    return read(answer.text)


def test_tokens_follow_the_chain(engine: Engine) -> None:
    """Tokens are drawn from the prediction after the token before; the unknown category is never drawn."""
    engine.create(T, "markov", session_id="s")
    steps = drawn(engine, "s", ForecastRequest(3000))
    drawn_tokens = tokens(steps)
    listed = np.array(CHANCES)[:3, :3]
    listed /= listed.sum(axis=1, keepdims=True)
    for letter in range(3):
        followed = [after for before, after in itertools.pairwise(drawn_tokens) if before == letter]
        for after, chance in enumerate(listed[letter]):
            error = 4 * math.sqrt(chance * (1 - chance) / len(followed))
            assert followed.count(after) / len(followed) == pytest.approx(chance, abs=error)
    for before, step in zip([0, *drawn_tokens], steps, strict=False):  # the model's own, not renormalised
        assert step.log_probability == pytest.approx(math.log(CHANCES[before][int(step.values[0])]), rel=1e-6)


def test_a_draw_is_the_first_sample_path(engine: Engine) -> None:
    """The same seed draws the same numbers and tokens step by step and as whole paths, also with covariates."""
    engine.create(T, "pulse", session_id="p", inputs=pulse(20))
    engine.create(T, "characters", session_id="c", inputs=PROMPT)
    engine.create(T, "covariate", session_id="v")
    for session, ahead in {
        "p": ForecastRequest(12),
        "c": ForecastRequest(12, "next"),
        "v": ForecastRequest(5, [[10, 20, 30]], [[21], [22], [19], [18]]),
    }.items():
        path = engine.forecasts.sample(T, session, ahead, samples=2, seed=5).paths[0]
        steps = drawn(engine, session, ahead, seed=5)
        assert np.stack([step.values for step in steps]).tobytes() == path.tobytes()
        assert [step.ahead for step in steps] == [*range(1, ahead.horizon + 1)]
        assert tokens(drawn(engine, session, ahead, seed=6)) != tokens(steps)


def test_a_draw_at_temperature_zero_equals_a_rollout(engine: Engine) -> None:
    """Numbers are the centre and tokens the likeliest; a point head draws its prediction at any temperature."""
    engine.create(T, "pulse", session_id="p", inputs=pulse(20))
    engine.create(T, "points", session_id="o", inputs=pulse(5))
    engine.create(T, "characters", session_id="c")
    for session, inputs, temperature, name in (("p", None, 0.0, "mean"), ("o", None, 1.0, "point")):
        rolled = engine.forecasts.roll(T, session, ForecastRequest(9, inputs)).outputs[name]
        steps = drawn(engine, session, ForecastRequest(9, inputs), GenerationOptions(temperature))
        assert np.stack([step.values for step in steps]).tobytes() == rolled.tobytes()
    loop, names = BareLoop(ZOO / "characters/1"), engine.models.named("characters").manifest.categories
    predictions = loop.run([[names.index(character)] for character in PROMPT])
    greedy = [int(predictions["top"][-1, 0])]
    for _ in range(29):
        greedy.append(int(loop.step([greedy[-1]])["top"][0]))
    assert tokens(drawn(engine, "c", ForecastRequest(30, PROMPT), GenerationOptions(0.0))) == greedy
    assert tokens(drawn(engine, "c", ForecastRequest(30, PROMPT), GenerationOptions(top_k=1))) == greedy
    assert tokens(drawn(engine, "c", ForecastRequest(30, PROMPT), GenerationOptions(top_p=1e-9))) == greedy
    assert tokens(drawn(engine, "c", ForecastRequest(30, PROMPT))) != greedy


def test_temperature_scales_the_spread(engine: Engine) -> None:
    """Numbers scale around the centre, exactly: the same draw at half the temperature is half as far away."""
    engine.create(T, "pulse", session_id="p", inputs=pulse(20))
    (centre,), (whole,), (half,) = (
        drawn(engine, "p", ForecastRequest(1), GenerationOptions(temperature)) for temperature in (0.0, 1.0, 0.5)
    )
    assert half.values - centre.values == pytest.approx((whole.values - centre.values) / 2, rel=1e-3)
    assert abs(whole.values - centre.values).max() > 0


def test_drawn_and_read_categories_are_penalised(engine: Engine) -> None:
    """Equal categories, with a penalty that nothing outweighs, all come once before any comes twice."""
    engine.create(T, "even", session_id="s")
    for seed in range(5):
        assert sorted(
            tokens(drawn(engine, "s", ForecastRequest(5), GenerationOptions(repetition_penalty=50), seed))
        ) == [
            0,
            1,
            2,
            3,
            4,
        ]
        after = tokens(drawn(engine, "s", ForecastRequest(3, [20, 40]), GenerationOptions(repetition_penalty=50), seed))
        assert sorted(after) == [0, 2, 4]
    assert len(set(tokens(drawn(engine, "s", ForecastRequest(5), seed=3)))) < 5


def test_a_generation_ends_after_a_stop(client: FlaskClient) -> None:
    """The end names the stop: a category, or a text of any length at the first position where it ends."""
    whole = generate(client, "characters", horizon=60, inputs=PROMPT, seed=3)
    text = whole[-1].data["text"]
    assert whole[-1].data == {"reason": "horizon", "seed": 3, "step": 0, "text": text}
    assert text == "".join(event.data["token"] for event in whole[:-1])
    for stop in (text[7], text[20:23], text[30:41]):
        *steps, end = generate(client, "characters", horizon=60, inputs=PROMPT, seed=3, stop=["zzzz", stop])
        assert end.name == "done"
        assert end.data["reason"] == "stop"
        assert end.data["text"] == text[: text.index(stop) + len(stop)]
        assert [event.data for event in steps] == [event.data for event in whole[: len(steps)]]
    *_, end = generate(client, "even", horizon=100, stop=[30], seed=1)
    assert end.data == {"reason": "stop", "seed": 1, "step": 0}
    *steps, end = generate(client, "markov", horizon=100, stop=["c", 1], seed=1)  # a stop may be a name or an index
    assert {event.data["token"] for event in steps[:-1]} <= {"a"}
    assert steps[-1].data["token"] in "bc"


def test_bytes_are_decoded_as_text(client: FlaskClient) -> None:
    """A character of several bytes can be a stop; an incomplete character is replaced by U+FFFD."""
    whole = generate(client, "bytes", horizon=9, inputs="\u20ac", temperature=0.0)
    assert [event.data["token"] for event in whole[:-1]] == [0xE2, 0x82, 0xAC] * 3
    assert whole[-1].data["text"] == "\u20ac" * 3
    *steps, end = generate(client, "bytes", horizon=9, temperature=0.0, stop=["\u20ac\u20ac"])
    assert (len(steps), end.data["reason"]) == (8, "stop")  # the text begins within a character
    assert end.data["text"] == "\ufffd\ufffd\u20ac\u20ac"
    assert len(generate(client, "bytes", horizon=9, temperature=0.0, stop=[0xAC])) == 2 + 1


def test_events_match_their_schema(client: FlaskClient) -> None:
    """Events have numbers by target, or tokens with log-probabilities and, on request, the likeliest tokens."""
    *steps, end = generate(client, "pulse", horizon=3)
    assert [(event.name, event.data.keys(), event.data["ahead"]) for event in steps] == [
        ("message", {"ahead", "values"}, ahead) for ahead in (1, 2, 3)
    ]
    assert end.name == "done"
    assert (end.data["reason"], end.data["step"]) == ("horizon", 0)
    assert [event.data for event in generate(client, "pulse", horizon=3, seed=end.data["seed"])[:-1]] == [
        event.data for event in steps
    ]
    (first, _) = generate(client, "markov", horizon=1, inputs=["b"], logprobs=3, temperature=0.0)
    assert first.data["token"] == "c"
    assert first.data["log_probability"] == pytest.approx(math.log(0.7))
    assert first.data["top"] == ["c", "a", "b"]
    assert first.data["log_probabilities"] == pytest.approx(np.log([0.7, 0.1, 0.1]).tolist())
    (first, _) = generate(client, "markov", horizon=1, logprobs=4, top_k=1)
    assert first.data["top"] == ["a", "b", "c", None]
    assert len({event.id for event in steps}) == 3


@pytest.mark.parametrize(
    ("session", "body"),
    [
        ("characters", {"horizon": 25, "inputs": PROMPT, "stop": ["zzzz"], "repetition_penalty": 1.2, "logprobs": 2}),
        ("pulse", {"horizon": 12, "temperature": 0.7}),
    ],
)
def test_a_generation_resumes_wherever_it_was_cut(client: FlaskClient, session: str, body: dict[str, Any]) -> None:
    """Resuming from an event's id gives exactly the rest, ids included, with the seed that the service chose."""
    whole = generate(client, session, **body)
    for cut, event in enumerate(whole[:-1]):
        assert generate(client, session, {"Last-Event-ID": event.id}, **body) == whole[cut + 1 :]
    assert generate(client, session, {"Last-Event-ID": whole[-1].id}, **body) == whole[-1:]
    assert generate(client, session, {"Last-Event-ID": ""}, **body)[-1].data["seed"] != whole[-1].data["seed"]


def test_a_generation_does_not_resume_elsewhere(client: FlaskClient) -> None:
    """Resuming is refused with another body, from another state, or without a valid id; the error says which."""
    url = "/v1/sessions/pulse/generate"
    body: dict[str, Any] = {"horizon": 5}
    events = generate(client, "pulse", **body)
    again = {"Last-Event-ID": events[1].id}

    def refused(status: int, name: str, message: str, headers: dict[str, str], body: dict[str, Any]) -> None:
        answer = client.post(url, json=body, headers=headers)
        assert answer.status_code == status, answer.text
        assert answer.json is not None
        assert answer.json["type"] == f"urn:onward:problem:{name}"
        assert message in answer.json["detail"]
        assert answer.json["errors"][0]["field"] == "Last-Event-ID"

    refused(422, "invalid-request", "another body", again, {"horizon": 6})
    refused(422, "invalid-request", "another body", again, {"horizon": 5, "seed": 1})
    for wrong in ("x", "x" * 48, events[1].id[:-4], events[1].id + "AAAA", "\xe9" * 48):
        refused(422, "invalid-request", "", {"Last-Event-ID": wrong}, body)
    assert client.post(url, data=b' {"horizon":5 }', content_type="application/json", headers=again).status_code == 200
    client.post("/v1/sessions/pulse/steps", json={"inputs": [500]})
    refused(
        409, "draw-moved", "was at step 0 when this draw began, and has changed since: it is at step 1", again, body
    )
    client.delete("/v1/sessions/pulse")
    client.post("/v1/models/pulse/sessions", json={"session_id": "pulse"})
    refused(409, "draw-moved", "it is at step 0", again, body)


@pytest.mark.parametrize(
    ("session", "body", "field", "message"),
    [
        ("pulse", {"top_k": 3}, "top_k", "predicts numbers"),
        ("pulse", {"top_p": 0.5}, "top_p", "predicts numbers"),
        ("pulse", {"repetition_penalty": 1}, "repetition_penalty", "predicts numbers"),
        ("pulse", {"stop": [1]}, "stop", "predicts numbers"),
        ("pulse", {"logprobs": 1}, "logprobs", "predicts numbers"),
        ("pulse", {"future": [1, 2, 3]}, "future", "predicts all of its features"),
        ("pulse", {"temperature": -1}, "temperature", "greater than or equal to 0"),
        ("pulse", {"samples": 3}, "samples", "Extra inputs"),
        ("covariate", {}, "future", "does not predict y"),
        ("markov", {"logprobs": 5}, "logprobs", "the likeliest 4"),
        ("markov", {"stop": []}, "stop", "at least 1"),
        ("markov", {"stop": ["d"]}, "stop[0]", "never drawn"),
        ("markov", {"stop": ["a", 3]}, "stop[1]", "never drawn"),
        ("markov", {"stop": ["a", 4]}, "stop[1]", "none of the 3 categories"),
        ("markov", {"stop": [-1]}, "stop[0]", "none of the 3 categories"),
        ("markov", {"stop": ["a", True]}, "stop[1]", "valid"),
        ("markov", {"stop": [""]}, "stop[0]", "at least 1"),
        ("characters", {"stop": [None]}, "stop[0]", "valid"),
        ("markov", {"top_p": 0}, "top_p", "greater than 0"),
        ("markov", {"repetition_penalty": 0.9}, "repetition_penalty", "greater than or equal to 1"),
        ("characters", {"stop": ["a\u20ac"]}, "stop[0]", "never drawn"),
        ("characters", {"horizon": 10_001}, "horizon", "at most 10000"),
    ],
)
def test_refused_generations_name_the_field(
    client: FlaskClient, session: str, body: dict[str, Any], field: str, message: str
) -> None:
    """A refused request gets a problem document instead of events."""
    answer = client.post(f"/v1/sessions/{session}/generate", json={"horizon": 4} | body)
    assert (answer.status_code, answer.content_type) == (422, "application/problem+json"), answer.text
    assert answer.json is not None
    ((refused_field, detail),) = {error["field"]: error["message"] for error in answer.json["errors"]}.items()
    assert refused_field == field
    assert message in detail


def test_a_failure_midway_is_an_event(client: FlaskClient) -> None:
    """The failure is a problem event with an id to resume from, and the events before it stay valid."""
    events = generate(client, "ar1", horizon=9, seed=1)
    assert [event.name for event in events] == ["message"] * (len(events) - 1) + ["problem"]
    assert 1 < len(events) < 9
    assert (events[-1].data["status"], events[-1].data["type"]) == (422, "urn:onward:problem:not-finite")
    assert events[-1].id == events[-2].id
    assert generate(client, "ar1", {"Last-Event-ID": events[-1].id}, horizon=9, seed=1) == events[-1:]
