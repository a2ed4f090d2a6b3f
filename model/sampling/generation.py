"""Generation of one path step by step: its options, the fields of each step, and the conditions of its end.

Knows nothing of how a step is run: the caller passes a function for that.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onward.model.inputs import Fault, InputArray, InputError, to_array
from onward.model.listed_rankings import listed_outputs, ranking_size, require_listed
from onward.model.manifest import RANKED, Category
from onward.model.outputs import category_names, dtype_field
from onward.model.runner import Outputs, StepModel
from onward.model.sampling.rollout import NonFiniteError
from onward.model.sampling.rollout_inputs import RolloutInputs
from onward.model.sampling.samplers import SamplingParameters, make_sampler, path_generator
from onward.model.state import State


class GenerationOptions(NamedTuple):
    """The options of a generated path; all but the temperature apply to categories.

    stop: categories, or texts if the model reads text, after which generation ends. logprobs: how many of the likeliest
    categories are returned beside the drawn one.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    stop: Sequence[Category] | None = None
    logprobs: int | None = None


class GeneratedStep(NamedTuple):
    """A drawn step: values (targets,), or the index of a category.

    For categories also the model's own log-probabilities: of the drawn one, and (logprobs,) of the likeliest ones.
    """

    ahead: int
    values: InputArray
    log_probability: float | None = None
    top: NDArray[np.int64] | None = None
    log_probabilities: InputArray | None = None


class GenerationEnd(NamedTuple):
    """The end of a path. text: the drawn text, if the model reads text."""

    reason: Literal["horizon", "stop"]
    text: str | None


Run = Callable[[InputArray, State], tuple[Outputs, State]]
"""A function from inputs (1, features) and the state (1,) before them to outputs (1,) and the state after them."""


class GenerationStart(NamedTuple):
    """The start of a path: the outputs (1,) and the state (1,) after the inputs `read` (steps, features) for it.

    future: the future covariates, see `rollout.future_covariates`.
    """

    outputs: Outputs
    state: State
    read: InputArray
    future: InputArray | None


class GeneratedPath:
    """A path to be generated, whose options are checked before its first step."""

    def __init__(
        self,
        model: StepModel,
        start: GenerationStart,
        horizon: int,
        options: GenerationOptions,
        seed: int,
        *,
        listed_only: bool = False,
    ) -> None:
        """listed_only: the likeliest categories of a step are listed ones; only such are drawn in any case.

        Raises InputError if the options do not fit the model, RolloutUnsupportedError if it cannot be rolled.
        """
        _check_options(model, options, listed_only=listed_only)
        self._model, self._start, self._horizon, self._options = model, start, horizon, options
        self._listed_only = listed_only
        self._ranks_categories = model.manifest.head.ranks_categories
        self._stops = _stops(model, options.stop or ())
        self._previous: set[int] = _read_indices(model, start.read) if self._ranks_categories else set()
        parameters = SamplingParameters(
            options.temperature, options.top_k, options.top_p, options.repetition_penalty or 1.0
        )
        self._rollout = RolloutInputs(
            model, start.future, make_sampler(model, path_generator(seed), parameters, self._previous)
        )

    def steps(self, run: Run) -> Iterator[GeneratedStep | GenerationEnd]:
        """Yields each step and finally the end; call it once. Raises NonFiniteError, and the errors of `run`."""
        outputs, state = self._start.outputs, self._start.state
        indices: list[int] = []
        for ahead in range(1, self._horizon + 1):
            values = self._rollout.next_targets(outputs)[0]
            if not np.isfinite(values).all():
                raise NonFiniteError
            yield self._step(ahead, values, outputs)
            if self._ranks_categories:
                indices.append(int(values[0]))
                self._previous.add(indices[-1])
            if any(stop[-1] == indices[-1] and indices[-len(stop) :] == stop for stop in self._stops):
                yield GenerationEnd("stop", _text(self._model, indices))
                return
            if ahead < self._horizon:
                outputs, state = run(self._rollout.next_inputs(), state)
        yield GenerationEnd("horizon", _text(self._model, indices))

    def _step(self, ahead: int, values: InputArray, outputs: Outputs) -> GeneratedStep:
        if not self._ranks_categories:
            return GeneratedStep(ahead, values)
        top, scores = (outputs[name][0] for name in RANKED)
        own = float(scores[top == int(values[0])][0])
        if self._options.logprobs is None:
            return GeneratedStep(ahead, values, own)
        if self._listed_only:
            top, scores = (listed_outputs(self._model, outputs)[name][0] for name in RANKED)
        return GeneratedStep(ahead, values, own, top[: self._options.logprobs], scores[: self._options.logprobs])


def generated_fields(model: StepModel, step: GeneratedStep) -> dict[str, Any]:
    """Returns the fields of a step, indices replaced by categories."""
    categories = model.manifest.categories
    if step.log_probability is None:
        return {"ahead": step.ahead, "values": step.values} | dtype_field(model)
    token = {"ahead": step.ahead, "token": categories[int(step.values[0])], "log_probability": step.log_probability}
    if step.top is None:
        return token
    return token | {"top": category_names(step.top.tolist(), categories), "log_probabilities": step.log_probabilities}


def _check_options(model: StepModel, options: GenerationOptions, *, listed_only: bool) -> None:
    """Raises InputError if the options do not fit the model."""
    if listed_only:
        require_listed(model)
    if not model.manifest.head.ranks_categories:
        inapplicable = [
            name for name in GenerationOptions._fields if name != "temperature" and getattr(options, name) is not None
        ]
        if inapplicable:
            raise InputError(*(Fault(name, "the model predicts numbers, not categories") for name in inapplicable))
    elif (options.logprobs or 0) > (most := ranking_size(model, listed_only=listed_only)):
        raise InputError(
            Fault("logprobs", f"the model outputs the likeliest {most}{' that are listed' if listed_only else ''}")
        )


def _stops(model: StepModel, stop: Sequence[Category]) -> list[list[int]]:
    """Returns the indices of each stop sequence."""
    if not stop:
        return []
    manifest = model.manifest
    target = manifest.feature(manifest.head.targets[0])
    stops = []
    for number, sequence in enumerate(stop):
        field = f"stop[{number}]"
        is_text = isinstance(sequence, str) and target.text is not None
        try:
            indices = to_array(sequence if is_text else [sequence], (target,), dtype=model.input_dtype)[:, 0]  # type: ignore[arg-type]
        except InputError as error:  # a stop is one value in the request, not the steps that it becomes
            raise InputError(*(Fault(field, fault.message) for fault in error.faults)) from None
        if (indices >= len(target.categories)).any():
            raise InputError(Fault(field, f"{sequence!r:.100} contains a value that is never drawn"))
        stops.append([int(index) for index in indices])
    return stops


def _read_indices(model: StepModel, read: InputArray) -> set[int]:
    """Returns the indices of the target's categories among the inputs."""
    manifest = model.manifest
    column = read[:, manifest.feature_names.index(manifest.head.targets[0])]
    return {int(index) for index in column[~np.isnan(column)]}


def _text(model: StepModel, indices: Sequence[int]) -> str | None:
    """Returns the drawn text, or None if the model reads no text; invalid bytes are replaced by U+FFFD."""
    manifest = model.manifest
    feature = manifest.features[0]
    if feature.text is None or len(manifest.features) > 1 or not manifest.head.ranks_categories:
        return None
    if feature.text == "bytes":
        return bytes(int(feature.categories[index]) for index in indices).decode(errors="replace")
    return "".join(str(feature.categories[index]) for index in indices)
