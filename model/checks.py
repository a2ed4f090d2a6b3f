"""What any bundle must pass before it is trusted with sessions.

Owns the four properties that serving rests on. Uses nothing but the model itself: what it says alone is the reference.

1. A batch of N rows gives what N single runs give.
2. A sequence cut into chunks gives what single steps give.
3. Rows of different lengths in one batch give what each gives alone.
4. A state that went through bytes is the same bits, and gives what it gave before.

All of it on finite numbers: a model that says NaN agrees with nothing, not even with itself.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from onward.model import tolerance
from onward.model.errors import OnwardError
from onward.model.manifest import RANKED, Feature
from onward.model.runner import Outputs, StepModel
from onward.model.state import State

TOLERANCE = 1e-5
"""Relative to each output's largest magnitude, for models that do not claim equal bits (`exact`)."""

Answer = tuple[Outputs, State]
"""A row's outputs (time,), and its state after the last (1,)."""
Stepped = tuple[Outputs, State]
"""A row's outputs, and its states after each of them: (time,) both."""


class CheckError(OnwardError):
    """A bundle that breaks one of the properties; the message names the property, the tensor and the difference."""


def check(model: StepModel, sequences: NDArray[np.float32] | None = None, *, steps: int = 200, seed: int = 0) -> None:
    """Runs every check over sequences (rows, time, features), by default `steps` drawn from the parity inputs.

    Raises CheckError for the first that fails. Where the manifest says `exact`, equal means equal bits.
    """
    data = sequences if sequences is not None else plausible(model, rows=7, steps=steps, seed=seed)
    singles = [_stepped(model, row) for row in data]
    for i, single in enumerate(singles):
        _finite(f"row {i} alone", _until(single))
    for check_one in (_batch_of_rows, _chunks, _ragged, _bytes):
        check_one(model, data, singles)


