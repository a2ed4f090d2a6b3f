"""Training reaches the optimal prediction on tokens, labels and numbers for which it is known."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.training.config import Model, Train
from onward.training.data import sampling
from onward.training.data.datasets import Series
from onward.training.data.training_examples import make_example
from onward.training.fit import training_loop
from onward.training.fit.devices import Process
from onward.training.fit.training_loop import make_trainer
from onward.training.network.heads import Categorical
from onward.training.network.input_layer import TrainingStatistics
from onward.training.network.network import Network, Signature
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import signature
from tests.helpers.recorded_bundles import category

pytestmark = pytest.mark.slow

CATEGORIES, STEPS, FRESH_STEPS = 4, 40_000, 100_000
SIGNATURE = signature((category("word", CATEGORIES),), "word")


@cache
def source() -> NDArray[np.float64]:
    """Returns the probabilities (token before last, last token, next token) of a second-order Markov source.

    The last token selects a next one with 0.5, the one before it another with 0.35; the rest is uniform.
    """
    rng, probabilities = np.random.default_rng(5), np.full((CATEGORIES,) * 3, 0.15 / CATEGORIES)
    after, later = rng.permutation(CATEGORIES), rng.permutation(CATEGORIES)
    for a in range(CATEGORIES):
        for b in range(CATEGORIES):
            probabilities[a, b, after[b]] += 0.5
            probabilities[a, b, later[a]] += 0.35
    return probabilities


def drawn(steps: int, seed: int) -> NDArray[np.int64]:
    sums, uniform = source().cumsum(axis=2), np.random.default_rng(seed).random(steps)
    indices = [0, 0]
    for u in uniform:
        indices.append(min(int(np.searchsorted(sums[indices[-2], indices[-1]], u)), CATEGORIES - 1))
    return np.array(indices[2:])


def entropy() -> float:
    """Returns the source's entropy in nats a step, under the stationary distribution of pairs."""
    pairs = np.full((CATEGORIES, CATEGORIES), 1 / CATEGORIES**2)
    for _ in range(200):
        pairs = np.einsum("ab,abc->bc", pairs, source())
    return float(-(pairs[..., None] * source() * np.log(source())).sum())


def network(series: Series, units: int = 16, seed: int = 0, **more: Any) -> Network:
    torch.manual_seed(seed)
    counts = torch.from_numpy(np.bincount(series.train[:, 0].astype(int), minlength=CATEGORIES).astype(np.float32))
    model = Model.model_validate(
        {"cell": "gru", "units": units, "head": "categorical", "top": 4, "embedding": 4} | more
    )
    return Network(model, SIGNATURE, numpy_networks.statistics(SIGNATURE), counts)


def tokens(steps: int = STEPS) -> Series:
    indices = drawn(steps, seed=0)[:, None].astype(np.float32)
    return Series("source", indices, int(steps * 0.85), steps)


SETTINGS = Train(epochs=5, batch=16, window=16, learning_rate=0.02, schedule="cosine")


@torch.no_grad()
def cross_entropy(network: Network) -> tuple[float, float]:
    """Returns the nats a step of the network, and of the source itself, over the same new steps of 50 sessions."""
    network.eval()
    indices = drawn(FRESH_STEPS, seed=99).reshape(50, -1)
    inputs = torch.from_numpy(indices.T[..., None].astype(np.float32))
    hidden, _ = network(network.prepare(inputs[:-1]).inputs, network.initial(50))
    losses = network.head.loss(hidden, inputs[1:])[20:].double()
    optimal = -np.log(source()[indices[:, :-2], indices[:, 1:-1], indices[:, 2:]])
    return float(losses.mean()), float(optimal[:, 19:].mean())


def test_a_source_of_known_probabilities_is_learnt() -> None:
    """The cross-entropy on fresh steps comes within 1% of the source's entropy; a model of pairs does not."""
    fitted = network(tokens())
    training_loop.fit(fitted, [tokens()], SETTINGS, quiet=True)
    reached, least = cross_entropy(fitted)
    assert least == pytest.approx(entropy(), rel=0.01)
    assert reached == pytest.approx(entropy(), rel=0.01)
    assert reached < 1.01 * least
    pairs = source().mean(axis=0)  # every pair is as likely
    alone = float(-(pairs / CATEGORIES * np.log(pairs)).sum())
    assert alone > 1.15 * entropy()


