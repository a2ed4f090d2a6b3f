"""An answer that is written into a form, against the same answer encoded in the ordinary way."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.model.outputs import step_fields
from onward.model.runner import StepModel
from onward.model.scoring.layout import StatisticsLayout
from onward.service.engine.steps import StepResult
from onward.service.http import step_encoding
from onward.service.http.reply import encode
from tests.helpers.recorded_bundles import category, make_bundle, make_feature_bundle

HEADS = ["point", "gaussian", "student_t", "quantiles"]
BITS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 0x3F800000, 0x7F7FFFFF, 0x7F800000]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[StepModel]:
    """Of every head that says numbers, with two targets of three features."""
    folder = tmp_path_factory.mktemp("models")
    return [make_bundle(folder / head, head=head, features=("x", "y", "z"), targets=("z", "x")) for head in HEADS]


def ordinary(answer: StepResult) -> bytes:
    return encode({"step": answer.step, **step_fields(answer.model, answer.outputs)})


@given(step=st.integers(0, 2**63), bits=st.lists(BITS, min_size=8, max_size=8))
def test_both_ways_write_the_same(models: list[StepModel], step: int, bits: Sequence[int]) -> None:
    """Whatever the numbers: of every head, alone and with what is seen of predictions and with intervals."""
    for model, kind in product(models, range(3)):
        dtype = (
            model.output_dtype,
            StatisticsLayout(model).output_dtype,
            StatisticsLayout(model, intervals=True).output_dtype,
        )[kind]
        outputs = np.resize(np.array(bits, np.uint32), dtype.itemsize // 4).view(dtype)
        answer = StepResult(model, step, outputs)
        assert step_encoding._form(model, dtype) is not None
        assert step_encoding.written(answer) == ordinary(answer)


def test_what_has_no_form_is_written_as_it_is(models: list[StepModel], tmp_path: Path) -> None:
    """Answers of several steps, numbers that lie in another order, and categories, which are told by name."""
    several = StepResult(models[0], 3, np.ones(3, models[0].output_dtype))
    assert step_encoding.written(several) == ordinary(several)
    other_order = np.dtype(list(reversed(models[1].output_dtype.descr)))
    turned = StepResult(models[1], 3, np.arange(other_order.itemsize // 4, dtype=np.float32).view(other_order))
    assert step_encoding._form(models[1], other_order) is None
    assert step_encoding.written(turned) == ordinary(turned)
    words = make_feature_bundle(tmp_path, [category("c", 4)], "c", head="categorical", counts=[1, 2, 3, 4], units=6)
    answer = StepResult(words, 1, words.last_prediction(words.layout.initial(1)))
    assert step_encoding._form(words, words.output_dtype) is None
    assert b'"c' in step_encoding.written(answer)
    assert step_encoding.written(answer) == ordinary(answer)
