"""Encodes the results of steps as JSON.

Nearly every result is of one step and has floats of one type alone. Its numbers are written into a template, which is
made once per model from a result that was encoded in the ordinary way. So both ways give the same bytes, and the
template costs less than half as much. The numbers of results that a batch has made together are encoded together.
"""

import re
from functools import lru_cache
from typing import Any

import numpy as np
import orjson

from onward.model.finite import common_float
from onward.model.outputs import step_fields
from onward.model.runner import StepModel
from onward.service.engine.batching.batch_row import ResultColumns, StepResult
from onward.service.http.reply import PIECE, encode, encode_by_turns

_NUMBER = re.compile(rb"([0-9]+)\.0")


def encode_step(result: StepResult) -> bytes:
    """The JSON object with the step that was reached and the model's outputs of the steps."""
    if (columns := result.columns) is not None:
        if columns.encoded is None:
            columns.encoded = _encode_columns(result.model, columns)
        if columns.encoded:
            body: bytes = columns.encoded[result.row]
            return body
    outputs = result.outputs
    template = _template(result.model, outputs.dtype) if len(outputs) == 1 else None
    if template is None:
        return encode_by_turns(step_content(result))
    numbers = np.frombuffer(outputs, result.model.input_dtype)
    written = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    return template % (result.step, *written)


def is_long(result: StepResult) -> bool:
    """True if `encode_step` may take turns of the event loop, so that its caller has to be a greenlet that may wait."""
    return result.outputs.nbytes > PIECE  # so at most as many values, none of which has less than a byte


def _encode_columns(model: StepModel, columns: ResultColumns) -> list[bytes]:
    """The JSON objects of all rows; empty if they do not fit a template."""
    template = _template(model, columns.outputs.dtype)
    if template is None:
        return []
    numbers = np.frombuffer(columns.outputs, model.input_dtype).reshape(len(columns.outputs), -1)
    rows = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[2:-2].split(b"],[")
    return [template % (step, *row.split(b",")) for step, row in zip(columns.steps, rows, strict=True)]


def step_content(result: StepResult) -> dict[str, Any]:
    """The object that `encode_step` encodes."""
    return {"step": result.step, **step_fields(result.model, result.outputs)}


@lru_cache(1000)
def _template(model: StepModel, dtype: np.dtype[np.void]) -> bytes | None:
    """The JSON of a result, with a placeholder for the step and for each number.

    None if a result has more than floats of the model's type, or has them in another order than the dtype.
    """
    if (kind := common_float(dtype)) is None or kind != model.input_dtype:
        return None
    count = dtype.itemsize // model.input_dtype.itemsize
    numbered = np.arange(count, dtype=model.input_dtype).view(dtype)
    *texts, end = _NUMBER.split(encode(step_fields(model, numbered)).replace(b"%", b"%%"))
    if [int(number) for number in texts[1::2]] != list(range(count)):
        return None
    return b'{"step":%d,' + b"%b".join([texts[0].removeprefix(b"{"), *texts[2::2], end])
