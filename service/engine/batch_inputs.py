"""The inputs of requests as arrays: those of a batch in one go, as reading each alone costs more than a step does.

Knows nothing of records or of batches of rows.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from onward.model.runner import StepModel
from onward.service.engine.batching.work_item import Request
from onward.service.engine.input_parsing import array_of
from onward.service.errors import without_frames


def read(model: StepModel, requests: Sequence[Request]) -> None:
    """Makes arrays of the requests' inputs, of all together where that goes; answers those at fault."""
    unread: list[tuple[Request, Any]] = [(one, one.asked.inputs) for one in requests if one.inputs is None]
    forms = {type(inputs[0]) if inputs else None for _, inputs in unread}
    if len(unread) > 1 and (forms == {list} or forms <= {int, float}):
        try:
            joined = array_of(model, list(chain.from_iterable(inputs for _, inputs in unread)))
        except Exception:  # noqa: BLE001, S110  (whose it is, is found below)
            pass
        else:
            start = 0
            for request, _ in unread:
                request.inputs = joined[start : start + request.length]
                start += request.length
            return
    for request, inputs in unread:
        try:
            request.inputs = array_of(model, inputs)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is this request's alone)
            request.outcome = without_frames(error)
