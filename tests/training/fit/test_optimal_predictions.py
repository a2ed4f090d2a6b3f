"""What training reaches on tokens, labels and numbers whose best prediction is known."""

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

PLACES, STEPS, FRESH = 4, 40_000, 100_000
WORDS = signature((category("word", PLACES),), "word")


@cache
def source() -> NDArray[np.float64]:
    """(before the last, last, next): half on what the last says, 0.35 on what the one before says, the rest on any."""
    rng, told = np.random.default_rng(5), np.full((PLACES,) * 3, 0.15 / PLACES)
    after, later = rng.permutation(PLACES), rng.permutation(PLACES)
    for a in range(PLACES):
        for b in range(PLACES):
            told[a, b, after[b]] += 0.5
            told[a, b, later[a]] += 0.35
    return told


def drawn(steps: int, seed: int) -> NDArray[np.int64]:
    sums, uniform = source().cumsum(axis=2), np.random.default_rng(seed).random(steps)
    told = [0, 0]
    for u in uniform:
        told.append(min(int(np.searchsorted(sums[told[-2], told[-1]], u)), PLACES - 1))
    return np.array(told[2:])


def entropy() -> float:
    """Nats a step, under the stationary distribution of pairs."""
    pairs = np.full((PLACES, PLACES), 1 / PLACES**2)
    for _ in range(200):
        pairs = np.einsum("ab,abc->bc", pairs, source())
    return float(-(pairs[..., None] * source() * np.log(source())).sum())


def network(series: Series, units: int = 16, seed: int = 0, **more: Any) -> Network:
    torch.manual_seed(seed)
    counts = torch.from_numpy(np.bincount(series.train[:, 0].astype(int), minlength=PLACES).astype(np.float32))
    model = Model.model_validate(
        {"cell": "gru", "units": units, "head": "categorical", "top": 4, "embedding": 4} | more
    )
    return Network(model, WORDS, numpy_networks.scaling(WORDS), counts)


def tokens(steps: int = STEPS) -> Series:
    places = drawn(steps, seed=0)[:, None].astype(np.float32)
    return Series("source", places, int(steps * 0.85), steps)


SETTINGS = Train(epochs=5, batch=16, window=16, learning_rate=0.02, schedule="cosine")


@torch.no_grad()
def cross_entropy(made: Network) -> tuple[float, float]:
    """Nats a step of the network, and of the source itself, over the same fresh steps; 50 sessions side by side."""
    made.eval()
    places = drawn(FRESH, seed=99).reshape(50, -1)
    told = torch.from_numpy(places.T[..., None].astype(np.float32))
    hidden, _ = made(made.prepare(told[:-1]).inputs, made.initial(50))
    losses = made.head.loss(hidden, told[1:])[20:].double()
    own = -np.log(source()[places[:, :-2], places[:, 1:-1], places[:, 2:]])
    return float(losses.mean()), float(own[:, 19:].mean())


def test_a_source_of_known_probabilities_is_learnt() -> None:
    """The cross-entropy on fresh steps comes within 1% of the source's entropy; pairs alone do not come near it."""
    made = network(tokens())
    training_loop.fit(made, [tokens()], SETTINGS, quiet=True)
    reached, least = cross_entropy(made)
    assert least == pytest.approx(entropy(), rel=0.01)
    assert reached == pytest.approx(entropy(), rel=0.01)
    assert reached < 1.01 * least
    pairs = source().mean(axis=0)  # every pair is as likely
    alone = float(-(pairs / PLACES * np.log(pairs)).sum())
    assert alone > 1.15 * entropy()


def test_the_same_seed_gives_the_same_weights() -> None:
    """Bit for bit, with draws of negatives and dropout among what is random; another seed gives others."""
    states = []
    for seed in (3, 3, 4):
        made = network(tokens(2000), seed=7, negatives=2, layers=2, dropout=0.2)
        training_loop.fit(made, [tokens(2000)], Train(seed=seed, epochs=2, batch=8), quiet=True)
        states.append(b"".join(value.numpy().tobytes() for value in made.state_dict().values()))
    assert states[0] == states[1] != states[2]


