"""Truncated backpropagation with carried state."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from onward.model.inputs import InputArray
from onward.model.manifest import Feature
from onward.training.config import Cell, Model, Train
from onward.training.data import sampling
from onward.training.data.datasets import Series
from onward.training.data.training_examples import Example, make_example
from onward.training.errors import TrainingError
from onward.training.fit import training_loop
from onward.training.fit.checkpoint import Checkpoint
from onward.training.fit.devices import Process
from onward.training.fit.optimisation import AdamW
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from onward.training.network.ops import TorchOps
from tests.helpers.random_bundles import make_network, readout, signature

CELLS: tuple[Cell, ...] = get_args(Cell)


def series(values: NDArray[np.floating], name: str = "s") -> Series:
    column = np.ascontiguousarray(values, np.float32).reshape(len(values), -1)
    test_steps = max(1, int(len(column) * 0.15))
    return Series(name, column, len(column) - 2 * test_steps, len(column) - test_steps)


def settings(**keys: object) -> Train:
    return Train.model_validate({"epochs": 1, "window": 1000, "batch": 1, "clip": 1e9} | keys)


def noise(steps: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((steps, 1)).astype(np.float32))


def predicting(scaled: Tensor) -> Example:
    """Returns an example of scaled values (time, 1): each step's target is the next, and the last is masked."""
    targets = torch.cat((scaled[1:], torch.full_like(scaled[:1], 1e3)))
    mask = torch.cat((torch.ones_like(scaled[1:]), torch.zeros_like(scaled[:1])))
    return Example(scaled, targets, mask, len(scaled) - 1, (0, 0))


def epoch(network: Network, scaled: Sequence[Tensor], run_settings: Train, rate: float) -> float:
    """Trains an epoch by plain gradient descent, so that the weights change by the gradient; returns the loss."""
    return measured(network, [predicting(values) for values in scaled], run_settings, rate)[0]


class GradientDescent(AdamW):
    """Plain gradient descent."""

    def __init__(self, network: Network) -> None:
        super().__init__(network, Train())
        self._weights = list(network.parameters())

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for weight in self._weights:
            if weight.grad is not None:
                weight.sub_(weight.grad, alpha=rate)


def measured(
    network: Network, examples: Sequence[Example], run_settings: Train, rate: float
) -> tuple[float, list[float]]:
    """Returns the epoch's mean loss, and the gradients' norms."""
    optimiser = GradientDescent(network)
    trainer = training_loop.Trainer(
        network, training_loop.Objective(network, run_settings), optimiser, run_settings, Process(torch.device("cpu"))
    )
    groups = sampling.make_sampler([example.training_steps for example in examples], run_settings)(
        np.random.default_rng(0)
    )
    losses, norms, scored = zip(*trainer.epoch(examples, groups, itertools.repeat(rate)), strict=True)
    return sum(losses) / sum(scored), list(norms)


def weights(network: Network) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])


def gradient(network: Network, scaled: Tensor) -> Tensor:
    """Returns the gradient of the mean loss over the whole sequence, by full backpropagation."""
    hidden, _ = network(scaled[:-1, None], network.initial(1))
    loss = network.head.loss(hidden, scaled[1:, None]).mean()
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(network.parameters()))])


@pytest.mark.parametrize("cell", CELLS)
def test_one_window_is_full_backpropagation(cell: Cell) -> None:
    """The step is the full gradient if one window covers the sequence, since nothing is truncated."""
    network, scaled = make_network(cell=cell, layers=2), noise(60)
    expected, before = gradient(network, scaled), weights(network)
    epoch(network, [scaled], settings(), rate=1.0)
    torch.testing.assert_close(before - weights(network), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [1, 7, 59])
