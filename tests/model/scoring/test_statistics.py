"""The ledger by itself: rows counted alone and together, and numbers at the end of what there is."""

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
def test_rows_counted_together_have_the_bits_of_rows_counted_alone(tmp_path: Path, head: str) -> None:
    """Answers and what is kept, step by step, of many rows and of each by itself."""
    if head in HEADS:
        model = make_bundle(tmp_path, head=head, features=("x", "y", "z"), targets=("z", "x"))
        inputs = draw(7, 40, 3)
    else:
        spoken = signature([category("c", 4)], "c") if head == "categorical" else labelled()
        model = export(network(spoken, head=head, counts=[1, 2, 3, 4], units=6))
        inputs = np.random.default_rng(0).integers(4, size=(7, 40, 1)).astype(np.float32)
    counted, state = Accuracy(model), model.layout.initial(7)
    together: list[bytes | None] = [b""] * 7
    alone: list[bytes | None] = [b""] * 7
    for step in range(40):
        now = inputs[:, step : step + 1]
        outputs, after = model.run(now, np.ones(7, np.int32), state)
        told, together = map(list, counted.score_steps(together, now, [1] * 7, state, outputs))
        for row in range(7):
            of = slice(row, row + 1)
            (one,), (alone[row],) = counted.score_steps([alone[row]], now[of], [1], state[of], outputs[of])
            assert one.tobytes() == told[row].tobytes()
        assert together == alone
        state = after


def labelled() -> Signature:
    """Of a head `label` over four classes."""
    return signature([category("c", 4)], "kind", classes=("p", "q", "r", "s"))


def test_large_numbers_do_no_harm() -> None:
    """Errors beyond single precision are told as unknown, and the sums go on in double."""
    model = open_all(ZOO).models["weather"][1]
    counted = Accuracy(model)
    most = float(np.finfo(np.float32).max)
    for kept in (b"", counted.initial(0.9)):
        outputs, state = np.zeros((1, 2), model.output_dtype), model.layout.initial(1)
        outputs["point"] = -most
        inputs = np.array([[[most, 1, 2, 3], [most, 1, 2, 3]]], np.float32)
        (answer,), (after,) = counted.score_steps([kept], inputs, [2], state, outputs)
        assert after is not None
        assert (
            orjson.loads(orjson.dumps(step_fields(model, answer), option=orjson.OPT_SERIALIZE_NUMPY))["error"][1][0]
            is None
        )
        targets = counted.target_statistics(after)
        assert targets is not None
        assert targets["precipitation"].mae == pytest.approx(1.5 * most)


@pytest.mark.parametrize("rows", [1, 8])
def test_errors_beyond_single_precision_keep_their_sign(rows: int) -> None:
    """Of rows alone and together: what is too far below is -inf, what is too far above inf, what is missing NaN."""
    model = open_all(ZOO).models["weather"][1]
    most = float(np.finfo(np.float32).max)
    outputs, state = np.zeros((rows, 1), model.output_dtype), model.layout.initial(rows)
    (centre, *_) = model.manifest.head.last.values()
    for said, actual, expected in ((-most, most, math.inf), (most, -most, -math.inf), (most, math.nan, math.nan)):
        state[centre] = said
        inputs = np.full((rows, 1, 4), actual, np.float32)
        answers, _ = Accuracy(model).score_steps([b""] * rows, inputs, [1] * rows, state, outputs)
        for answer in answers:
            np.testing.assert_array_equal(answer[ERROR], np.full_like(answer[ERROR], expected))
    lasting = np.zeros((1, 3), model.output_dtype)
    lasting["point"][0, :, 0] = most
    inputs = np.array([[[0, 1, 2, 3], [math.nan, 1, 2, 3], [-most, 1, 2, 3]]], np.float32)
    ((answer,), _) = Accuracy(model).score_steps([b""], inputs, [3], model.layout.initial(1), lasting)
    np.testing.assert_array_equal(answer[ERROR][1:, 0], [math.nan, -math.inf])
