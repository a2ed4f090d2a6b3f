"""Truncated backpropagation with carried state."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from tests.bundles import make_network
from training import loop
from training.config import Cell, Model, Train
from training.data import Series
from training.loop import Stream, TrainingError
from training.nets import Network, Scaling

CELLS: tuple[Cell, ...] = get_args(Cell)


def series(values: NDArray[np.floating], name: str = "s") -> Series:
    column = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    held = max(1, int(len(column) * 0.15))
    return Series(name, column, len(column) - 2 * held, len(column) - held)


def settings(**told: float) -> Train:
    return Train.model_validate({"epochs": 1, "window": 1000, "batch": 1, "clip": 1e9} | told)


def noise(steps: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((steps, 1)).astype(np.float32))


def epoch(network: Network, scaled: Sequence[Tensor], told: Train, rate: float) -> float:
    """One epoch of plain gradient descent, so that the change of the weights is the gradient."""
    optimiser = torch.optim.SGD(network.parameters(), lr=rate)
    streams = loop.cut([len(one) for one in scaled], told.batch)
    return loop._epoch(network, optimiser, scaled, loop.grouped(streams, told.batch), told, lambda _: None)


def weights(network: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def gradient(network: Network, scaled: Tensor) -> Tensor:
    """Of the mean loss over the whole sequence, by full backpropagation."""
    said, _ = network(scaled[:-1, None], network.initial(1))
    loss = network.loss(said, scaled[1:, None]).mean()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(network.parameters()))])


@pytest.mark.parametrize("cell", CELLS)
def test_one_window_is_full_backpropagation(cell: Cell) -> None:
    """Where one window covers the sequence nothing is truncated: the step taken is the full gradient."""
    network, scaled = make_network(cell=cell, layers=2), noise(60)
    expected, before = gradient(network, scaled), weights(network)
    epoch(network, [scaled], settings(), rate=1.0)
    torch.testing.assert_close(before - weights(network), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [1, 7, 59])
@pytest.mark.parametrize("cell", CELLS)
def test_the_state_is_carried_over_windows(cell: Cell, window: int) -> None:
    """Cut into windows the loss is that of one pass over the whole: each window starts where the last one ended."""
    network, scaled = make_network(cell=cell), noise(60)
    said, _ = network(scaled[:-1, None], network.initial(1))
    whole = float(network.loss(said, scaled[1:, None]).mean().detach())
    assert epoch(network, [scaled], settings(window=window), rate=0.0) == pytest.approx(whole, rel=1e-5)


def test_the_gradient_stops_at_the_windows_edge() -> None:
    """A window's gradient is that of its own steps from a fixed state: what came before is read, not blamed."""
    network, scaled = make_network(cell="gru"), noise(41)
    first, state = network(scaled[:20, None], network.initial(1))
    held = tuple(tensor.detach() for tensor in state)
    second, _ = network(scaled[20:40, None], held)
    parameters = list(network.parameters())
    step = torch.zeros_like(weights(network))
    for said, following in ((first, scaled[1:21]), (second, scaled[21:41])):
        grads = torch.autograd.grad(network.loss(said, following[:, None]).mean(), parameters)
        step += torch.cat([grad.flatten() for grad in grads])
    before, rate = weights(network), 1e-3  # so small a step that the second window sees nearly the first's weights
    epoch(network, [scaled], settings(window=20), rate=rate)
    torch.testing.assert_close((before - weights(network)) / rate, step, rtol=0.02, atol=2e-3)
    assert not torch.allclose(step / 2, gradient(network, scaled), rtol=0.02, atol=2e-3)


def test_streams_of_unequal_length_count_each_step_once() -> None:
    """Padding weighs nothing: the epoch's loss is the mean over real steps of all series, each from its own start."""
    network, scaled = make_network(), [noise(31, 1), noise(11, 2), noise(5, 3)]
    losses = []
    for one in scaled:
        said, _ = network(one[:-1, None], network.initial(1))
        losses.append(network.loss(said, one[1:, None]).detach().flatten())
    expected = float(torch.cat(losses).mean())
    assert epoch(network, scaled, settings(batch=3, window=4), rate=0.0) == pytest.approx(expected, rel=1e-5)


