"""What is read of a step, against plain loops in double precision, and that nothing of it comes from the future."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from onward.model.manifest import Feature
from onward.training.data.datasets import Series
from onward.training.data.training_examples import make_example
from onward.training.network.network import Network
from tests.helpers import numpy_networks
from tests.helpers.numpy_networks import MEAN, STD, draw, signature
from tests.helpers.recorded_bundles import category, stepped_outputs

FEATURES = (
    Feature(name="known", role="known", nullable=True),
    Feature(name="x", nullable=True),
    category("word", 4, nullable=True, unknown=True),
    Feature(name="y"),
    Feature(name="place", role="static"),
    category("kind", 3),
    Feature(name="z", nullable=True),
)
SPOKEN = signature(FEATURES, "y", "x")
"""Targets in another order than the features, and with others between them."""
TARGETS = [3, 1]

SCALINGS = ["fixed", "causal", "mean"]


def made(scaling: str) -> Network:
    return numpy_networks.network(SPOKEN, cell="lstm", units=5, head="gaussian", scaling=scaling)


def prepared(network: Network, row: NDArray[np.float32]) -> NDArray[np.float64]:
    """(time, read)"""
    told: NDArray[np.float64] = network.prepare(torch.from_numpy(row)[:, None]).inputs[:, 0].double().numpy()
    return told


def units(network: Network, row: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(time, targets) means and deviations."""
    unit = network.prepare(torch.from_numpy(row)[:, None]).target_scale
    assert unit is not None
    assert torch.equal(unit.log_std, unit.std.log())
    shape = (len(row), 1, len(network.signature.targets))
    return (unit.mean.expand(shape)[:, 0].double().numpy(), unit.std.expand(shape)[:, 0].double().numpy())


def sessions() -> dict[str, NDArray[np.float32]]:
    """Hard ones among them: (time, features) each."""
    plain = draw(FEATURES, 1, 60, seed=3)[0]
    told = {"plain": plain}
    changes: tuple[tuple[str, Callable[[NDArray[np.float32]], object]], ...] = (
        ("begins with nothing", lambda x: x[:7].fill(np.nan)),
        ("zeros", lambda x: x.fill(0.0)),
        ("zeros, then values", lambda x: x[:20].fill(0.0)),
        ("constant", lambda x: x.fill(7.25)),
        ("a thousand times the scale", lambda x: np.multiply(x, 1000, out=x)),
        ("small and negative", lambda x: np.multiply(x, -1e-3, out=x)),
        ("far from zero", lambda x: np.add(x, 1e4, out=x)),
        ("a jump", lambda x: np.multiply(x[30:], 50, out=x[30:])),
    )
    for name, change in changes:
        row = plain.copy()
        for place in (1, 6) if "nothing" in name else (1, 3, 6):
            column = row[:, place].copy()
            change(column)
            row[:, place] = column
        told[name] = row
    told["nothing at all"] = plain.copy()
    told["nothing at all"][:, [1, 6]] = np.nan
    return told


@pytest.mark.parametrize("session", sessions())
@pytest.mark.parametrize("scaling", SCALINGS)
def test_numbers_and_units_are_those_of_a_plain_loop(scaling: str, session: str) -> None:
    """Every scaled number, mask and unit at every step, first steps and missing values included."""
    network, row = made(scaling), sessions()[session]
    plainly = numpy_networks.reading(network, row)
    got = prepared(network, row)
    assert got.shape == (len(row), 5 + 3 + 2)
    np.testing.assert_allclose(got[:, :8], plainly.dense, rtol=2e-6, atol=2e-6)
    mean, std = units(network, row)
    np.testing.assert_allclose(mean, plainly.mean[:, TARGETS], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, plainly.std[:, TARGETS], rtol=1e-6)
    assert (std > 0).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_layer_reads_numbers_masks_and_embeddings(scaling: str) -> None:
    """A hidden state is that of the numbers, the masks and each category's own row; a missing category has one too."""
    network, row = made(scaling), draw(FEATURES, 1, 60, seed=4)[0]
    assert np.isnan(row[:, 2]).any()
    assert (row[:, 2] == 4).any()  # unknown
    plainly = numpy_networks.reading(network, row)
    expected = numpy_networks.hidden(network, np.concatenate([plainly.dense, plainly.embedded], axis=1))
    with torch.no_grad():
        got, _ = network(network.prepare(torch.from_numpy(row)[:, None]).inputs, network.initial(1))
    np.testing.assert_allclose(got[:, 0].numpy(), expected, atol=1e-6)
    words = [tuple(plainly.embedded[t, : network.input_layer.tables[0].embedding_dim]) for t in range(60)]
    assert len(set(words)) == 6  # four, unknown, missing


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_what_is_known_or_static_keeps_the_training_scale(scaling: str) -> None:
    """It has no scale of its own: an hour of the day is the same number in every session, and after any past."""
    network, row = made(scaling), draw(FEATURES, 1, 30, seed=5)[0]
    got = prepared(network, row)
    expected = np.nan_to_num((row[:, [0, 4]].astype(np.float64) - MEAN) / STD)
    np.testing.assert_allclose(got[:, :2], expected, atol=1e-6)
    assert network.input_layer.streaming == [1, 3, 6]


