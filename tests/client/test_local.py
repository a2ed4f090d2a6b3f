"""Bundles in process: the same answers as a service's, and as a bare ONNX Runtime loop's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onward
from client.errors import InvalidRequest, NoForecast, NotFinite, StepConflict
from client.local import Local
from client.values import Outputs
from model.manifest import BundleError, Feature
from tests import kinds
from tests.e2e.server import Server
from tests.reference import ZOO, BareLoop, pulse, weather

TEXT = 'The "assert" statement\n'
INPUTS: dict[str, Any] = {"characters": TEXT, "pulse": pulse(24), "weather": weather(24)}
MODELS = sorted(INPUTS)


def bits(told: Outputs) -> dict[str, Any]:
    """What can be compared exactly."""
    return {name: values.tolist() if values.dtype == object else values.tobytes() for name, values in told.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_as_a_services(name: str, server: Server) -> None:
    """Seeded, stepped, many at once, forecast, forked and predicted: bit for bit, surprise and counts as well."""
    inputs = INPUTS[name]
    here = onward.load(ZOO / name / "1")
    local = here.session(inputs=inputs[:5])
    with onward.Client(server.url) as client, client.session(name, inputs=inputs[:5]) as remote:
        for at in (5, 6):
            mine, theirs = local.step(inputs[at]), remote.step(inputs[at])
            assert (bits(mine), mine.surprise, mine.step) == (bits(theirs), theirs.surprise, theirs.step)
        some, others = local.steps(inputs[7:12]), remote.steps(inputs[7:12])
        assert bits(some) == bits(others)
        assert some.surprise is not None
        assert others.surprise is not None
        assert some.surprise.tobytes() == others.surprise.tobytes()
        assert local.prediction is not None
        assert bits(local.prediction) == bits(some.last)
        assert bits(local.forecast(6)) == bits(remote.forecast(6))
        with remote.fork() as away:
            fork = local.fork()
            assert bits(fork.step(inputs[12])) == bits(away.step(inputs[12]))
        assert (local.step_count, local.info().step, fork.step_count) == (12, 12, 13)
        assert bits(local.step(inputs[13])) == bits(remote.step(inputs[13]))
        for one, other in zip(
            here.predict([inputs, inputs[:3]], 4), client.predict(name, [inputs, inputs[:3]], 4), strict=True
        ):
            assert bits(one.predictions) == bits(other.predictions)
            for told in (one.predictions, other.predictions):
                assert (told.error, told.anomaly, told.interval) == (None, None, None)
            assert one.forecast is not None
            assert other.forecast is not None
            assert bits(one.forecast) == bits(other.forecast)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_as_a_bare_loops(name: str) -> None:
    """One step at a time and all at once."""
    inputs, bundle = INPUTS[name], ZOO / name / "1"
    rows = inputs
    if name == "characters":
        categories = json.loads((bundle / "manifest.json").read_text())["features"][0]["categories"]
        rows = [[categories.index(character)] for character in inputs]
    expected = BareLoop(bundle).run(rows)
    here = onward.load(bundle)
    stepped, at_once = here.session(), here.session().steps(inputs)
    each = [stepped.step(one) for one in inputs]
    for output in set(expected) - {"surprise", "top"}:
        assert np.stack([one[output] for one in each]).tobytes() == expected[output].tobytes()
        assert at_once[output].tobytes() == expected[output].tobytes()
    assert at_once.surprise is not None
    assert at_once.surprise.tobytes() == expected["surprise"].tobytes()
    assert [one.surprise for one in each] == expected["surprise"].tolist()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """A model of labels, with a number that may be missing and a category."""
    features = (Feature(name="x", nullable=True), Feature(name="kind", kind="category", categories=(3, 5, 8)))
    spoken = kinds.signature(features, "who", classes=("ann", "bob"))
    folder = tmp_path_factory.mktemp("models")
    kinds.export(kinds.network(spoken, head="label", scaling="causal", units=8), folder)
    return onward.load(folder / "tiny/1")


def test_inputs_are_read_by_the_services_rules(odd: Local) -> None:
    """Missing values as None or NaN, by name or in order; what does not fit is named, and the session stays."""
    session = odd.session()
    one = session.fork().steps([[1.5, 3], [None, 8]])
    two = session.fork().steps([{"kind": 3, "x": 1.5}, {"x": float("nan"), "kind": np.int64(8)}])
    assert bits(one) == bits(two)
    assert set(one["top"].ravel().tolist()) == {"ann", "bob"}
    with pytest.raises(InvalidRequest) as invalid:
        session.steps([[1.5, 3], [1.5, None]])
    assert [error["field"] for error in invalid.value.errors] == ["inputs[1][1]"]
    assert (invalid.value.status, invalid.value.type) == (422, "urn:onward:problem:invalid-request")
    with pytest.raises(StepConflict) as conflict:
        session.step([1.5, 3], at=4)
    assert conflict.value.expected_step == session.step_count == 0
    with pytest.raises(NoForecast):
        session.forecast(2)


def test_numbers_that_are_not_finite_leave_the_session() -> None:
    session = onward.load(ZOO / "pulse/1").session(inputs=pulse(2))
    before = session.forecast(3)
    with pytest.raises(NotFinite):
        session.steps([3e38, 3e38])
    assert session.step_count == 2
    assert bits(session.forecast(3)) == bits(before)


def test_inputs_before_a_forecast_are_consumed_for_it_alone() -> None:
    rows = pulse(8)
    session = onward.load(ZOO / "pulse/1").session(inputs=rows[:4])
    ahead = session.forecast(3, inputs=rows[4:])
    assert session.step_count == 4
    session.steps(rows[4:])
    assert bits(session.forecast(3)) == bits(ahead)


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        onward.load(tmp_path)
