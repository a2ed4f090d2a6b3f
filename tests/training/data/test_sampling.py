"""Sampling of streams with carried state, and of random windows with a burn-in."""

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from onward.training.config import Train
from onward.training.data import sampling
from onward.training.data.sampling import Stream, Window
from onward.training.data.training_examples import Example

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(lambda lengths: max(lengths) > 1)
"""Lengths of series. A series of a single step has nothing to train on, so at least one is longer."""


def counted(lengths: list[int]) -> tuple[list[Example], list[int]]:
    """Returns series whose numbers encode series and step, with the next number as target; and their trained steps."""
    examples = []
    for i, length in enumerate(lengths):
        numbers = torch.arange(length + 1, dtype=torch.float32)[:, None] + 1000 * i
        mask = torch.ones(length, 1)
        mask[-1] = 0
        examples.append(Example(numbers[:-1], numbers[1:], mask, length - 1, (0, 0)))
    return examples, [example.training_steps for example in examples]


@given(LENGTHS, st.integers(1, 9), st.integers(1, 70))
def test_every_pair_is_trained_on_once(lengths: list[int], batch: int, window: int) -> None:
    """However series are cut, grouped and windowed, each step with its successor appears exactly once, in order."""
    examples, trained = counted(lengths)
    streams = sampling.cut_streams(trained, batch)
    groups = sampling.group_by_length(streams, batch)
    assert Counter(stream for group in groups for stream in group) == Counter(streams)
    assert all(1 <= len(group) <= batch for group in groups)
    seen: Counter[tuple[float, float]] = Counter()
    for group in groups:
        at = [float(examples[stream.series].inputs[stream.start]) for stream in group]
        steps = 0
        for inputs, targets, mask, scored in sampling.windows(examples, group, window):
            assert inputs.shape == targets.shape == mask.shape == (len(inputs), len(group), 1)
            assert 1 <= len(inputs) <= window
            assert scored == int(mask.sum()) > 0
            steps += len(inputs)
            for time, row, _ in mask.nonzero().tolist():
                assert float(inputs[time, row]) == at[row]
                at[row] += 1
                seen[float(inputs[time, row]), float(targets[time, row])] += 1
        assert steps == sampling.group_steps(group)
    expected = {(1000.0 * i + t, 1000.0 * i + t + 1) for i, n in enumerate(lengths) for t in range(n - 1)}
    assert seen == Counter(dict.fromkeys(expected, 1))


@given(st.lists(st.integers(0, 500), min_size=1, max_size=8).filter(any), st.integers(1, 40))
def test_streams_are_equally_long(lengths: list[int], batch: int) -> None:
    """Series that are long enough become `batch` streams, and no cut could make the longest one shorter."""
    streams = sampling.cut_streams(lengths, batch)
    series, longest = sum(length > 0 for length in lengths), max(stream.steps for stream in streams)
    assert len(streams) == max(series, min(batch, sum(lengths)))
    if series <= batch:
        shorter = sum(math.ceil(length / (longest - 1)) for length in lengths) if longest > 1 else math.inf
        assert shorter > batch
    for number in range(len(lengths)):
        steps = [stream.steps for stream in streams if stream.series == number]
        assert not steps or max(steps) - min(steps) <= 1


@given(st.integers(1, 200), st.integers(1, 40))
def test_no_group_is_a_rest(count: int, batch: int) -> None:
    """The groups of an epoch are as few as `batch` allows and equally large, to within one stream."""
    for groups in (
        sampling.group_by_length([Stream(number, 0, 5) for number in range(count)], batch),
        sampling.make_sampler([5] * count, window_settings(window=5, batch=batch))(np.random.default_rng(0)),
    ):
        sizes = [len(group) for group in groups]
        assert len(groups) == math.ceil(count / batch)
        assert max(sizes) - min(sizes) <= 1