@pytest.mark.parametrize("cell", CELLS)
def test_the_state_is_carried_over_windows(cell: Cell, window: int) -> None:
    """The loss over windows equals that of one pass over the whole: each window starts where the last one ended."""
    network, scaled = make_network(cell=cell), noise(60)
    hidden, _ = network(scaled[:-1, None], network.initial(1))
    whole = float(network.head.loss(hidden, scaled[1:, None]).mean().detach())
    assert epoch(network, [scaled], settings(window=window), rate=0.0) == pytest.approx(whole, rel=1e-5)


def test_the_gradient_stops_at_the_windows_edge() -> None:
    """A window's gradient is that of its own steps from a fixed state; no gradient reaches earlier steps."""
    network, scaled = make_network(cell="gru"), noise(41)
    first, state = network(scaled[:20, None], network.initial(1))
    detached = tuple(tensor.detach() for tensor in state)
    second, _ = network(scaled[20:40, None], detached)
    parameters = list(network.parameters())
    step = torch.zeros_like(weights(network))
    for hidden, following in ((first, scaled[1:21]), (second, scaled[21:41])):
        grads = torch.autograd.grad(network.head.loss(hidden, following[:, None]).mean(), parameters)
        step += torch.cat([grad.flatten() for grad in grads])
    before, rate = weights(network), 1e-3  # so small a step that the second window sees nearly the first's weights
    epoch(network, [scaled], settings(window=20), rate=rate)
    torch.testing.assert_close((before - weights(network)) / rate, step, rtol=0.02, atol=2e-3)
    assert not torch.allclose(step / 2, gradient(network, scaled), rtol=0.02, atol=2e-3)


def test_streams_of_unequal_length_count_each_step_once() -> None:
    """Padding has no weight: the epoch's loss is the mean over real steps of all series, each from its own start."""
    network, scaled = make_network(), [noise(31, 1), noise(11, 2), noise(5, 3)]
    losses = []
    for values in scaled:
        hidden, _ = network(values[:-1, None], network.initial(1))
        losses.append(network.head.loss(hidden, values[1:, None]).detach().flatten())
    expected = float(torch.cat(losses).mean())
    assert epoch(network, scaled, settings(batch=3, window=4), rate=0.0) == pytest.approx(expected, rel=1e-5)


def test_padding_has_no_part_in_the_gradient() -> None:
    """The padding of a short stream beside a longer one neither adds to the gradient nor dilutes it."""
    network, scaled = make_network(), [noise(31, 1), noise(6, 2)]
    losses = []
    for values in scaled:
        hidden, _ = network(values[:-1, None], network.initial(1))
        losses.append(network.head.loss(hidden, values[1:, None]).flatten())
    grads = torch.autograd.grad(torch.cat(losses).mean(), list(network.parameters()))
    before = weights(network)
    epoch(network, scaled, settings(batch=2), rate=1.0)
    expected = torch.cat([grad.flatten() for grad in grads])
    torch.testing.assert_close(before - weights(network), expected, rtol=1e-4, atol=1e-6)


def test_every_step_has_the_same_weight() -> None:
    """The gradient of a window in which one of two series has ended is the sum over its steps, not their mean."""
    network, scaled = make_network(), [noise(41, 1), noise(11, 2)]
    run_settings = settings(batch=2, window=10)
    _, norms = measured(network, [predicting(values) for values in scaled], run_settings, rate=0.0)
    _, state = network(scaled[0][:30, None], network.initial(1))
    hidden, _ = network(scaled[0][30:40, None], tuple(tensor.detach() for tensor in state))
    loss = network.head.loss(hidden, scaled[0][31:41, None]).sum() / 12.5  # 50 scored steps in four windows
    grads = torch.autograd.grad(loss, list(network.parameters()))
    assert norms[-1] == pytest.approx(float(torch.cat([grad.flatten() for grad in grads]).norm()), rel=1e-4)


