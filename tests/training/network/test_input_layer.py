"""The input layer is compared with plain loops in double precision; none of its values depends on the future."""

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
SIGNATURE = signature(FEATURES, "y", "x")
"""The targets are in another order than the features, and other features lie between them."""
TARGETS = [3, 1]

SCALINGS = ["fixed", "causal", "mean"]


def make_network(scaling: str) -> Network:
    return numpy_networks.network(SIGNATURE, cell="lstm", units=5, head="gaussian", scaling=scaling)


def prepared(network: Network, row: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the prepared inputs (time, read)."""
    inputs: NDArray[np.float64] = network.prepare(torch.from_numpy(row)[:, None]).inputs[:, 0].double().numpy()
    return inputs


def target_scales(network: Network, row: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the means and deviations (time, targets) of the targets' scale."""
    scale = network.prepare(torch.from_numpy(row)[:, None]).target_scale
    assert scale is not None
    assert torch.equal(scale.log_std, scale.std.log())
    shape = (len(row), 1, len(network.signature.targets))
    return (scale.mean.expand(shape)[:, 0].double().numpy(), scale.std.expand(shape)[:, 0].double().numpy())


def sessions() -> dict[str, NDArray[np.float32]]:
    """Returns sessions (time, features) by name, difficult ones among them."""
    plain = draw(FEATURES, 1, 60, seed=3)[0]
    sessions = {"plain": plain}
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
        for column in (1, 6) if "nothing" in name else (1, 3, 6):
            values = row[:, column].copy()
            change(values)
            row[:, column] = values
        sessions[name] = row
    sessions["nothing at all"] = plain.copy()
    sessions["nothing at all"][:, [1, 6]] = np.nan
    return sessions


@pytest.mark.parametrize("session", sessions())
@pytest.mark.parametrize("scaling", SCALINGS)
def test_inputs_and_target_scales_equal_a_plain_loop(scaling: str, session: str) -> None:
    """Every scaled number, mask and target scale is equal at every step, first steps and missing values included."""
    network, row = make_network(scaling), sessions()[session]
    expected = numpy_networks.prepare(network, row)
    inputs = prepared(network, row)
    assert inputs.shape == (len(row), 5 + 3 + 2)
    np.testing.assert_allclose(inputs[:, :8], expected.dense, rtol=2e-6, atol=2e-6)
    mean, std = target_scales(network, row)
    np.testing.assert_allclose(mean, expected.mean[:, TARGETS], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std, expected.std[:, TARGETS], rtol=1e-6)
    assert (std > 0).all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_layer_reads_numbers_masks_and_embeddings(scaling: str) -> None:
    """A hidden state is computed from numbers, masks and each category's embedding; a missing category has one too."""
    network, row = make_network(scaling), draw(FEATURES, 1, 60, seed=4)[0]
    assert np.isnan(row[:, 2]).any()
    assert (row[:, 2] == 4).any()  # unknown
    reference = numpy_networks.prepare(network, row)
    expected = numpy_networks.hidden(network, np.concatenate([reference.dense, reference.embedded], axis=1))
    with torch.no_grad():
        got, _ = network(network.prepare(torch.from_numpy(row)[:, None]).inputs, network.initial(1))
    np.testing.assert_allclose(got[:, 0].numpy(), expected, atol=1e-6)
    words = [tuple(reference.embedded[t, : network.input_layer.tables[0].embedding_dim]) for t in range(60)]
    assert len(set(words)) == 6  # four, unknown, missing


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_future_covariates_and_static_features_keep_the_training_scale(scaling: str) -> None:
    """A future covariate, such as the hour, or a static feature is the same number in every session, after any past."""
    network, row = make_network(scaling), draw(FEATURES, 1, 30, seed=5)[0]
    got = prepared(network, row)
    expected = np.nan_to_num((row[:, [0, 4]].astype(np.float64) - MEAN) / STD)
    np.testing.assert_allclose(got[:, :2], expected, atol=1e-6)
    assert network.input_layer.streaming == [1, 3, 6]


def test_a_mask_is_one_where_a_value_is_missing() -> None:
    """Every feature that may be missing has a mask, and a missing value reads as the mean."""
    network = make_network("fixed")
    row = draw(FEATURES, 1, 40, seed=6)[0]
    row[5, [0, 1, 6]] = np.nan
    row[6, [0, 1, 6]] = (1.0, np.nan, MEAN)
    got = prepared(network, row)
    assert got[5].tolist()[:8] == pytest.approx([0, 0, got[5, 2], got[5, 3], 0, 1, 1, 1])
    assert got[6, 5:8].tolist() == [0, 1, 0]
    assert got[6, 4] == 0
    assert np.array_equal(got[:, 5:8], np.isnan(row[:, [0, 1, 6]]))


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_before_any_value_the_training_statistics_are_used(scaling: str) -> None:
    """The predictions of a session without any value yet have the training part's scale."""
    network, row = make_network(scaling), sessions()["begins with nothing"]
    mean, std = target_scales(network, row)
    expected = (0.0, 1 + MEAN) if scaling == "mean" else (MEAN, STD)
    assert mean[:7, 1].tolist() == pytest.approx([expected[0]] * 7)
    assert std[:7, 1].tolist() == pytest.approx([expected[1]] * 7)
    assert std[7, 1] != expected[1]
    first = network.input_layer.initial_target_scale(TARGETS)
    assert (first.mean.tolist(), first.std.tolist()) == ([MEAN] * 2, [STD] * 2)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_future_changes_nothing_before_it(scaling: str) -> None:
    """The inputs, target scales, targets and mask up to a step do not depend on later values."""
    network, row = make_network(scaling), draw(FEATURES, 1, 50, seed=7)[0]
    for t in (1, 20, 49):
        changed = row.copy()
        changed[t:] = draw(FEATURES, 1, 50, seed=8)[0][t:]
        changed[t:, [1, 3, 6]] *= 1000
        assert np.array_equal(prepared(network, row)[:t], prepared(network, changed)[:t], equal_nan=True)
        assert not np.array_equal(prepared(network, row)[t:, :8], prepared(network, changed)[t:, :8])
        for before, after in zip(target_scales(network, row), target_scales(network, changed), strict=True):
            assert np.array_equal(before[:t], after[:t])
        left, right = (make_example(network, Series("s", values, 40, 45)) for values in (row, changed))
        assert left.inputs[:t].numpy().tobytes() == right.inputs[:t].numpy().tobytes()
        assert torch.equal(left.targets[: t - 1], right.targets[: t - 1])
        assert torch.equal(left.mask[: t - 1], right.mask[: t - 1])
        assert not torch.equal(left.targets[t - 1], right.targets[t - 1])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_target_is_the_next_value_in_the_scale_before_it(scaling: str) -> None:
    """The target of a prediction is the next value in the scale of the step before it; a missing one is masked."""
    network, row = make_network(scaling), draw(FEATURES, 1, 50, seed=9)[0]
    example = make_example(network, Series("s", row, 40, 45))
    reference = numpy_networks.prepare(network, row)
    following = row[1:, TARGETS].astype(np.float64)
    expected = (following - reference.mean[:-1, TARGETS]) / reference.std[:-1, TARGETS]
    present = ~np.isnan(following)
    assert 0 < (~present).sum() < 20
    np.testing.assert_allclose(example.targets[:-1].numpy(), np.where(present, expected, 0), rtol=1e-5, atol=1e-5)
    assert np.array_equal(example.mask[:-1].numpy(), present)
    assert not example.targets[-1].any()
    assert not example.mask[-1].any()
    assert (example.training_steps, example.validation_range) == (39, (39, 44))


@pytest.mark.parametrize("scaling", ["causal", "mean"])
def test_the_graph_reads_nothing_of_the_future(scaling: str) -> None:
    """All outputs before a changed value have the same bits, in one call over the whole session."""
    model = numpy_networks.export(make_network(scaling))
    row = draw(FEATURES, 1, 40, seed=10)[0]
    changed = row.copy()
    changed[25:, [1, 3, 6]] *= 1000
    outputs, _ = model.run_row(row, model.layout.initial(1))
    changed_outputs, _ = model.run_row(changed, model.layout.initial(1))
    assert outputs[:25].tobytes() == changed_outputs[:25].tobytes()
    assert outputs[25:].tobytes() != changed_outputs[25:].tobytes()


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
    """The predictions of a session of a thousand times the scale are a thousand times as large after a few steps."""
    network = numpy_networks.network(signature(OBSERVED, "x", "y"), cell="gru", units=5, head=head, scaling=scaling)
    model = numpy_networks.export(network)
    row = draw(OBSERVED, 1, 60, seed=11)[0] * np.float32(1e4 if scaling == "mean" else 1)
    plain, scaled = stepped_outputs(model, row), stepped_outputs(model, row * np.float32(times))
    for name in model.manifest.head.outputs:
        np.testing.assert_allclose(scaled[name][3:] / times, plain[name][3:], rtol=1e-3)


def test_a_fixed_scale_does_not_follow_the_session() -> None:
    """The same network fails with the training part's scale, which is why the other kinds exist."""
    network = numpy_networks.network(signature(OBSERVED, "x", "y"), cell="gru", units=5, head="gaussian")
    model = numpy_networks.export(network)
    row = draw(OBSERVED, 1, 60, seed=11)[0]
    plain, scaled = stepped_outputs(model, row), stepped_outputs(model, row * np.float32(1000))
    assert np.abs(scaled["mean"][3:] / 1000 - plain["mean"][3:]).min() > 1