def test_a_stream_longer_than_a_window_has_no_short_rest() -> None:
    """130 steps in windows of at most 64 are three windows of 43 or 44 steps, not two of 64 and one of 2."""
    examples, trained = counted([131])
    (group,) = sampling.group_by_length(sampling.cut_streams(trained, 1), 1)
    assert [len(window.inputs) for window in sampling.windows(examples, group, 64)] == [43, 43, 44]


def window_settings(**keys: object) -> Train:
    return Train.model_validate({"sampling": "windows"} | keys)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 70), st.integers(0, 30), st.integers(0, 99))
def test_random_windows_score_every_pair_once(
    lengths: list[int], batch: int, window: int, burn_in: int, seed: int
) -> None:
    """Wherever the cuts fall, each pair is scored once, after the whole burn-in or from its series' beginning."""
    examples, trained = counted(lengths)
    settings = window_settings(window=window, burn_in=burn_in, batch=batch)
    groups = sampling.make_sampler(trained, settings)(np.random.default_rng(seed))
    assert sampling.optimiser_steps(groups, settings) == len(groups)
    seen: Counter[tuple[float, float]] = Counter()
    for group in groups:
        assert 1 <= len(group) <= batch
        ((inputs, targets, mask, scored),) = sampling.windows(examples, group, sampling.steps_per_window(settings))
        assert scored == int(mask.sum()) > 0
        for row, stream in enumerate(group):
            at = [int(time) for time in mask[:, row, 0].nonzero()]
            assert at == list(range(at[0], stream.steps))
            assert len(at) <= window
            start = int(inputs[at[0], row, 0]) % 1000
            assert at[0] == min(burn_in, start)
            for time in range(stream.steps):
                assert int(inputs[time, row, 0]) == 1000 * stream.series + start - at[0] + time
                if time in at:
                    seen[float(inputs[time, row, 0]), float(targets[time, row, 0])] += 1
    expected = {(1000.0 * i + t, 1000.0 * i + t + 1) for i, n in enumerate(lengths) for t in range(n - 1)}
    assert seen == Counter(dict.fromkeys(expected, 1))


def test_random_windows_are_random() -> None:
    """Long series are cut elsewhere every epoch, windows of all series are mixed, and a short series stays whole."""
    sample = sampling.make_sampler([399, 399, 29], window_settings(window=40, batch=4))
    rng = np.random.default_rng(0)
    first, second = sample(rng), sample(rng)
    assert {stream for group in first for stream in group} != {stream for group in second for stream in group}
    assert sum(len({stream.series for stream in group}) > 1 for group in first) > len(first) / 2
    for groups in (first, second):
        assert Stream(2, 0, 29) in [stream for group in groups for stream in group]
    assert sample(np.random.default_rng(0)) == first


@given(LENGTHS, st.integers(1, 7), st.integers(1, 50), st.integers(0, 20), st.integers(1, 4))
def test_processes_divide_the_streams(lengths: list[int], batch: int, window: int, burn_in: int, world: int) -> None:
    """The shares add up to the whole window: as many windows, the same total, each scored step in exactly one share."""
    examples, trained = counted(lengths)
    settings = window_settings(window=window, burn_in=burn_in, batch=batch)
    group = sampling.make_sampler(trained, settings)(np.random.default_rng(0))[0]

    def pairs(parts: Iterable[Window]) -> Counter[tuple[float, float]]:
        return Counter(
            (float(part.inputs[time, row, 0]), float(part.targets[time, row, 0]))
            for part in parts
            for time, row, _ in part.mask.nonzero().tolist()
        )

    whole = list(sampling.windows(examples, group, 7))
    shares = [list(sampling.windows(examples, group, 7, rank=rank, world=world)) for rank in range(world)]
    for i, expected in enumerate(whole):
        parts = [share[i] for share in shares]
        assert pairs([expected]) == pairs(parts)
        assert {part.scored_steps for part in parts} == {expected.scored_steps}
        assert {len(part.inputs) for part in parts} == {len(expected.inputs)}
        assert all(part.inputs.shape[1] == part.mask.shape[1] >= 1 for part in parts)
    assert {len(share) for share in shares} == {len(whole)}
