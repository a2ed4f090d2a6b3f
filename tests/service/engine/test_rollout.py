"""The memory of a long rollout."""

import sys

import numpy as np

from onward.model.repository import open_bundle
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.service.engine.batching.batch_row import Progress
from tests.helpers.reference_loop import ZOO

STEPS = 4000


def test_a_rollout_stores_numbers_and_no_objects() -> None:
    """Objects for each step of a thousand rows would hold up the progresser when they are freed, so there are none."""
    model = open_bundle(ZOO / "pulse/1")
    initial, feed = model.layout.initial(1), RolloutInputs(model)
    start = np.full((1, 1), 500, np.float32)
    progress = Progress(1, 64, initial.tobytes(), None, None, horizon=STEPS, feed=feed)
    expected, blocks = bytearray(), []
    for step in range(STEPS + 1):
        if step in (STEPS // 2, STEPS):
            blocks.append(sys.getallocatedblocks())
        outputs, after = model.run_row(progress.next_inputs(start), np.frombuffer(progress.state, model.layout.dtype))
        expected += outputs.tobytes()
        progress.advance(outputs, after.tobytes())
    assert progress.finished
    assert feed.path().shape == (STEPS, 1)
    assert progress.all_outputs() is progress.all_outputs()
    assert progress.all_outputs().tobytes() == expected
    assert blocks[1] - blocks[0] < STEPS / 10