def plausible(model: StepModel, *, rows: int, steps: int, seed: int) -> NDArray[np.float32]:
    """(rows, steps, features) noise: numbers with the mean and deviation of the manifest's parity inputs, any category,
    and a tenth missing where values may be.
    """
    parity, rng = model.manifest.parity, np.random.default_rng(seed)
    known = [np.asarray(row[:length], np.float64) for row, length in zip(parity.inputs, parity.lengths, strict=True)]
    sample = np.concatenate(known)
    columns = [
        _column(feature, sample[:, place], (rows, steps), rng) for place, feature in enumerate(model.manifest.features)
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def _column(
    feature: Feature, sample: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.float64]:
    if feature.kind == "category":
        column = rng.integers(feature.category_count, size=shape).astype(np.float64)
    else:
        seen = sample[~np.isnan(sample)]
        mean, std = (float(seen.mean()), float(seen.std())) if len(seen) else (0.0, 1.0)
        column = mean + std * rng.standard_normal(shape)
    if feature.nullable:
        column[rng.random(shape) < 0.1] = np.nan
    return column


def same(model: StepModel, what: str, got: Answer, expected: Answer) -> None:
    """Holds one row's outputs (time,) and state (1,) to another's. Raises CheckError."""
    exact = model.manifest.exact
    least = (
        1.0 if model.manifest.head.ranks_categories else 1e-30
    )  # log-probabilities have no unit, numbers may be small
    for part, name, a, b, scores in _pairs(model, got, expected):
        if exact and not (a.shape == b.shape and a.tobytes() == b.tobytes()):
            raise CheckError(f"{what}: {part} {name!r} differs by up to {tolerance.max_difference(a, b):.3g}")
        if exact:
            continue
        if scores is not None:
            if moved := tolerance.count_misranked(a, b, scores, TOLERANCE * tolerance.max_magnitude(scores)):
                raise CheckError(f"{what}: {part} {name!r} differs in {moved} places that are not tied")
        elif not (worst := tolerance.max_difference(a, b)) <= TOLERANCE * max(tolerance.max_magnitude(b), least):
            raise CheckError(f"{what}: {part} {name!r} differs by up to {worst:.3g}")


Tensor = NDArray[np.generic]


def _pairs(model: StepModel, got: Answer, expected: Answer) -> Iterator[tuple[str, str, Tensor, Tensor, Tensor | None]]:
    """Each tensor of both answers, and what a ranking is by."""
    head = model.manifest.head
    for part, a, b, by in (("output", got[0], expected[0], RANKED), ("state", got[1], expected[1], head.last_ranking)):
        for name in b.dtype.names or ():
            yield part, name, a[name], b[name], b[by[1]] if head.ranks_categories and by and name == by[0] else None


def _finite(what: str, answer: Answer) -> None:
    for part, rows in (("output", answer[0]), ("state", answer[1])):
        for name in rows.dtype.names or ():
            if not np.isfinite(rows[name]).all():
                raise CheckError(f"{what}: {part} {name!r} is not finite")


def _stepped(model: StepModel, row: NDArray[np.float32]) -> Stepped:
    """The reference: one row, one step a call."""
    outputs, states = [], [model.layout.initial(1)]
    for step in range(len(row)):
        output, state = model.run_row(row[step : step + 1], states[-1])
        outputs.append(output)
        states.append(state)
    return np.concatenate(outputs), np.concatenate(states[1:])


def _until(single: Stepped, length: int | None = None) -> Answer:
    """What the row said and was after so many steps, all where it is left out."""
    outputs, states = single[0][:length], single[1][:length]
    return outputs, states[-1:]


def _rows(model: StepModel, data: NDArray[np.float32], lengths: list[int]) -> list[Answer]:
    outputs, state = model.run(data, np.asarray(lengths, np.int32), model.layout.initial(len(data)))
    return [(outputs[i, :length], state[i : i + 1]) for i, length in enumerate(lengths)]


def _batch_of_rows(model: StepModel, data: NDArray[np.float32], singles: list[Stepped]) -> None:
    state, outputs = model.layout.initial(len(data)), []
    for step in range(data.shape[1]):
        output, state = model.run(data[:, step : step + 1], np.ones(len(data), np.int32), state)
        outputs.append(output)
    together = np.concatenate(outputs, axis=1)
    for i, single in enumerate(singles):
        got = together[i], state[i : i + 1]
        same(model, f"a batch of {len(data)} rows against row {i} alone", got, _until(single))


def _chunks(model: StepModel, data: NDArray[np.float32], singles: list[Stepped]) -> None:
    for size in (data.shape[1], 64, 7, 2):
        state, outputs = model.layout.initial(1), []
        for start in range(0, data.shape[1], size):
            output, state = model.run_row(data[0, start : start + size], state)
            outputs.append(output)
        same(model, f"chunks of {size} against single steps", (np.concatenate(outputs), state), _until(singles[0]))


def _ragged(model: StepModel, data: NDArray[np.float32], singles: list[Stepped]) -> None:
    lengths = [max(1, (data.shape[1] * (i + 1)) // len(data)) for i in range(len(data))]
    junk = data.copy()
    for i, length in enumerate(lengths):
        junk[i, length:] = 1e6  # what lies beyond a row's length must not matter
    for i, (length, got) in enumerate(zip(lengths, _rows(model, junk, lengths), strict=True)):
        same(model, f"a ragged batch against row {i} of {length} steps alone", got, _until(singles[i], length))


def _bytes(model: StepModel, data: NDArray[np.float32], singles: list[Stepped]) -> None:
    half = data.shape[1] // 2
    first, before = model.run_row(data[0, :half], model.layout.initial(1))
    kept = model.layout.stack([before[0].tobytes()])
    for name in before.dtype.names or ():
        if kept[name].tobytes() != before[name].tobytes():  # a step later the loss might be forgotten
            raise CheckError(f"a state that went through bytes: state {name!r} differs")
    second, state = model.run_row(data[0, half:], kept)
    same(model, "a state that went through bytes", (np.concatenate([first, second]), state), _until(singles[0]))