def test_the_same_seed_gives_the_same_weights() -> None:
    """A run is repeated bit for bit, dropout and shuffling included; another seed gives other weights."""
    data = [series(noise(80, i).numpy()) for i in range(5)]

    def fitted(seed: int, before: int) -> Tensor:
        torch.manual_seed(99)
        model = Model(cell="lstm", layers=2, units=6, dropout=0.3)
        network = Network(model, signature(), TrainingStatistics(torch.zeros(1), torch.ones(1)))
        torch.manual_seed(before)
        training_loop.fit(network, data, settings(epochs=3, batch=2, window=16, seed=seed), quiet=True)
        return weights(network)

    assert torch.equal(fitted(1, before=5), fitted(1, before=6))
    assert not torch.equal(fitted(1, before=5), fitted(2, before=5))


def test_early_stopping_keeps_the_best_weights() -> None:
    """The final weights are those of the lowest validation loss, not the last; and patience ends the run."""
    data = [series(noise(60).numpy())]
    network = make_network(units=24)
    run_settings = settings(epochs=200, window=20, learning_rate=0.03, patience=4, clip=1.0)
    history = training_loop.fit(network, data, run_settings, quiet=True)
    assert history.validation[history.best] == min(history.validation)
    assert history.best == history.validation.index(min(history.validation))
    assert len(history.train) == len(history.validation) == history.best + 1 + 4 < 200
    assert (
        training_loop.validate(network, [make_example(network, item) for item in data])
        == history.validation[history.best]
    )
    assert history.validation[-1] > history.validation[history.best]


def test_validation_is_of_the_validation_steps_alone() -> None:
    """The state is carried from the series' beginning, only validation steps are scored, no test step is read."""
    network = make_network()
    first, second = series(noise(40, 1).numpy(), "one"), series(noise(90, 2).numpy(), "two")
    losses = []
    for part in (first, second):
        values = (torch.from_numpy(part.values) - 10) / 2
        hidden, _ = network(values[:-1, None], network.initial(1))
        each = network.head.loss(hidden, values[1:, None]).flatten().tolist()  # of predicting steps 1, 2, ...
        losses += each[part.validation_from - 1 : part.test_from - 1]
    found = training_loop.validate(network, [make_example(network, part) for part in (first, second)])
    assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    for part in (first, second):
        part.values[part.test_from :] = 1e6
    assert training_loop.validate(network, [make_example(network, part) for part in (first, second)]) == found


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=5), st.integers(1, 300))
def test_every_validated_step_is_in_one_segment(parts: list[tuple[int, int]], warm_up: int) -> None:
    """The segments cover each validation part exactly; each has its whole warm-up or starts with its series."""
    ranges = [(start, start + length) for start, length in parts]
    covered = Counter[tuple[int, int]]()
    for stream in training_loop.validation_streams(ranges, warm_up):
        scored_from = stream.start + stream.burn_in
        assert stream.burn_in == min(scored_from, warm_up)
        covered.update((stream.series, step) for step in range(scored_from, stream.stop))
    assert covered == Counter((index, step) for index, steps in enumerate(ranges) for step in range(*steps))


def test_segments_validate_as_the_whole_does() -> None:
    """The loss over segments with a warm-up is that of one pass from the series' beginning, to 1e-5."""
    network, values = make_network(units=16), noise(20_000).numpy()
    examples = [make_example(network, series(values))]
    assert len(training_loop.validation_streams([example.validation_range for example in examples], 256)) > 8
    whole = training_loop.validate(network, examples, warm_up=20_000)
    assert training_loop.validate(network, examples) == pytest.approx(whole, rel=1e-5)


