"""One path drawn step by step: how a draw is wished for, when it ends, and what is told of each step.

Knows nothing of how a step is run: whoever draws gives a function for that.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import Fault, InputError, to_array
from onward.model.manifest import RANKED, Category
from onward.model.outputs import category_names
from onward.model.runner import Outputs, StepModel
from onward.model.sampling import categorical
from onward.model.sampling.categorical import Taste
from onward.model.sampling.rollout import NonFiniteError
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.samplers import make_sampler, path_generator
from onward.model.state import State


class GenerationOptions(NamedTuple):
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


class GeneratedStep(NamedTuple):
    """values: (targets,) of the step, of categories the place. Of categories too the model's own log-probabilities:
    of what was drawn, and (logprobs,) of the likeliest places.
    """

    ahead: int
    values: NDArray[np.float32]
    log_probability: float | None = None
    top: NDArray[np.int64] | None = None
    log_probabilities: NDArray[np.float32] | None = None


class GenerationEnd(NamedTuple):
    """text: what was drawn, where the model reads one."""

    reason: Literal["horizon", "stop"]
    text: str | None


Run = Callable[[NDArray[np.float32], State], tuple[Outputs, State]]
"""Inputs (1, features) and the state (1,) before them to outputs (1,) and the state after them."""


class GenerationStart(NamedTuple):
    """Where a draw begins: the outputs (1,) and the state (1,) after what was `read` (steps, features) for it, and what
    is `known` of the features that are not predicted, see `rolling.known`.
    """

    outputs: Outputs
    state: State
    read: NDArray[np.float32]
    known: NDArray[np.float32] | None


class GeneratedPath:
    """A path to come, held to all that can be known before its first step."""

    def __init__(
        self, model: StepModel, start: GenerationStart, horizon: int, wish: GenerationOptions, seed: int
    ) -> None:
        """Raises InputError where the model does not fit the options, RolloutUnsupportedError where it cannot roll."""
        _hold(model, wish)
        self._model, self._start, self._horizon, self._wish = model, start, horizon, wish
        self._ranks = model.manifest.head.ranks_categories
        self._stops = _stops(model, wish.stop or ())
        self._before: set[int] = _places(model, start.read) if self._ranks else set()
        taste = Taste(wish.temperature, wish.top_k, wish.top_p, wish.repetition_penalty or 1.0)
        self._feed = RolloutInputs(model, start.known, make_sampler(model, path_generator(seed), taste, self._before))

    def steps(self, run: Run) -> Iterator[GeneratedStep | GenerationEnd]:
        """Each step, and at last the end; once. Raises NonFiniteError, and what running raises."""
        outputs, state = self._start.outputs, self._start.state
        places: list[int] = []
        for ahead in range(1, self._horizon + 1):
            values = self._feed.next_targets(outputs)[0]
            if not np.isfinite(values).all():
                raise NonFiniteError
            yield self._told(ahead, values, outputs)
            if self._ranks:
                places.append(int(values[0]))
                self._before.add(places[-1])
            if any(stop[-1] == places[-1] and places[-len(stop) :] == stop for stop in self._stops):
                yield GenerationEnd("stop", _text(self._model, places))
                return
            if ahead < self._horizon:
                outputs, state = run(self._feed.next_inputs(), state)
        yield GenerationEnd("horizon", _text(self._model, places))

    def _told(self, ahead: int, values: NDArray[np.float32], outputs: Outputs) -> GeneratedStep:
        if not self._ranks:
            return GeneratedStep(ahead, values)
        top, scores = (outputs[name][0] for name in RANKED)
        own = float(scores[top == int(values[0])][0])
        if self._wish.logprobs is None:
            return GeneratedStep(ahead, values, own)
        return GeneratedStep(ahead, values, own, top[: self._wish.logprobs], scores[: self._wish.logprobs])


def generated_fields(model: StepModel, one: GeneratedStep) -> dict[str, Any]:
    """What is told of a step, by name, categories as they are."""
    categories = model.manifest.categories
    if one.log_probability is None:
        return {"ahead": one.ahead, "values": one.values}
    token = {"ahead": one.ahead, "token": categories[int(one.values[0])], "log_probability": one.log_probability}
    if one.top is None:
        return token
    return token | {"top": category_names(one.top.tolist(), categories), "log_probabilities": one.log_probabilities}


def _hold(model: StepModel, wish: GenerationOptions) -> None:
    """Raises InputError where the model does not fit the wish."""
    if not model.manifest.head.ranks_categories:
        others = [
            name for name in GenerationOptions._fields if name != "temperature" and getattr(wish, name) is not None
        ]
        if others:
            raise InputError(*(Fault(name, "the model predicts numbers, not categories") for name in others))
    elif (wish.logprobs or 0) > (most := categorical.told(model)):
        raise InputError(Fault("logprobs", f"the model tells the likeliest {most}"))


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
        try:
            places = to_array(one if whole else [one], (target,))[:, 0]  # type: ignore[arg-type]
        except InputError as error:  # a stop is one value to whoever asks, not the steps that are made of it
            raise InputError(*(Fault(field, fault.message) for fault in error.faults)) from None
        if (places >= len(target.categories)).any():
            raise InputError(Fault(field, f"{one!r:.100} has what is never drawn"))
        stops.append([int(place) for place in places])
    return stops


def _places(model: StepModel, read: NDArray[np.float32]) -> set[int]:
    """Of the target, those that were read."""
    manifest = model.manifest
    column = read[:, manifest.feature_names.index(manifest.head.targets[0])]
    return {int(place) for place in column[~np.isnan(column)]}


def _text(model: StepModel, places: Sequence[int]) -> str | None:
    """What was drawn, where the model reads a text: bytes that are no characters are told as U+FFFD."""
    manifest = model.manifest
    (feature, *others) = manifest.features
    if feature.text is None or others or not manifest.head.ranks_categories:
        return None
    if feature.text == "bytes":
        return bytes(int(feature.categories[place]) for place in places).decode(errors="replace")
    return "".join(str(feature.categories[place]) for place in places)
