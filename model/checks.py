"""Checks that any bundle must pass before it is trusted with sessions.

Owns the four properties that serving rests on. The reference is the model itself, run on one row and one step a call.

1. A batch of N rows gives the outputs and states of N single runs.
2. A sequence cut into chunks gives the outputs and the state of single steps.
3. Rows of different lengths in one batch give the outputs and states of each row alone.
4. A state that is converted to bytes and back has the same bits, and the steps after it the same outputs.

All numbers must be finite: NaN equals nothing, not even itself.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onward.model import error_units, tolerance, transforms
from onward.model.errors import OnwardError
from onward.model.inputs import InputArray
from onward.model.manifest import RANKED, Feature
from onward.model.runner import Outputs, StepModel
from onward.model.state import State

TOLERANCE = 1e-5
"""The allowed difference of models that are not `exact`, relative to the largest magnitude over the row's steps.

The state after a row's last step may be near zero by chance, where a rounding error is large beside it.
"""

Result = tuple[Outputs, State]
"""A row's outputs (time,), and its state (1,) after the last step."""
Trajectory = tuple[Outputs, State]
"""A row's outputs and its states after each step, both (time,)."""


class CheckError(OnwardError):
    """The bundle breaks one of the properties; the message names the property, the tensor and the difference."""


def check(model: StepModel, sequences: InputArray | None = None, *, steps: int = 200, seed: int = 0) -> None:
    """Runs every check on sequences (rows, time, features), by default on random ones like the parity inputs.

    steps, seed: the length and the seed of the random sequences. Raises CheckError at the first failing check.
    Results must have equal bits if the manifest says `exact`.
    """
    data = sequences if sequences is not None else plausible_inputs(model, rows=7, steps=steps, seed=seed)
    singles = [_step_by_step(model, row) for row in data]
    for i, single in enumerate(singles):
        _require_finite(f"row {i} alone", _prefix(single))
    for run_check in (_batch_of_rows, _chunks, _ragged, _state_bytes):
        run_check(model, data, singles)


def plausible_inputs(model: StepModel, *, rows: int, steps: int, seed: int) -> InputArray:
    """Returns random inputs (rows, steps, features).

    Numbers have the mean and the deviation of the manifest's parity inputs in transformed units, categories are
    uniform, and a tenth of the values of nullable features is missing.
    """
    parity, rng = model.manifest.parity, np.random.default_rng(seed)
    unpadded = [np.asarray(row[:length], np.float64) for row, length in zip(parity.inputs, parity.lengths, strict=True)]
    sample = np.concatenate(unpadded)
    columns = [
        _column(feature, sample[:, index], (rows, steps), rng) for index, feature in enumerate(model.manifest.features)
    ]
    return np.stack(columns, axis=-1).astype(model.input_dtype)


def _column(
    feature: Feature, sample: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    if feature.kind == "category":
        column = rng.integers(feature.category_count, size=shape).astype(np.float64)
    else:
        transform, ops = (feature.transform,), transforms.NUMPY
        present = transforms.forward(ops, transform, sample[~np.isnan(sample)][:, np.newaxis])
        mean, std = (float(present.mean()), float(present.std())) if len(present) else (0.0, 1.0)
        column = transforms.inverse(ops, transform, (mean + std * rng.standard_normal(shape))[..., np.newaxis])[..., 0]
    if feature.nullable:
        column[rng.random(shape) < 0.1] = np.nan
    return column


def require_same(model: StepModel, what: str, actual: Result, expected: Trajectory) -> None:
    """Raises CheckError if one row's outputs (time,) and state (1,) are not the expected ones, after the last step."""
    exact = model.manifest.exact
    last = expected[0], expected[1][-1:]
    by_name = {} if exact else error_units.units(model, fields(expected[0]), fields(model.layout.parts(expected[1])))
    for part, name, a, b, scores in _pairs(model, actual, last):
        if exact and not (a.shape == b.shape and a.tobytes() == b.tobytes()):
            raise CheckError(f"{what}: {part} {name!r} differs by up to {tolerance.max_difference(a, b):.3g}")
        if exact:
            continue
        if scores is not None:
            if misranked := tolerance.count_misranked(a, b, scores, TOLERANCE * tolerance.max_magnitude(scores)):
                raise CheckError(f"{what}: {part} {name!r} ranks {misranked} categories differently that are not tied")
        elif not error_units.in_units(a, b, by_name[name]) <= TOLERANCE:
            raise CheckError(f"{what}: {part} {name!r} differs by up to {tolerance.max_difference(a, b):.3g}")


Tensor = NDArray[np.generic]


def fields(rows: NDArray[np.void]) -> dict[str, Tensor]:
    """Returns the fields of structured rows by name."""
    return {name: rows[name] for name in rows.dtype.names or ()}


def _pairs(
    model: StepModel, actual: Result, expected: Result
) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor | None]]:
    """Yields each tensor: part, name, actual and expected values, and the scores that order a ranking, else None."""
    head, parts = model.manifest.head, model.layout.parts
    for part, a, b, by in (
        ("output", actual[0], expected[0], RANKED),
        ("state", parts(actual[1]), parts(expected[1]), head.last_ranking),
    ):
        for name in b.dtype.names or ():
            yield part, name, a[name], b[name], b[by[1]] if head.ranks_categories and by and name == by[0] else None