def test_a_mask_is_one_where_a_value_is_missing() -> None:
    """One for each feature that may be, and a missing value reads as the mean."""
    network = made("fixed")
    row = draw(FEATURES, 1, 40, seed=6)[0]
    row[5, [0, 1, 6]] = np.nan
    row[6, [0, 1, 6]] = (1.0, np.nan, MEAN)
    got = prepared(network, row)
    assert got[5].tolist()[:8] == pytest.approx([0, 0, got[5, 2], got[5, 3], 0, 1, 1, 1])
    assert got[6, 5:8].tolist() == [0, 1, 0]
    assert got[6, 4] == 0
    assert np.array_equal(got[:, 5:8], np.isnan(row[:, [0, 1, 6]]))


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_before_any_value_the_training_moments_hold(scaling: str) -> None:
    """A session whose values are still missing is told in the training part's units."""
    network, row = made(scaling), sessions()["begins with nothing"]
    mean, std = units(network, row)
    expected = (0.0, 1 + MEAN) if scaling == "mean" else (MEAN, STD)
    assert mean[:7, 1].tolist() == pytest.approx([expected[0]] * 7)
    assert std[:7, 1].tolist() == pytest.approx([expected[1]] * 7)
    assert std[7, 1] != expected[1]
    first = network.input_layer.initial_target_scale(TARGETS)
    assert (first.mean.tolist(), first.std.tolist()) == ([MEAN] * 2, [STD] * 2)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_future_changes_nothing_before_it(scaling: str) -> None:
    """Neither what is read nor its unit, neither the answers nor what counts: of each step up to its own."""
    network, row = made(scaling), draw(FEATURES, 1, 50, seed=7)[0]
    for t in (1, 20, 49):
        other = row.copy()
        other[t:] = draw(FEATURES, 1, 50, seed=8)[0][t:]
        other[t:, [1, 3, 6]] *= 1000
        assert np.array_equal(prepared(network, row)[:t], prepared(network, other)[:t], equal_nan=True)
        assert not np.array_equal(prepared(network, row)[t:, :8], prepared(network, other)[t:, :8])
        for before, after in zip(units(network, row), units(network, other), strict=True):
            assert np.array_equal(before[:t], after[:t])
        one, two = (make_example(network, Series("s", values, 40, 45)) for values in (row, other))
        assert one.inputs[:t].numpy().tobytes() == two.inputs[:t].numpy().tobytes()
        assert torch.equal(one.targets[: t - 1], two.targets[: t - 1])
        assert torch.equal(one.mask[: t - 1], two.mask[: t - 1])
        assert not torch.equal(one.targets[t - 1], two.targets[t - 1])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_answer_is_the_next_value_in_the_unit_before_it(scaling: str) -> None:
    """A prediction is held to what comes next in the units known when it is made; missing ones do not count."""
    network, row = made(scaling), draw(FEATURES, 1, 50, seed=9)[0]
    told = make_example(network, Series("s", row, 40, 45))
    plainly = numpy_networks.reading(network, row)
    following = row[1:, TARGETS].astype(np.float64)
    expected = (following - plainly.mean[:-1, TARGETS]) / plainly.std[:-1, TARGETS]
    there = ~np.isnan(following)
    assert 0 < (~there).sum() < 20
    np.testing.assert_allclose(told.targets[:-1].numpy(), np.where(there, expected, 0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(told.mask[:-1].numpy(), there)
    assert not told.targets[-1].any()
    assert not told.mask[-1].any()
    assert (told.training_steps, told.validation_range) == (39, (39, 44))


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_the_graph_reads_nothing_of_the_future(scaling: str) -> None:
    """In one call over the whole session: the same bits before what is changed, of every output."""
    model = numpy_networks.export(made(scaling))
    row = draw(FEATURES, 1, 40, seed=10)[0]
    other = row.copy()
    other[25:, [1, 3, 6]] *= 1000
    one, _ = model.run_row(row, model.layout.initial(1))
    two, _ = model.run_row(other, model.layout.initial(1))
    assert one[:25].tobytes() == two[:25].tobytes()
    assert one[25:].tobytes() != two[25:].tobytes()


OBSERVED = (Feature(name="x"), Feature(name="y", nullable=True))


@pytest.mark.parametrize(
    ("scaling", "times", "head"),
    [
        ("causal", 1000, "gaussian"),
        ("causal", 1e-3, "gaussian"),
        ("causal", 1000, "quantiles"),
        ("mean", 1000, "point"),
    ],
)
def test_predictions_follow_the_sessions_scale(scaling: str, times: float, head: str) -> None:
    """A session of a thousand times the scale is told the same of, times a thousand, after a few steps at most."""
    made = numpy_networks.network(signature(OBSERVED, "x", "y"), cell="gru", units=5, head=head, scaling=scaling)
    model = numpy_networks.export(made)
    row = draw(OBSERVED, 1, 60, seed=11)[0] * np.float32(1e4 if scaling == "mean" else 1)
    one, two = stepped_outputs(model, row), stepped_outputs(model, row * np.float32(times))
    for name in model.manifest.head.outputs:
        np.testing.assert_allclose(two[name][3:] / times, one[name][3:], rtol=1e-3)


def test_a_fixed_scale_does_not() -> None:
    """Which is why the other kinds exist: the same network with the training scale is lost."""
    made = numpy_networks.network(signature(OBSERVED, "x", "y"), cell="gru", units=5, head="gaussian")
    model = numpy_networks.export(made)
    row = draw(OBSERVED, 1, 60, seed=11)[0]
    one, two = stepped_outputs(model, row), stepped_outputs(model, row * np.float32(1000))
    assert np.abs(two["mean"][3:] / 1000 - one["mean"][3:]).min() > 1