def gradient(made: Network, hidden: torch.Tensor, answers: torch.Tensor, draws: int) -> torch.Tensor:
    """The mean over so many draws."""
    assert isinstance(made.head, Categorical)
    total = torch.zeros(0)
    for _ in range(draws):
        made.zero_grad()
        made.head.loss(hidden, answers).mean().backward()  # type: ignore[no-untyped-call]
        found = torch.cat([value.grad.flatten() for value in made.head.parameters() if value.grad is not None])
        total = found if not len(total) else total + found
    return total / draws


@pytest.mark.parametrize("tied", [False, True])
def test_with_more_negatives_the_gradient_is_that_of_the_whole_softmax(tied: bool) -> None:
    """Its expectation is near it with a few, and comes the nearer the more are drawn."""
    apart = []
    counts = np.arange(1.0, PLACES + 1).tolist()
    torch.manual_seed(1)
    hidden, answers = torch.randn(40, 1, 6), torch.randint(PLACES, (40, 1, 1)).float()
    for negatives, draws in ((4, 400), (64, 100), (8192, 20)):
        made = numpy_networks.network(
            WORDS, counts=counts, cell="gru", units=6, head="categorical", negatives=negatives, tied=tied, embedding=6
        )
        made.eval()
        whole = gradient(made, hidden, answers, 1)
        made.train()
        torch.manual_seed(0)
        apart.append(float((gradient(made, hidden, answers, draws) - whole).norm() / whole.norm()))
    assert apart[0] < 0.5
    assert apart[1] < 0.1
    assert apart[2] < 0.01


def test_negatives_learn() -> None:
    """Half as many negatives as categories learn the source to within 2%, scored by the whole softmax."""
    made = network(tokens(), negatives=2)
    history = training_loop.fit(made, [tokens()], SETTINGS, quiet=True)
    reached, least = cross_entropy(made)
    assert reached < 1.02 * least
    assert history.validation[history.best] == pytest.approx(least, rel=0.05)


def sine(values: NDArray[np.float32], steps: tuple[int, int], settings: Train, **model: Any) -> NDArray[np.float32]:
    """What a small point model says of each held-out step, trained on the rest; steps: where each part begins."""
    moments = [torch.from_numpy(of(values[: steps[0]], axis=0)).double() for of in (np.mean, np.std)]
    torch.manual_seed(0)
    told = Model.model_validate({"head": "point", "loss": "mse", **model})
    made = Network(told, Signature((Feature(name="x"),), ("x",)), TrainingStatistics(*moments))
    training_loop.fit(made, [Series("sine", values, *steps)], settings, quiet=True)
    made.eval()
    with torch.no_grad():
        prepared = made.prepare(torch.from_numpy(values)[:, None])
        said: NDArray[np.float32] = numpy_networks.told(made, prepared)["point"][steps[1] - 1 : -1, 0].numpy()
    return said


def test_a_sine_is_continued() -> None:
    """Without noise there is nothing to miss: one step ahead the error is a twentieth of that of the last value."""
    values = (5 + 3 * np.sin(np.arange(4000) * 2 * np.pi / 25))[:, None].astype(np.float32)
    settings = Train(epochs=20, batch=8, window=25, learning_rate=0.01, schedule="cosine", patience=20)
    said = sine(values, (3000, 3500), settings, cell="gru", units=16)
    last = float(np.abs(values[3500:] - values[3499:-1]).mean())
    assert float(np.abs(said - values[3500:]).mean()) < 0.05 * last


def test_a_sine_is_found_beneath_noise() -> None:
    """The root mean squared error one step ahead is within 5% of the noise's own, which no forecast can go below."""
    noise = 0.5 * np.random.default_rng(0).standard_normal(24_000)
    values = (5 + 3 * np.sin(np.arange(24_000) * 2 * np.pi / 25) + noise)[:, None].astype(np.float32)
    settings = Train(epochs=25, batch=8, window=50, learning_rate=0.01, schedule="cosine", patience=25)
    said = sine(values, (16_800, 19_200), settings, cell="lstm", units=16)
    error = float(np.sqrt(((said - values[19_200:]) ** 2).mean()))
    assert error < 1.05 * float(np.sqrt((noise[19_200:] ** 2).mean()))


