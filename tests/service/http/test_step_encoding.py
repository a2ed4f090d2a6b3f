"""Step results that are written into a prepared form have the bytes of the general encoder."""

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
from onward.service.engine.batching.batch_row import StepResult
from onward.service.http import step_encoding
from onward.service.http.reply import encode
from tests.helpers.recorded_bundles import category, make_bundle, make_feature_bundle

HEADS = ["point", "gaussian", "student_t", "quantiles"]
BITS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**31, 0x3F800000, 0x7F7FFFFF, 0x7F800000]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[StepModel]:
    """A model of each numeric head, with three features, two of which are targets."""
    folder = tmp_path_factory.mktemp("models")
    return [make_bundle(folder / head, head=head, features=("x", "y", "z"), targets=("z", "x")) for head in HEADS]


def generally_encoded(result: StepResult) -> bytes:
    return encode({"step": result.step, **step_fields(result.model, result.outputs)})


@given(step=st.integers(0, 2**63), bits=st.lists(BITS, min_size=8, max_size=8))
def test_the_prepared_form_equals_the_general_encoding(models: list[StepModel], step: int, bits: Sequence[int]) -> None:
    """The bytes are equal for any numbers and every head: alone, with scores, and with scores and intervals."""
    for model, kind in product(models, range(3)):
        dtype = (
            model.output_dtype,
            StatisticsLayout(model).output_dtype,
            StatisticsLayout(model, intervals=True).output_dtype,
        )[kind]
        outputs = np.resize(np.array(bits, np.uint32), dtype.itemsize // 4).view(dtype)
        result = StepResult(model, step, outputs)
        assert step_encoding._template(model, dtype) is not None
        assert step_encoding.encode_step(result) == generally_encoded(result)


def test_results_without_a_prepared_form_use_the_general_encoder(models: list[StepModel], tmp_path: Path) -> None:
    """Results of several steps, outputs in another order and categories, which are written by name, have no form."""
    several = StepResult(models[0], 3, np.ones(3, models[0].output_dtype))
    assert step_encoding.encode_step(several) == generally_encoded(several)
    reversed_dtype = np.dtype(list(reversed(models[1].output_dtype.descr)))
    reordered = StepResult(models[1], 3, np.arange(reversed_dtype.itemsize // 4, dtype=np.float32).view(reversed_dtype))
    assert step_encoding._template(models[1], reversed_dtype) is None
    assert step_encoding.encode_step(reordered) == generally_encoded(reordered)
    categorical = make_feature_bundle(
        tmp_path, [category("c", 4)], "c", head="categorical", counts=[1, 2, 3, 4], units=6
    )
    result = StepResult(categorical, 1, categorical.last_prediction(categorical.layout.initial(1)))
    assert step_encoding._template(categorical, categorical.output_dtype) is None
    assert b'"c' in step_encoding.encode_step(result)
    assert step_encoding.encode_step(result) == generally_encoded(result)