def test_the_test_part_is_never_trained_on() -> None:
    """The weights, and the epoch that they are from, depend on no step of the test part."""
    first = series(noise(80).numpy())
    second = series(noise(80).numpy())
    second.values[second.test_from :] += 50
    results = []
    for data in (first, second):
        network = make_network()
        training_loop.fit(network, [data], settings(epochs=3, window=16), quiet=True)
        results.append(weights(network))
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("where", ["train", "validation"])
def test_a_loss_that_is_not_finite_ends_the_run(where: str, tmp_path: Path) -> None:
    """The error of a diverged run names step, rate, checkpoint and a remedy; the last good weights are stored."""
    good, checkpoint = series(noise(60).numpy()), Checkpoint(tmp_path / "checkpoint.pt", {})
    run_settings = settings(window=8, learning_rate=0.25, warmup=100)
    with pytest.raises(
        TrainingError, match=r"; there is no checkpoint; try a learning_rate below 0\.25 or a smaller clip"
    ):
        training_loop.fit(make_network(), [broken(good, where)], run_settings, quiet=True)
    training_loop.fit(make_network(), [good], run_settings, quiet=True, checkpoint=checkpoint)
    before = checkpoint.file.read_bytes()
    message = "step 8: the loss is (inf|nan)" if where == "train" else "step 12: the validation loss is nan"
    message += rf", at a learning rate of {0.0025 * (8 if where == 'train' else 12)}; the last good checkpoint is "
    with pytest.raises(
        TrainingError, match=f"^epoch 2, {message}{checkpoint.file}, of epoch 1; try a learning_rate below 0.25"
    ):
        training_loop.fit(
            make_network(),
            [broken(good, where)],
            run_settings.model_copy(update={"epochs": 2}),
            quiet=True,
            checkpoint=checkpoint,
            resume=True,
        )
    assert checkpoint.file.read_bytes() == before


def broken(data: Series, where: str) -> Series:
    values = data.values.copy()
    if where == "train":
        values[10] = math.inf  # of the epoch's second window
    else:
        values[data.validation_from + 2] = math.nan
    return Series(data.name, values, data.validation_from, data.test_from)


def test_a_gradient_that_is_not_finite_ends_the_run() -> None:
    """A finite loss can have a gradient that is not: the error comes before the weights are changed."""
    network, scaled = make_network(head="point"), noise(20)
    readout(network).weight.register_hook(lambda grad: grad * math.inf)  # type: ignore[no-untyped-call]
    before = weights(network)
    with pytest.raises(FloatingPointError, match=r"the gradient's norm is (inf|nan)"):
        epoch(network, [scaled], settings(), rate=1.0)
    assert torch.equal(weights(network), before)


def test_the_gradients_norms_are_in_the_history() -> None:
    """The history has each epoch's mean and largest norm before clipping, so that vanishing and exploding show."""
    network, scaled = make_network(), noise(40) * 20
    full = float(gradient(network, scaled).norm())
    assert measured(network, [predicting(scaled)], settings(clip=0.1), rate=0.0)[1] == pytest.approx([full], rel=1e-4)
    data = series(noise(100).numpy() * 20)
    run_settings = settings(window=8, epochs=2, learning_rate=1e-9, clip=1e-3)
    history = training_loop.fit(make_network(), [data], run_settings, quiet=True)
    network = make_network()
    norms = measured(network, [make_example(network, data)], run_settings, rate=0.0)[1]
    assert len(norms) == 9
    assert history.gradient_mean == pytest.approx([sum(norms) / 9] * 2, rel=1e-3)
    assert history.gradient_largest == pytest.approx([max(norms)] * 2, rel=1e-3)
    assert history.steps == 18


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


def test_a_random_window_is_warmed_up() -> None:
    """The loss of a window is that of its steps after the burn-in, from the state after the burn-in's steps."""
    network, scaled = make_network(), [noise(50, i) for i in range(3)]
    run_settings = settings(sampling="windows", window=9, burn_in=6, batch=4)
    expected = 0.0
    for stream in itertools.chain(*sampling.make_sampler([49] * 3, run_settings)(np.random.default_rng(0))):
        values = scaled[stream.series][stream.start : stream.stop + 1, None]
        _, state = network(values[: stream.burn_in], network.initial(1)) if stream.burn_in else (0, network.initial(1))
        hidden, _ = network(values[stream.burn_in : -1], state)
        expected += float(network.head.loss(hidden, values[stream.burn_in + 1 :]).detach().sum())
    assert epoch(network, scaled, run_settings, rate=0.0) == pytest.approx(expected / (3 * 49), rel=1e-5)


