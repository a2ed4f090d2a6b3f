"""What a session keeps of its past, where the service is told to: its last inputs, and states to go back to.

Owns which of them are kept, and their bytes. With `keep` steps wanted, there is a state at least that old, or as old as
the history is, and every input since; states lie `keep` steps apart, so there are two of them, three at most. So a
step costs the copy of these, and going back to any of the last `keep` steps a replay of no more than twice as many.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.model.scoring.surprise import SurpriseMeans

_HEAD, _POINT = struct.Struct("<8sIIH"), struct.Struct("<QQddII")


class Point(NamedTuple):
    """A step that can be gone back to: the statistics, the state, and how predictions came true until then."""

    step: int
    surprise: SurpriseMeans
    state: bytes
    accuracy: bytes = b""


class History(NamedTuple):
    """`points`, the oldest first, and the last `inputs` (steps, features), up to now and from the first point at least.

    `features` says what the inputs mean: a model with the same can be given them.
    """

    features: bytes
    points: tuple[Point, ...]
    inputs: NDArray[np.float32]

    def advanced(self, points: Sequence[Point], inputs: NDArray[np.float32], step: int, keep: int) -> Self:
        """After more inputs (steps, features), to `step`; `points` are of the way there, in order."""
        candidates = [*self.points, *points]
        old_enough = [place for place, point in enumerate(candidates) if point.step <= step - keep]
        kept = [candidates[old_enough[-1] if old_enough else 0]]
        for point in candidates:
            if point.step >= kept[-1].step + keep:
                kept.append(point)
        wanted = max(keep, step - kept[0].step)
        return self._replace(points=tuple(kept), inputs=np.concatenate([self.inputs, inputs])[-wanted:])

    def back_to(self, step: int, now: int) -> tuple[Point, NDArray[np.float32], Self] | None:
        """The point to go back to from `now`, the inputs from there to `step`, and what is kept then; None: too far."""
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


def begun(features: Sequence[Feature], point: Point, inputs: NDArray[np.float32] | None = None) -> History:
    """That of a session which has none yet and is at that point; `inputs` (steps, features) are its last."""
    none = np.zeros((0, len(features)), np.float32)
    return History(meaning(features), (point,), none if inputs is None else inputs)


def from_bytes(data: bytes) -> History:
    """What `to_bytes` wrote; the record that holds it vouches for the bytes."""
    features, steps, width, count = _HEAD.unpack_from(data)
    place, points = _HEAD.size, []
    for _ in range(count):
        step, inputs, mean, recent, *sizes = _POINT.unpack_from(data, place)
        place += _POINT.size
        parts = []
        for size in sizes:
            parts.append(data[place : place + size])
            place += size
        points.append(Point(step, (inputs, mean, recent), *parts))
    return History(features, tuple(points), np.frombuffer(data, np.float32, offset=place).reshape(steps, width))


def meaning(features: Sequence[Feature]) -> bytes:
    """A digest of what a step's numbers stand for."""
    said = [(one.name, one.kind, one.categories, one.unknown, one.nullable, one.text) for one in features]
    return blake2b(repr(said).encode(), digest_size=8).digest()