def test_padding_has_no_part_in_the_gradient() -> None:
    """Beside a longer one, a short stream's padding neither adds to the gradient nor thins it out."""
    network, scaled = make_network(), [noise(31, 1), noise(6, 2)]
    losses = []
    for one in scaled:
        said, _ = network(one[:-1, None], network.initial(1))
        losses.append(network.loss(said, one[1:, None]).flatten())
    grads = torch.autograd.grad(torch.cat(losses).mean(), list(network.parameters()))
    before = weights(network)
    epoch(network, scaled, settings(batch=2), rate=1.0)
    expected = torch.cat([grad.flatten() for grad in grads])
    torch.testing.assert_close(before - weights(network), expected, rtol=1e-4, atol=1e-6)


@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=6),
    st.integers(1, 9),
    st.integers(1, 70),
)
def test_every_pair_is_trained_on_once(lengths: list[int], batch: int, window: int) -> None:
    """However series are cut, grouped and windowed, each step with its successor appears exactly once, in order."""
    scaled = [torch.arange(length, dtype=torch.float32)[:, None] + 1000 * i for i, length in enumerate(lengths)]
    streams = loop.cut(lengths, batch)
    groups = loop.grouped(streams, batch)
    assert Counter(stream for group in groups for stream in group) == Counter(streams)
    assert all(1 <= len(group) <= batch for group in groups)
    seen: Counter[tuple[float, float]] = Counter()
    for group in groups:
        at = [float(scaled[stream.series][stream.start]) for stream in group]
        steps = 0
        for inputs, following, real in loop.windows(scaled, group, window):
            assert inputs.shape == following.shape == (len(real), len(group), 1)
            assert 1 <= len(real) <= window
            steps += len(real)
            for time, row in real.nonzero().tolist():
                assert float(inputs[time, row]) == at[row]
                at[row] += 1
                seen[float(inputs[time, row]), float(following[time, row])] += 1
        assert steps == loop.group_steps(group)
    expected = {(1000.0 * i + t, 1000.0 * i + t + 1) for i, n in enumerate(lengths) for t in range(n - 1)}
    assert seen == Counter(dict.fromkeys(expected, 1))


def test_one_series_becomes_as_many_streams_as_asked() -> None:
    """A long series is cut into about `batch` even streams; many series stay whole."""
    streams = loop.cut([10_001], 32)
    assert 30 <= len(streams) <= 33
    assert {stream.stop - stream.start for stream in streams[:-1]} == {streams[0].stop}
    assert loop.cut([5, 9, 7], 2) == [Stream(0, 0, 4), Stream(1, 0, 8), Stream(2, 0, 6)]


def test_the_same_seed_gives_the_same_weights() -> None:
    """A run can be had again, bit for bit, dropout and shuffling included; another seed gives another."""
    data = [series(noise(80, i).numpy()) for i in range(5)]

    def fitted(seed: int, before: int) -> Tensor:
        torch.manual_seed(99)
        model = Model(cell="lstm", layers=2, units=6, dropout=0.3)
        network = Network(model, Scaling(torch.zeros(1), torch.ones(1)), [0])
        torch.manual_seed(before)
        loop.fit(network, data, settings(epochs=3, batch=2, window=16, seed=seed), quiet=True)
        return weights(network)

    assert torch.equal(fitted(1, before=5), fitted(1, before=6))
    assert not torch.equal(fitted(1, before=5), fitted(2, before=5))


def test_early_stopping_keeps_the_best_weights() -> None:
    """The weights that are left are those of the lowest validation loss, not the last; and patience ends the run."""
    data = [series(noise(60).numpy())]
    network = make_network(units=24)
    told = settings(epochs=200, window=20, learning_rate=0.03, patience=4, clip=1.0)
    history = loop.fit(network, data, told, quiet=True)
    assert history.validation[history.best] == min(history.validation)
    assert history.best == history.validation.index(min(history.validation))
    assert len(history.train) == len(history.validation) == history.best + 1 + 4 < 200
    scaled = [network.scaling(torch.from_numpy(one.values)) for one in data]
    assert loop.validate(network, scaled, data) == history.validation[history.best]
    assert history.validation[-1] > history.validation[history.best]


