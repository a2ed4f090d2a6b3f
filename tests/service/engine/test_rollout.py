"""The memory of a long rollout."""

import sys

import numpy as np

from onward.model.repository import open_bundle
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.service.engine.batching.work_item import PendingCall, WorkItem
from tests.helpers.reference_loop import ZOO

STEPS = 4000


def test_a_rollout_stores_numbers_and_no_objects() -> None:
    """Objects for each step of a thousand rows would hold up the worker when they are freed, so there are none."""
    model = open_bundle(ZOO / "pulse/1")
    initial, feed = model.layout.initial(1), RolloutInputs(model)
    start = np.full((1, 1), 500, np.float32)
    work = WorkItem(model, 1, 1e9, 64, PendingCall(1, 0.0), b"line", inputs=start, horizon=STEPS, feed=feed)
    work.state = initial.tobytes()
    expected, blocks = bytearray(), []
    for step in range(STEPS + 1):
        if step in (STEPS // 2, STEPS):
            blocks.append(sys.getallocatedblocks())
        outputs, after = model.run_row(work.next_inputs(), np.frombuffer(work.state, model.layout.dtype))
        expected += outputs.tobytes()
        work.advance(outputs, after.tobytes())
    assert work.finished
    assert feed.path().shape == (STEPS, 1)
    assert work.all_outputs() is work.all_outputs()
    assert work.all_outputs().tobytes() == expected
    assert blocks[1] - blocks[0] < STEPS / 10
