"""Bundles in process: the same answers as a service's, and as a bare ONNX Runtime loop's."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, astuple
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onward
from onward.client import results
from onward.client.local import LocalModel
from onward.client.results import Outputs
from onward.errors import InvalidRequest, NoForecast, NotFinite, StepConflict
from onward.model.errors import BundleError
from onward.model.manifest import Feature
from onward.service.http.step_encoding import encode_step
from tests.e2e.server import Server
from tests.helpers import numpy_networks
from tests.helpers.expected_scores import start_engine
from tests.helpers.recorded_bundles import category, draw, make_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, pulse, weather
from tests.model.manifest_edits import Document, put

TEXT = 'The "assert" statement\n'
INPUTS: dict[str, Any] = {"characters": TEXT, "pulse": pulse(24), "weather": weather(24)}
MODELS = sorted(INPUTS)


def bits(answer: Outputs) -> dict[str, Any]:
    """Returns the outputs in a form that is compared bit for bit."""
    return {name: values.tolist() if values.dtype == object else values.tobytes() for name, values in answer.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_as_a_services(name: str, server: Server) -> None:
    """Seeded, stepped, many at once, forecast, forked and predicted: bit for bit, surprise and counts as well."""
    inputs = INPUTS[name]
    local_model = onward.load(ZOO / name / "1")
    local = local_model.session(inputs=inputs[:5])
    with onward.Client(server.url) as client, client.session(name, inputs=inputs[:5]) as remote:
        for at in (5, 6):
            mine, theirs = local.step(inputs[at]), remote.step(inputs[at])
            assert (bits(mine), mine.surprise, mine.step) == (bits(theirs), theirs.surprise, theirs.step)
        some, remote_steps = local.steps(inputs[7:12]), remote.steps(inputs[7:12])
        assert bits(some) == bits(remote_steps)
        assert some.surprise is not None
        assert remote_steps.surprise is not None
        assert some.surprise.tobytes() == remote_steps.surprise.tobytes()
        assert local.prediction is not None
        assert bits(local.prediction) == bits(some.last)
        assert bits(local.forecast(6)) == bits(remote.forecast(6))
        with remote.fork() as away:
            fork = local.fork()
            assert bits(fork.step(inputs[12])) == bits(away.step(inputs[12]))
        assert (local.step_count, local.info().step, fork.step_count) == (12, 12, 13)
        assert bits(local.step(inputs[13])) == bits(remote.step(inputs[13]))
        for left, right in zip(
            local_model.predict([inputs, inputs[:3]], 4), client.predict(name, [inputs, inputs[:3]], 4), strict=True
        ):
            assert bits(left.predictions) == bits(right.predictions)
            for answer in (left.predictions, right.predictions):
                assert (answer.error, answer.anomaly, answer.interval) == (None, None, None)
            assert left.forecast is not None
            assert right.forecast is not None
            assert bits(left.forecast) == bits(right.forecast)


@pytest.mark.parametrize("name", MODELS)
def test_the_same_answers_as_a_bare_loops(name: str) -> None:
    """The outputs are the same step by step and all at once."""
    inputs, bundle = INPUTS[name], ZOO / name / "1"
    rows = inputs
    if name == "characters":
        categories = json.loads((bundle / "manifest.json").read_text())["features"][0]["categories"]
        rows = [[categories.index(character)] for character in inputs]
    expected = BareLoop(bundle).run(rows)
    local_model = onward.load(bundle)
    stepped, at_once = local_model.session(), local_model.session().steps(inputs)
    each = [stepped.step(left) for left in inputs]
    for output in set(expected) - {"surprise", "top"}:
        assert np.stack([left[output] for left in each]).tobytes() == expected[output].tobytes()
        assert at_once[output].tobytes() == expected[output].tobytes()
    assert at_once.surprise is not None
    assert at_once.surprise.tobytes() == expected["surprise"].tobytes()
    assert [left.surprise for left in each] == expected["surprise"].tolist()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> LocalModel:
    """A model of labels, with a number that may be missing and a category."""
    features = (Feature(name="x", nullable=True), Feature(name="kind", kind="category", categories=(3, 5, 8)))
    spoken = numpy_networks.signature(features, "who", classes=("ann", "bob"))
    folder = tmp_path_factory.mktemp("models")
    numpy_networks.export(numpy_networks.network(spoken, head="label", scaling="causal", units=8), folder)
    return onward.load(folder / "tiny/1")


def test_inputs_are_read_by_the_services_rules(odd: LocalModel) -> None:
    """Missing values as None or NaN, by name or in order; what does not fit is named, and the session stays."""
    session = odd.session()
    left = session.fork().steps([[1.5, 3], [None, 8]])
    two = session.fork().steps([{"kind": 3, "x": 1.5}, {"x": float("nan"), "kind": np.int64(8)}])
    assert bits(left) == bits(two)
    assert set(left["top"].ravel().tolist()) == {"ann", "bob"}
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


def test_what_is_refused_leaves_what_was_counted(odd: LocalModel) -> None:
    """A refused call changes no statistic of the session; the error names the field, as a service's does."""
    session = onward.load(ZOO / "pulse/1").session(inputs=pulse(30), interval=0.9)
    info, prediction = session.info(), session.prediction
    with pytest.raises(NotFinite) as refused:
        session.steps([510, 3e38, 3e38])
    assert [error["field"] for error in refused.value.errors] == ["inputs"]
    with pytest.raises(InvalidRequest):
        session.steps([510, "five"])
    assert (session.info(), session.prediction) == (info, prediction)
    assert odd.session().info().accuracy is None