def _require_finite(what: str, result: Trajectory) -> None:
    for part, rows in (("output", result[0]), ("state", result[1])):
        for name in rows.dtype.names or ():
            if not np.isfinite(rows[name]).all():
                raise CheckError(f"{what}: {part} {name!r} is not finite")


def _step_by_step(model: StepModel, row: InputArray) -> Trajectory:
    """Returns the reference: one row, one step a call."""
    outputs, states = [], [model.layout.initial(1)]
    for step in range(len(row)):
        output, state = model.run_row(row[step : step + 1], states[-1])
        outputs.append(output)
        states.append(state)
    return np.concatenate(outputs), np.concatenate(states[1:])


def _prefix(single: Trajectory, length: int | None = None) -> Trajectory:
    """Returns the outputs of the first `length` steps, by default of all, and the states after each of them."""
    return single[0][:length], single[1][:length]


def _run_ragged(model: StepModel, data: InputArray, lengths: list[int]) -> list[Result]:
    outputs, state = model.run(data, np.asarray(lengths, np.int32), model.layout.initial(len(data)))
    return [(outputs[i, :length], state[i : i + 1]) for i, length in enumerate(lengths)]


def _batch_of_rows(model: StepModel, data: InputArray, singles: list[Trajectory]) -> None:
    state, outputs = model.layout.initial(len(data)), []
    for step in range(data.shape[1]):
        output, state = model.run(data[:, step : step + 1], np.ones(len(data), np.int32), state)
        outputs.append(output)
    batched = np.concatenate(outputs, axis=1)
    for i, single in enumerate(singles):
        actual = batched[i], state[i : i + 1]
        require_same(model, f"a batch of {len(data)} rows against row {i} alone", actual, _prefix(single))


def _chunks(model: StepModel, data: InputArray, singles: list[Trajectory]) -> None:
    for size in (data.shape[1], 64, 7, 2):
        state, outputs = model.layout.initial(1), []
        for start in range(0, data.shape[1], size):
            output, state = model.run_row(data[0, start : start + size], state)
            outputs.append(output)
        require_same(
            model, f"chunks of {size} against single steps", (np.concatenate(outputs), state), _prefix(singles[0])
        )


def _ragged(model: StepModel, data: InputArray, singles: list[Trajectory]) -> None:
    lengths = [max(1, (data.shape[1] * (i + 1)) // len(data)) for i in range(len(data))]
    junk = data.copy()
    for i, length in enumerate(lengths):
        junk[i, length:] = 1e6  # padding beyond a row's length must not matter
    for i, (length, actual) in enumerate(zip(lengths, _run_ragged(model, junk, lengths), strict=True)):
        require_same(
            model, f"a ragged batch against row {i} of {length} steps alone", actual, _prefix(singles[i], length)
        )


def _state_bytes(model: StepModel, data: InputArray, singles: list[Trajectory]) -> None:
    half = data.shape[1] // 2
    first, before = model.run_row(data[0, :half], model.layout.initial(1))
    restored = model.layout.stack([before[0].tobytes()])
    for name in before.dtype.names or ():
        if restored[name].tobytes() != before[name].tobytes():  # a forgetting model could hide the loss a step later
            raise CheckError(f"a state that went through bytes: state {name!r} differs")
    second, state = model.run_row(data[0, half:], restored)
    require_same(
        model, "a state that went through bytes", (np.concatenate([first, second]), state), _prefix(singles[0])
    )
