"""The running statistics: rows counted alone and in batches, and numbers beyond single precision."""

import math
from pathlib import Path

import numpy as np
import orjson
import pytest

from onward.model.outputs import step_fields
from onward.model.repository import open_all
from onward.model.scoring.accuracy import Accuracy
from onward.model.scoring.layout import ERROR
from onward.training.network.network import Signature
from tests.helpers.numpy_networks import export, network, signature
from tests.helpers.random_bundles import make_bundle
from tests.helpers.recorded_bundles import category, draw
from tests.helpers.reference_loop import ZOO

HEADS = ["point", "gaussian", "student_t", "quantiles"]


@pytest.mark.parametrize("head", [*HEADS, "categorical", "label"])
def test_batched_rows_have_the_bits_of_single_rows(tmp_path: Path, head: str) -> None:
    """Answers and statistics are equal step by step, for many rows in a batch and for each row alone."""
    if head in HEADS:
        model = make_bundle(tmp_path, head=head, features=("x", "y", "z"), targets=("z", "x"))
        inputs = draw(7, 40, 3)
    else:
        declared = signature([category("c", 4)], "c") if head == "categorical" else labelled()
        model = export(network(declared, head=head, counts=[1, 2, 3, 4], units=6))
        inputs = np.random.default_rng(0).integers(4, size=(7, 40, 1)).astype(np.float32)
    accuracy, state = Accuracy(model), model.layout.initial(7)
    batched: list[bytes | None] = [b""] * 7
    alone: list[bytes | None] = [b""] * 7
    for step in range(40):
        now = inputs[:, step : step + 1]
        outputs, after = model.run(now, np.ones(7, np.int32), state)
        answers, batched = map(list, accuracy.score_steps(batched, now, [1] * 7, state, outputs))
        for row in range(7):
            only = slice(row, row + 1)
            (answer,), (alone[row],) = accuracy.score_steps([alone[row]], now[only], [1], state[only], outputs[only])
            assert answer.tobytes() == answers[row].tobytes()
        assert batched == alone
        state = after


def labelled() -> Signature:
    """Returns the signature of a head `label` over four classes."""
    return signature([category("c", 4)], "kind", classes=("p", "q", "r", "s"))


def test_errors_beyond_single_precision_are_null() -> None:
    """Errors beyond single precision are null in the answer, and the sums continue in double precision."""
    model = open_all(ZOO).models["weather"][1]
    accuracy = Accuracy(model)
    most = float(np.finfo(np.float32).max)
    for statistics in (b"", accuracy.initial(0.9)):
        outputs, state = np.zeros((1, 2), model.output_dtype), model.layout.initial(1)
        outputs["point"] = -most
        inputs = np.array([[[most, 1, 2, 3], [most, 1, 2, 3]]], np.float32)
        (answer,), (after,) = accuracy.score_steps([statistics], inputs, [2], state, outputs)
        assert after is not None
        fields = orjson.loads(orjson.dumps(step_fields(model, answer), option=orjson.OPT_SERIALIZE_NUMPY))
        assert fields["error"][1][0] is None
        targets = accuracy.target_statistics(after)
        assert targets is not None
        assert targets["precipitation"].mae == pytest.approx(1.5 * most)


@pytest.mark.parametrize("rows", [1, 8])
def test_errors_beyond_single_precision_keep_their_sign(rows: int) -> None:
    """Single and batched rows have -inf or inf for an error beyond the range, and NaN for a missing value."""
    model = open_all(ZOO).models["weather"][1]
    most = float(np.finfo(np.float32).max)
    outputs, state = np.zeros((rows, 1), model.output_dtype), model.layout.initial(rows)
    (centre, *_) = model.manifest.head.last
    for predicted, actual, expected in ((-most, most, math.inf), (most, -most, -math.inf), (most, math.nan, math.nan)):
        model.stored_prediction(state)[centre] = predicted
        inputs = np.full((rows, 1, 4), actual, np.float32)
        answers, _ = Accuracy(model).score_steps([b""] * rows, inputs, [1] * rows, state, outputs)
        for answer in answers:
            np.testing.assert_array_equal(answer[ERROR], np.full_like(answer[ERROR], expected))
    three_steps = np.zeros((1, 3), model.output_dtype)
    three_steps["point"][0, :, 0] = most
    inputs = np.array([[[0, 1, 2, 3], [math.nan, 1, 2, 3], [-most, 1, 2, 3]]], np.float32)
    ((answer,), _) = Accuracy(model).score_steps([b""], inputs, [3], model.layout.initial(1), three_steps)
    np.testing.assert_array_equal(answer[ERROR][1:, 0], [math.nan, -math.inf])
