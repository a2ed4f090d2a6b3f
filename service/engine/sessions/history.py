"""The history of a session, if the service keeps one: its last inputs, and states to go back to.

Owns which of them are kept, and their bytes. To go back by `keep` steps, a history has a state at least that old, or as
old as the history itself, and every input since. States lie `keep` steps apart, so there are two of them, three at
most. A step thus costs the copy of these, and going back to any of the last `keep` steps a replay of at most twice as
many.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Self

import numpy as np

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.model.scoring.surprise import SurpriseMeans

_HEAD, _POINT = struct.Struct("<8sIIH"), struct.Struct("<QQddII")


class Point(NamedTuple):
    """A step to go back to: its statistics of surprise and accuracy, and its state."""

    step: int
    surprise: SurpriseMeans
    state: bytes
    accuracy: bytes = b""


class History(NamedTuple):
    """The history of a session.

    features: the digest of what the inputs mean, see `meaning`; a model with the same digest can replay them. points:
    the oldest first. inputs: (steps, features), the last ones, at least those since the first point.
    """

    features: bytes
    points: tuple[Point, ...]
    inputs: InputArray

    def advanced(self, points: Sequence[Point], inputs: InputArray, step: int, keep: int) -> Self:
        """Returns the history at `step`, after more inputs (steps, features). points: on the way there, in order."""
        candidates = [*self.points, *points]
        old_enough = [index for index, point in enumerate(candidates) if point.step <= step - keep]
        retained = [candidates[old_enough[-1] if old_enough else 0]]
        for point in candidates:
            if point.step >= retained[-1].step + keep:
                retained.append(point)
        steps = max(keep, step - retained[0].step)
        return self._replace(points=tuple(retained), inputs=np.concatenate([self.inputs, inputs])[-steps:])

    def back_to(self, step: int, now: int) -> tuple[Point, InputArray, Self] | None:
        """Returns the last point before `step`, the inputs from there to `step`, and the history at `step`.

        `now` is the step of the session. Returns None if `step` is not in the history.
        """
        points = tuple(point for point in self.points if point.step <= step)
        if not points or step > now:
            return None
        end = len(self.inputs) - (now - step)
        replayed = self.inputs[end - (step - points[-1].step) : end]
        return points[-1], replayed, self._replace(points=points, inputs=self.inputs[:end])

    def to_bytes(self) -> bytes:
        parts = [_HEAD.pack(self.features, *self.inputs.shape, len(self.points))]
        for step, surprise, state, accuracy in self.points:
            parts += [_POINT.pack(step, *surprise, len(state), len(accuracy)), state, accuracy]
        return b"".join([*parts, self.inputs.tobytes()])


def begun(features: Sequence[Feature], point: Point, inputs: InputArray | None = None) -> History:
    """Returns the history of a session that has none yet and is at that point. inputs: its last (steps, features)."""
    if inputs is None:
        inputs = np.zeros((0, len(features)), np.float32)  # joined with others, it takes their type
    return History(meaning(features), (point,), inputs)


def from_bytes(data: bytes) -> History:
    """Returns the history that `to_bytes` has written. It checks nothing: the record's checksum covers these bytes.

    The length of the bytes shows whether the inputs are in single or in double precision.
    """
    features, steps, width, length = _HEAD.unpack_from(data)
    offset, points = _HEAD.size, []
    for _ in range(length):
        step, count, mean, recent, *sizes = _POINT.unpack_from(data, offset)
        offset += _POINT.size
        parts = []
        for size in sizes:
            parts.append(data[offset : offset + size])
            offset += size
        points.append(Point(step, (count, mean, recent), *parts))
    is_single = len(data) - offset == 4 * steps * width
    inputs: InputArray = np.frombuffer(data, np.float32 if is_single else np.float64, offset=offset)
    return History(features, tuple(points), inputs.reshape(steps, width))


def meaning(features: Sequence[Feature]) -> bytes:
    """Returns a digest of what the numbers of a step stand for."""
    definitions: list[tuple[object, ...]] = [
        (feature.name, feature.kind, feature.categories, feature.unknown, feature.nullable, feature.text)
        + ((feature.lead,) if feature.lead else ())  # so that records from before there were leads keep their digest
        for feature in features
    ]
    return blake2b(repr(definitions).encode(), digest_size=8).digest()