def test_the_schedule_reaches_the_optimiser() -> None:
    """The weights move by the warmed-up rate: hardly, if warm-up takes far more steps than there are."""
    data, moved = series(noise(60).numpy()), []
    for warmup in (0, 1000):
        network = make_network()
        before = weights(network)
        training_loop.fit(network, [data], settings(warmup=warmup, learning_rate=0.01), quiet=True)
        moved.append((weights(network) - before).abs().max().item())
    assert moved == pytest.approx([0.01, 0.01 / 1000], rel=0.01)


def held_out(network: Network, data: Series) -> tuple[Tensor, InputArray]:
    """Returns the readouts for each test step, (steps, parameters), and the actual values."""
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(data.values)[:, None])
        hidden, _ = network(prepared.inputs[:-1], network.initial(1))
        readouts = torch.stack(network.head.read_out(TorchOps(), hidden), dim=-1)
    return readouts[data.test_from - 1 :, 0, 0], data.values[data.test_from :, 0]


def fitted(data: Series, *, cell: Cell, units: int, **keys: object) -> Network:
    torch.manual_seed(0)
    train = torch.from_numpy(data.train)
    network = Network(
        Model(cell=cell, units=units), signature(), TrainingStatistics(train.mean(dim=0), train.std(dim=0))
    )
    training_loop.fit(network, [data], settings(**{"clip": 1.0, "window": 50, "batch": 16} | keys), quiet=True)
    return network


def test_an_autoregression_is_learnt_to_its_optimum() -> None:
    """AR(1): the one-step error comes within 5% of the innovations' deviation, the least that any model can reach."""
    rng, sigma = np.random.default_rng(0), 0.5
    values = np.zeros(6000)
    for t in range(1, len(values)):
        values[t] = 0.8 * values[t - 1] + sigma * rng.standard_normal()
    data = series(values)
    network = fitted(data, cell="gru", units=8, epochs=25, learning_rate=0.01)
    readouts, actual = held_out(network, data)
    mean = readouts[:, 0] * network.input_layer.statistics.std + network.input_layer.statistics.mean
    error = float(np.sqrt(((mean.numpy() - actual) ** 2).mean()))
    assert error == pytest.approx(sigma, rel=0.05)
    deviation = float((readouts[:, 1].exp() * network.input_layer.statistics.std).mean())
    assert deviation == pytest.approx(sigma, rel=0.1)


def test_a_sine_is_learnt() -> None:
    """A sine has no noise: the error falls below a tenth of the last value's."""
    data = series(np.sin(np.arange(2000) * 2 * np.pi / 25))
    network = fitted(data, cell="lstm", units=16, epochs=40, learning_rate=0.01)
    readouts, actual = held_out(network, data)
    mean = (readouts[:, 0] * network.input_layer.statistics.std + network.input_layer.statistics.mean).numpy()
    naive = np.abs(data.values[data.test_from - 1 : -1, 0] - actual).mean()
    assert np.abs(mean - actual).mean() < naive / 10


@pytest.mark.parametrize("sampling", ["streams", "windows"])
def test_windows_without_a_loss_carry_the_state(sampling: str) -> None:
    """Labels of whole series that span several windows: only the windows in which a series ends have a loss."""
    rng, data = np.random.default_rng(0), []
    for number in range(8):
        values, validates = rng.standard_normal((50, 1)).astype(np.float32), number == 7
        labels = np.full(50, number % 2)
        data.append(Series(str(number), values, 0 if validates else 50, 50, labels))
    kind = Signature((Feature(name="x"),), ("kind",), ("a", "b"), per_sequence=True)
    network = Network(Model(head="label", units=4), kind, TrainingStatistics(torch.zeros(1), torch.ones(1)))
    history = training_loop.fit(network, data, settings(sampling=sampling, window=16, batch=8, epochs=2), quiet=True)
    assert len(history.train) == 2
    assert all(0 < loss < 2 for loss in history.train + history.validation)