def test_a_fork_has_times_of_its_own() -> None:
    session = onward.load(ZOO / "pulse/1").session(inputs=pulse(2))
    fork = session.fork()
    assert fork.info().created_at > session.info().last_step_at
    assert fork.info().created_at == fork.info().last_step_at


@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles", "categorical", "label"])
def test_every_head_is_told_as_the_engine_tells_it(tmp_path: Path, head: str) -> None:
    """Answers number by number, seeded and not, and what is kept of them."""
    inputs: list[Any] = draw(1, 40, 3)[0].tolist()
    if head in {"categorical", "label"}:
        letters = [category("c", 4, unknown=True)]
        if head == "label":
            network = numpy_networks.network(
                numpy_networks.signature(letters, "k", classes=("p", "q")), head=head, units=6
            )
        else:
            network = numpy_networks.network(
                numpy_networks.signature(letters, "c"), head=head, units=6, counts=[1, 2, 3, 4, 5]
            )
        model, inputs = numpy_networks.export(network), [[f"c{index % 6}"] for index in range(40)]
    else:
        model = make_bundle(tmp_path / "models", head=head, features=("x", "y", "z"), targets=("z", "x"))
    engine = start_engine(tmp_path / "store", model)
    for seed in (None, inputs[:5]):
        session, _ = engine.create("t", "tiny", inputs=seed)
        local_model = LocalModel(model).session(inputs=seed)
        for start, stop in ((5, 6), (6, 30), (30, 40)):
            answer = results.predictions(
                json.loads(encode_step(engine.steps.step("t", session.session_id, inputs[start:stop])))
            )
            mine = local_model.steps(inputs[start:stop])
            assert bits(mine) == bits(answer)
            for name in ("surprise", "error", "anomaly"):
                np.testing.assert_array_equal(getattr(mine, name), getattr(answer, name), strict=True)
        record = engine.sessions.get("t", session.session_id).record
        targets, _ = engine.accuracy(record)
        info = local_model.info()
        assert (info.accuracy is None) == (targets is None)
        assert [asdict(accuracy) for accuracy in (info.accuracy or {}).values()] == [
            target.fields() for target in (targets or {}).values()
        ]
        assert (info.surprise is None) == (record.surprise[0] == 0)
        assert info.surprise is None or astuple(info.surprise) == record.surprise
    engine.close()


