"""One path drawn step by step from a session's state, told as it goes; the session stays.

Owns how a draw is wished for and when it ends. Each step is an item of its own, which shares batches with live steps:
whoever stops asking stops the draw within one step.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.manifest import RANKED, Category
from model.runner import Outputs, StepModel
from model.state import State
from service.engine import choice
from service.engine.choice import Taste
from service.engine.drawing import generator, new_seed, saying
from service.engine.feed import Feed
from service.engine.inputs import to_array
from service.engine.origin import Ahead, Origin, Origins
from service.engine.work import Done
from service.errors import DrawMovedError, Fault, InvalidInputError, NotFiniteError


class Wish(NamedTuple):
    """How a path is drawn; all but the temperature are of categories.

    stop: categories, or texts where the model reads one, after which a draw ends. logprobs: how many of the likeliest
    are told beside what was drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop: Sequence[Category] | None = None
    logprobs: int | None = None


class Drawn(NamedTuple):
    """values: (targets,) of the step, of categories the place. Of categories too the model's own log-probabilities:
    of what was drawn, and (logprobs,) of the likeliest places.
    """

    ahead: int
    values: NDArray[np.float32]
    log_probability: float | None = None
    top: NDArray[np.int64] | None = None
    log_probabilities: NDArray[np.float32] | None = None


class Ended(NamedTuple):
    """text: what was drawn, where the model reads one."""

    reason: Literal["horizon", "stop"]
    text: str | None


Run = Callable[[StepModel, NDArray[np.float32], State], Done]


class Draw:
    """A path to come, held to all that can be known before its first step."""

    def __init__(self, origin: Origin, horizon: int, wish: Wish, seed: int, run: Run) -> None:
        self.model, self.record, self.seed = origin.model, origin.record, seed
        self._origin, self._horizon, self._wish, self._run = origin, horizon, wish, run
        self._ranks = origin.model.manifest.head.ranks
        self._stops = _stops(self.model, wish.stop or ())
        self._before: set[int] = _places(origin) if self._ranks else set()
        taste = Taste(wish.temperature, wish.top_k, wish.top_p, wish.repetition_penalty or 1.0)
        say = saying(self.model, generator(seed), taste, self._before)
        self._feed = Feed(self.model, origin.known, say)

    def steps(self) -> Iterator[Drawn | Ended]:
        """Each step, and at last the end; once. Raises NotFiniteError, and what running raises."""
        outputs, state = self._origin.outputs, self._origin.state
        places: list[int] = []
        for ahead in range(1, self._horizon + 1):
            values = self._feed.say(outputs)[0]
            if not np.isfinite(values).all():
                raise NotFiniteError
            yield self._told(ahead, values, outputs)
            if self._ranks:
                places.append(int(values[0]))
                self._before.add(places[-1])
            if any(places[-len(stop) :] == stop for stop in self._stops):
                yield Ended("stop", _text(self.model, places))
                return
            if ahead < self._horizon:
                done = self._run(self.model, self._feed.inputs(), state)
                assert done.state is not None
                outputs, state = done.outputs, np.frombuffer(done.state, self.model.layout.dtype)
        yield Ended("horizon", _text(self.model, places))

    def _told(self, ahead: int, values: NDArray[np.float32], outputs: Outputs) -> Drawn:
        if not self._ranks:
            return Drawn(ahead, values)
        top, scores = (outputs[name][0] for name in RANKED)
        own = float(scores[top == int(values[0])][0])
        if self._wish.logprobs is None:
            return Drawn(ahead, values, own)
        return Drawn(ahead, values, own, top[: self._wish.logprobs], scores[: self._wish.logprobs])


class Draws:
    def __init__(self, origins: Origins, run: Run) -> None:
        self._origins, self._run = origins, run

    def begin(
        self,
        tenant: str,
        session_id: str,
        ahead: Ahead,
        wish: Wish,
        *,
        seed: int | None = None,
        since: tuple[int, int] | None = None,
        has_left: Callable[[], bool] | None = None,
    ) -> Draw:
        """since: the step and the revision of the session when the draw that is gone on with began.

        Raises as `Origins.of` does, DrawMovedError, and InvalidInputError where the model does not fit the wish.
        """
        origin = self._origins.of(tenant, session_id, ahead, has_left)
        if since is not None and since[1] != origin.record.revision:
            raise DrawMovedError(session_id, since[0], origin.record.step)
        _hold(origin.model, wish)
        return Draw(origin, ahead.horizon, wish, new_seed() if seed is None else seed, self._run)


def _hold(model: StepModel, wish: Wish) -> None:
    """Raises InvalidInputError where the model does not fit the wish."""
    if not model.manifest.head.ranks:
        others = [name for name in Wish._fields if name != "temperature" and getattr(wish, name) is not None]
        if others:
            raise InvalidInputError(*(Fault(name, "the model predicts numbers, not categories") for name in others))
    elif (wish.logprobs or 0) > (most := choice.told(model)):
        raise InvalidInputError(Fault("logprobs", f"the model tells the likeliest {most}"))


def _stops(model: StepModel, stop: Sequence[Category]) -> list[list[int]]:
    """Each as the places that it is."""
    if not stop:
        return []
    manifest = model.manifest
    target = manifest.feature(manifest.head.targets[0])
    stops = []
    for number, one in enumerate(stop):
        field = f"stop[{number}]"
        whole = isinstance(one, str) and target.text is not None
        places = to_array(one if whole else [one], (target,), field)[:, 0]  # type: ignore[arg-type]
        if (places >= len(target.categories)).any():
            raise InvalidInputError(Fault(field, f"{one!r:.100} has what is never drawn"))
        stops.append([int(place) for place in places])
    return stops


def _places(origin: Origin) -> set[int]:
    """Of the target, those that were read."""
    manifest = origin.model.manifest
    column = origin.read[:, manifest.names.index(manifest.head.targets[0])]
    return {int(place) for place in column[~np.isnan(column)]}


def _text(model: StepModel, places: Sequence[int]) -> str | None:
    """What was drawn, where the model reads a text: bytes that are no characters are told as U+FFFD."""
    manifest = model.manifest
    (feature, *others) = manifest.features
    if feature.text is None or others or not manifest.head.ranks:
        return None
    if feature.text == "bytes":
        return bytes(int(feature.categories[place]) for place in places).decode(errors="replace")
    return "".join(str(feature.categories[place]) for place in places)