def test_the_same_seed_gives_the_same_weights() -> None:
    """The weights are equal bit for bit, with drawn negatives and dropout; another seed gives other weights."""
    states = []
    for seed in (3, 3, 4):
        fitted = network(tokens(2000), seed=7, negatives=2, layers=2, dropout=0.2)
        training_loop.fit(fitted, [tokens(2000)], Train(seed=seed, epochs=2, batch=8), quiet=True)
        states.append(b"".join(value.numpy().tobytes() for value in fitted.state_dict().values()))
    assert states[0] == states[1] != states[2]


def gradient(network: Network, hidden: torch.Tensor, targets: torch.Tensor, draws: int) -> torch.Tensor:
    """Returns the mean gradient over so many draws of negatives."""
    assert isinstance(network.head, Categorical)
    total = torch.zeros(0)
    for _ in range(draws):
        network.zero_grad()
        network.head.loss(hidden, targets).mean().backward()  # type: ignore[no-untyped-call]
        grads = torch.cat([value.grad.flatten() for value in network.head.parameters() if value.grad is not None])
        total = grads if not len(total) else total + grads
    return total / draws


@pytest.mark.parametrize("tied", [False, True])
def test_with_more_negatives_the_gradient_approaches_the_full_softmax(tied: bool) -> None:
    """The expected gradient is near the full softmax's with few negatives, and comes nearer as more are drawn."""
    distances = []
    counts = np.arange(1.0, CATEGORIES + 1).tolist()
    torch.manual_seed(1)
    hidden, targets = torch.randn(40, 1, 6), torch.randint(CATEGORIES, (40, 1, 1)).float()
    for negatives, draws in ((4, 400), (64, 100), (8192, 20)):
        fitted = numpy_networks.network(
            SIGNATURE,
            counts=counts,
            cell="gru",
            units=6,
            head="categorical",
            negatives=negatives,
            tied=tied,
            embedding=6,
        )
        fitted.eval()
        full = gradient(fitted, hidden, targets, 1)
        fitted.train()
        torch.manual_seed(0)
        distances.append(float((gradient(fitted, hidden, targets, draws) - full).norm() / full.norm()))
    assert distances[0] < 0.5
    assert distances[1] < 0.1
    assert distances[2] < 0.01


def test_negatives_learn() -> None:
    """Half as many negatives as categories are enough to learn the source to within 2%, by the full softmax's score."""
    fitted = network(tokens(), negatives=2)
    history = training_loop.fit(fitted, [tokens()], SETTINGS, quiet=True)
    reached, least = cross_entropy(fitted)
    assert reached < 1.02 * least
    assert history.validation[history.best] == pytest.approx(least, rel=0.05)


def sine(values: NDArray[np.float32], steps: tuple[int, int], settings: Train, **model: Any) -> NDArray[np.float32]:
    """Returns a small point model's predictions of the test steps. steps: where validation and test part begin."""
    moments = [torch.from_numpy(moment(values[: steps[0]], axis=0)).double() for moment in (np.mean, np.std)]
    torch.manual_seed(0)
    config = Model.model_validate({"head": "point", "loss": "mse", **model})
    network = Network(config, Signature((Feature(name="x"),), ("x",)), TrainingStatistics(*moments))
    training_loop.fit(network, [Series("sine", values, *steps)], settings, quiet=True)
    network.eval()
    with torch.no_grad():
        prepared = network.prepare(torch.from_numpy(values)[:, None])
        predictions: NDArray[np.float32] = numpy_networks.predict(network, prepared)["point"][
            steps[1] - 1 : -1, 0
        ].numpy()
    return predictions


def test_a_sine_is_continued() -> None:
    """A sine without noise is predictable: one step ahead the error is a twentieth of that of the last value."""
    values = (5 + 3 * np.sin(np.arange(4000) * 2 * np.pi / 25))[:, None].astype(np.float32)
    settings = Train(epochs=20, batch=8, window=25, learning_rate=0.01, schedule="cosine", patience=20)
    predictions = sine(values, (3000, 3500), settings, cell="gru", units=16)
    last = float(np.abs(values[3500:] - values[3499:-1]).mean())
    assert float(np.abs(predictions - values[3500:]).mean()) < 0.05 * last