@pytest.mark.parametrize("accuracy", [True, False])
@pytest.mark.parametrize("head", ["point", "gaussian", "student_t", "quantiles", "label"])
def test_a_single_step_is_the_last_of_steps(tmp_path: Path, head: str, accuracy: bool) -> None:
    """The arrays have the same bits, types and shapes, and the statistics of both sessions are equal."""
    if head == "label":
        declared = numpy_networks.signature([Feature(name=name) for name in "xyz"], "who", classes=("ann", "bob"))
        model = numpy_networks.export(numpy_networks.network(declared, head=head, units=6))
    else:
        model = make_bundle(tmp_path, head=head, features=("x", "y", "z"), targets=("z", "x"))
    single, several = (LocalModel(model, accuracy=accuracy).session() for _ in range(2))
    for number, step in enumerate(draw(1, 40, 3)[0].tolist(), 1):
        mine, expected = single.step(step), several.steps([step]).last
        assert single.prediction is not None
        assert bits(single.prediction) == bits(mine)
        assert (list(mine), mine.step, mine.surprise) == (list(expected), number, expected.surprise)
        assert (mine.anomaly, mine.interval) == (expected.anomaly, None)
        for name in mine:
            np.testing.assert_array_equal(mine[name], expected[name], strict=True)
        assert (mine.error is None) == (expected.error is None)
        if mine.error is not None:
            np.testing.assert_array_equal(mine.error, expected.error, strict=True)
        assert {type(value) for value in vars(mine).values()} == {type(value) for value in vars(expected).values()}
    left, right = single.info(), several.info()
    assert (left.step, left.surprise, left.accuracy) == (right.step, right.surprise, right.accuracy)
    fork = single.fork()
    assert bits(fork.step(step)) == bits(several.steps([step]).last)
    assert single.info() == left


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, 3.5e38, "5", None, [5], [[5]]])
def test_a_single_step_is_refused_as_steps_are(value: Any) -> None:
    session = onward.load(ZOO / "pulse/1").session(inputs=pulse(2))
    info, prediction = session.info(), session.prediction
    errors = []
    for call in (session.step, lambda step: session.steps([step])):
        with pytest.raises(InvalidRequest) as refused:
            call([value])
        errors.append((type(refused.value), str(refused.value)))
    assert errors[0] == errors[1]
    with pytest.raises(StepConflict):
        session.step([500], at=5)
    with pytest.raises(NotFinite):
        session.step([3e38])
    assert (session.info(), session.prediction) == (info, prediction)


def edited(folder: Path, *changes: Callable[[Document], None]) -> Path:
    """A copy of the zoo's `pulse` with another manifest."""
    bundle = folder / "pulse/1"
    shutil.copytree(ZOO / "pulse/1", bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    for change in changes:
        change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_an_output_may_have_the_name_of_what_is_told_beside_it(tmp_path: Path) -> None:
    """A graph is served as it is: `error` and `anomaly` are told beside an output that is called so."""
    graph = onnx.load(ZOO / "pulse/1/model.onnx")
    (node,) = [node for node in graph.graph.node if "surprise" in node.output]
    (output,) = [output for output in graph.graph.output if output.name == "surprise"]
    node.output[0] = output.name = "anomaly"
    data = graph.SerializeToString()
    proven = json.loads((ZOO / "pulse/1/manifest.json").read_text())["parity"]["outputs"]
    proven["anomaly"] = proven.pop("surprise")
    bundle = edited(
        tmp_path,
        put("outputs", 2, "name", to="anomaly"),
        put("head", "surprise", to="anomaly"),
        put("parity", "outputs", to=proven),
        put("sha256", to=sha256(data).hexdigest()),
    )
    (bundle / "model.onnx").write_bytes(data)
    answer, expected = (onward.load(folder).session().steps(pulse(30)) for folder in (bundle, ZOO / "pulse/1"))
    assert bits(answer) == bits(expected)
    for name in ("surprise", "error", "anomaly"):
        np.testing.assert_array_equal(getattr(answer, name), getattr(expected, name), strict=True)


def test_without_what_was_said_last_there_are_no_intervals(tmp_path: Path) -> None:
    bundle = edited(tmp_path, put("head", "last", to={}))
    with pytest.raises(InvalidRequest, match="keep its last prediction in its state, so there are no intervals"):
        onward.load(bundle).session(interval=0.9)
    with pytest.raises(InvalidRequest, match="accuracy is not counted here, so there are no intervals"):
        onward.load(ZOO / "pulse/1", accuracy=False).session(interval=0.9)


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


def test_sample_paths_have_a_most_of_steps_together() -> None:
    """More is refused at once: two counts that are each within their range may still have no end in sight."""
    session = onward.load(ZOO / "pulse/1").session()
    with pytest.raises(
        InvalidRequest, match=r"samples: 10001 paths of 10000 steps are 100010000 steps; at most 1000000"
    ):
        session.forecast(10_000, samples=10_001)