def labelled(count: int, *, seed: int = 0, steps: tuple[int, int] = (8, 20)) -> list[Series]:
    """Sequences of noise; the label is whether the first three values are above zero altogether: it is remembered."""
    rng, told = np.random.default_rng(seed), []
    for number in range(count):
        values = rng.normal(size=(int(rng.integers(*steps)), 1)).astype(np.float32)
        label = np.full(len(values), int(values[:3].sum() > 0))
        part = (len(values), len(values)) if number < count * 0.8 else (0, len(values))
        told.append(Series(str(number), values, *part, label))
    return told


LABEL = Signature((Feature(name="x"),), ("sign",), ("no", "yes"), per_sequence=True)


def labeller() -> Network:
    torch.manual_seed(0)
    model = Model.model_validate({"cell": "gru", "units": 16, "head": "label"})
    scaling = TrainingStatistics(torch.zeros(1).double(), torch.ones(1).double())
    return Network(model, LABEL, scaling, torch.ones(2))


@pytest.mark.parametrize(
    "how", [{"sampling": "streams", "epochs": 40}, {"sampling": "windows", "window": 7, "burn_in": 20, "epochs": 10}]
)
def test_a_label_of_whole_sequences_is_learnt(how: dict[str, Any]) -> None:
    """Said at the end of what begins with its reason, by streams and by windows with a burn-in; most come out right."""
    series = labelled(400)
    made = labeller()
    told: dict[str, Any] = {"batch": 16, "learning_rate": 0.02, "schedule": "cosine", "patience": 40}
    training_loop.fit(made, series, Train.model_validate(told | how), quiet=True)
    made.eval()
    right = []
    for one in labelled(200, seed=5):
        assert one.labels is not None
        with torch.no_grad():
            said = numpy_networks.told(made, made.prepare(torch.from_numpy(one.values)[:, None]))["top"]
        right.append(int(said[-1, 0, 0]) == one.labels[-1])
    assert np.mean(right) > 0.9


def test_only_the_end_of_a_sequence_is_held_to_its_label() -> None:
    """Of a label of each step all are; nothing is shifted, as the step is read before its label is told."""
    series = labelled(1)[0]
    told = make_example(labeller(), series)
    assert told.mask[:, 0].tolist() == [0.0] * (len(series.values) - 1) + [1.0]
    assert series.labels is not None
    assert told.targets[:, 0].tolist() == series.labels.tolist()
    made = labeller()
    made.signature = Signature(LABEL.features, LABEL.targets, LABEL.classes)
    assert make_example(made, series).mask.all()


def test_a_window_without_anything_scored_moves_no_weight() -> None:
    """Neither by the gradient nor by decay or momentum; the state goes on, and the next window learns."""
    made = labeller()
    examples = [make_example(made, one) for one in labelled(3, steps=(12, 13))]
    settings = Train(window=6, batch=3, weight_decay=0.1)
    step = make_trainer(made, settings, Process(torch.device("cpu")))
    group = [sampling.Stream(place, 0, 12) for place in range(3)]
    first, second = sampling.windows(examples, group, 6)
    assert (first.scored_steps, second.scored_steps) == (0, 3)
    made.train()
    state = made.initial(3)
    step.step(second, state, 0.01)  # so that there is momentum
    before = {name: value.clone() for name, value in made.state_dict().items()}
    loss, norm, after = step.step(first, state, 0.01)
    assert (loss, norm) == (0, 0)
    assert all(torch.equal(value, made.state_dict()[name]) for name, value in before.items())
    with torch.no_grad():
        assert torch.equal(after[0], made(first.inputs, state)[1][0])
    step.step(second, after, 0.01)
    assert any(not torch.equal(value, made.state_dict()[name]) for name, value in before.items())