def test_a_sine_is_found_beneath_noise() -> None:
    """The RMSE one step ahead is within 5% of the noise's deviation, the least that any forecast can reach."""
    noise = 0.5 * np.random.default_rng(0).standard_normal(24_000)
    values = (5 + 3 * np.sin(np.arange(24_000) * 2 * np.pi / 25) + noise)[:, None].astype(np.float32)
    settings = Train(epochs=25, batch=8, window=50, learning_rate=0.01, schedule="cosine", patience=25)
    predictions = sine(values, (16_800, 19_200), settings, cell="lstm", units=16)
    error = float(np.sqrt(((predictions - values[19_200:]) ** 2).mean()))
    assert error < 1.05 * float(np.sqrt((noise[19_200:] ** 2).mean()))


def labelled(count: int, *, seed: int = 0, steps: tuple[int, int] = (8, 20)) -> list[Series]:
    """Returns sequences of noise whose label, the sign of the first three values' sum, must be remembered."""
    rng, series = np.random.default_rng(seed), []
    for number in range(count):
        values = rng.normal(size=(int(rng.integers(*steps)), 1)).astype(np.float32)
        label = np.full(len(values), int(values[:3].sum() > 0))
        parts = (len(values), len(values)) if number < count * 0.8 else (0, len(values))
        series.append(Series(str(number), values, *parts, label))
    return series


LABEL = Signature((Feature(name="x"),), ("sign",), ("no", "yes"), per_sequence=True)


def labeller() -> Network:
    torch.manual_seed(0)
    model = Model.model_validate({"cell": "gru", "units": 16, "head": "label"})
    scaling = TrainingStatistics(torch.zeros(1).double(), torch.ones(1).double())
    return Network(model, LABEL, scaling, torch.ones(2))


@pytest.mark.parametrize(
    "sampling_keys",
    [{"sampling": "streams", "epochs": 40}, {"sampling": "windows", "window": 7, "burn_in": 20, "epochs": 10}],
)
def test_a_label_of_whole_sequences_is_learnt(sampling_keys: dict[str, Any]) -> None:
    """More than 90% of the labels, which depend on a sequence's beginning, are right at its end, for both samplings."""
    series = labelled(400)
    network = labeller()
    keys: dict[str, Any] = {"batch": 16, "learning_rate": 0.02, "schedule": "cosine", "patience": 40}
    training_loop.fit(network, series, Train.model_validate(keys | sampling_keys), quiet=True)
    network.eval()
    correct = []
    for item in labelled(200, seed=5):
        assert item.labels is not None
        with torch.no_grad():
            top = numpy_networks.predict(network, network.prepare(torch.from_numpy(item.values)[:, None]))["top"]
        correct.append(int(top[-1, 0, 0]) == item.labels[-1])
    assert np.mean(correct) > 0.9


def test_only_the_last_step_has_the_label_of_a_sequence() -> None:
    """The mask is 1 at the last step alone, or at every step for labels of steps; no target is shifted."""
    series = labelled(1)[0]
    example = make_example(labeller(), series)
    assert example.mask[:, 0].tolist() == [0.0] * (len(series.values) - 1) + [1.0]
    assert series.labels is not None
    assert example.targets[:, 0].tolist() == series.labels.tolist()
    network = labeller()
    network.signature = Signature(LABEL.features, LABEL.targets, LABEL.classes)
    assert make_example(network, series).mask.all()


def test_a_window_without_scored_steps_moves_no_weight() -> None:
    """Neither gradient, decay nor momentum moves a weight; the state is carried on to the next window."""
    network = labeller()
    examples = [make_example(network, item) for item in labelled(3, steps=(12, 13))]
    settings = Train(window=6, batch=3, weight_decay=0.1)
    trainer = make_trainer(network, settings, Process(torch.device("cpu")))
    group = [sampling.Stream(index, 0, 12) for index in range(3)]
    first, second = sampling.windows(examples, group, 6)
    assert (first.scored_steps, second.scored_steps) == (0, 3)
    network.train()
    state = network.initial(3)
    trainer.step(second, state, 0.01, 3)  # so that there is momentum
    before = {name: value.clone() for name, value in network.state_dict().items()}
    loss, norm, after = trainer.step(first, state, 0.01, 3)
    assert (loss, norm) == (0, 0)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(after[0], network(first.inputs, state)[1][0])
    trainer.step(second, after, 0.01, 3)
    assert any(not torch.equal(value, network.state_dict()[name]) for name, value in before.items())