def test_validation_is_of_the_validation_steps_alone() -> None:
    """The state reads the series from its beginning, only validation steps are scored, and the test part is unread."""
    network = make_network()
    one, two = series(noise(40, 1).numpy(), "one"), series(noise(90, 2).numpy(), "two")
    scaled = [torch.from_numpy(part.values) for part in (one, two)]
    losses = []
    for part, values in zip((one, two), scaled, strict=True):
        said, _ = network(values[:-1, None], network.initial(1))
        each = network.loss(said, values[1:, None]).flatten().tolist()  # of predicting steps 1, 2, ...
        losses += each[part.validation_from - 1 : part.test_from - 1]
    found = loop.validate(network, scaled, [one, two])
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for part, values in zip((one, two), scaled, strict=True):
        values[part.test_from :] = 1e6
    assert loop.validate(network, scaled, [one, two]) == found


def test_the_test_part_is_never_trained_on() -> None:
    """Weights and their choice depend on no step of the test part."""
    first = series(noise(80).numpy())
    second = series(noise(80).numpy())
    second.values[second.test_from :] += 50
    results = []
    for one in (first, second):
        network = make_network()
        loop.fit(network, [one], settings(epochs=3, window=16), quiet=True)
        results.append(weights(network))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_loss_that_is_no_number_ends_the_run(where: str) -> None:
    """A diverged run says so, and what to try, rather than leaving weights of NaN."""
    one = series(noise(60).numpy())
    if where == "train":
        one.values[10] = math.inf
    else:
        one.values[one.validation_from + 2] = math.nan
    says = r"the loss is (inf|nan) after \d+ steps" if where == "train" else "epoch 1: the validation loss is nan"
    with pytest.raises(TrainingError, match=says + ".*; try a learning_rate below 0.25"):
        loop.fit(make_network(), [one], settings(window=8, learning_rate=0.25), quiet=True)


def test_the_gradient_is_clipped() -> None:
    """No step follows a gradient longer than `clip`; a shorter one is left as it is."""
    scaled = noise(40) * 20
    network = make_network()
    full = float(gradient(network, scaled).norm())
    assert full > 0.5
    for clip, expected in ((0.1, 0.1), (full * 2, full)):
        network = make_network()
        before = weights(network)
        epoch(network, [scaled], settings(clip=clip), rate=1.0)
        assert float((before - weights(network)).norm()) == pytest.approx(expected, rel=1e-3)


def held_out(network: Network, one: Series) -> tuple[Tensor, NDArray[np.float32]]:
    """What the network says of each test step, in the data's units, (steps, parameters), and the truth."""
    network.eval()
    with torch.no_grad():
        said, _ = network(network.scaling(torch.from_numpy(one.values))[:-1, None], network.initial(1))
    return said[one.test_from - 1 :, 0, 0], one.values[one.test_from :, 0]


def fitted(one: Series, *, cell: Cell, units: int, **told: float) -> Network:
    torch.manual_seed(0)
    train = torch.from_numpy(one.train)
    network = Network(Model(cell=cell, units=units), Scaling(train.mean(dim=0), train.std(dim=0)), [0])
    loop.fit(network, [one], settings(**{"clip": 1.0, "window": 50, "batch": 16} | told), quiet=True)
    return network


def test_an_autoregression_is_learnt_to_its_optimum() -> None:
    """AR(1): the one-step error comes within 5% of the innovations' deviation, the least that any model can reach."""
    rng, sigma = np.random.default_rng(0), 0.5
    values = np.zeros(6000)
    for t in range(1, len(values)):
        values[t] = 0.8 * values[t - 1] + sigma * rng.standard_normal()
    one = series(values)
    network = fitted(one, cell="gru", units=8, epochs=25, learning_rate=0.01)
    said, actual = held_out(network, one)
    mean = said[:, 0] * network.scaling.std + network.scaling.mean
    error = float(np.sqrt(((mean.numpy() - actual) ** 2).mean()))
    assert error == pytest.approx(sigma, rel=0.05)
    deviation = float((said[:, 1].exp() * network.scaling.std).mean())
    assert deviation == pytest.approx(sigma, rel=0.1)


def test_a_sine_is_learnt() -> None:
    """A sine has no noise: the error falls below a tenth of the last value's."""
    one = series(np.sin(np.arange(2000) * 2 * np.pi / 25))
    network = fitted(one, cell="lstm", units=16, epochs=40, learning_rate=0.01)
    said, actual = held_out(network, one)
    mean = (said[:, 0] * network.scaling.std + network.scaling.mean).numpy()
    naive = np.abs(one.values[one.test_from - 1 : -1, 0] - actual).mean()
    assert np.abs(mean - actual).mean() < naive / 10
