"""Transforms against plain formulas of numpy: values, inverses, derivatives, means and likelihoods."""

from typing import Any

import numpy as np
import pytest

from onward.model import transforms
from onward.model.transforms import NUMPY, Array, Transform

EXAMPLES: dict[str, tuple[Transform, Any]] = {
    "log": (Transform(kind="log"), np.log),
    "log1p": (Transform(kind="log1p"), np.log1p),
    "asinh": (Transform(kind="asinh"), np.arcsinh),
    "root": (Transform(kind="box_cox", exponent=0.5), lambda x: 2 * (np.sqrt(x) - 1)),
    "square": (Transform(kind="box_cox", exponent=2.0), lambda x: (x**2 - 1) / 2),
}
each = pytest.mark.parametrize("name", EXAMPLES)
NODES, WEIGHTS = np.polynomial.legendre.leggauss(400)


def values(transform: Transform) -> Array:
    """Returns numbers over the transform's domain."""
    positive = np.geomspace(1e-3, 1e3, 61)
    if transform.kind == "asinh":
        return np.concatenate([-positive[::-1], [0.0], positive])
    return positive - 0.9995 if transform.kind == "log1p" else positive


@each
def test_transforms_are_the_plain_formulas_and_have_inverses(name: str) -> None:
    transform, formula = EXAMPLES[name]
    x = values(transform)
    transformed = transform.forward(NUMPY, x)
    np.testing.assert_allclose(transformed, formula(x), rtol=1e-12, atol=1e-12)
    assert (np.diff(transformed) > 0).all()
    np.testing.assert_allclose(transform.inverse(NUMPY, transformed), x, rtol=1e-9, atol=1e-9)
    assert transform.forward(NUMPY, x.astype(np.float32)).dtype == np.float32
    assert np.isnan(transform.forward(NUMPY, np.array([np.nan]))).all()


@each
def test_the_logarithm_of_the_derivative_is_that_of_differences(name: str) -> None:
    transform, _ = EXAMPLES[name]
    z = transform.forward(NUMPY, values(transform)[5:-5])
    above, below = (transform.inverse(NUMPY, z + step) for step in (1e-7, -1e-7))
    found = transform.log_derivative(NUMPY, z)
    np.testing.assert_allclose(found, np.log((above - below) / 2e-7), rtol=1e-3, atol=1e-3)


@each
@pytest.mark.parametrize("std", [0.01, 0.3, 0.8])
def test_the_mean_is_the_integral_over_a_normal_distribution(name: str, std: float) -> None:
    transform, _ = EXAMPLES[name]
    location = np.array([1.5, 2.5])
    reach = 12 * std
    z = location[:, None] + reach * NODES
    density = np.exp(-0.5 * (reach * NODES / std) ** 2) / (std * np.sqrt(2 * np.pi)) * WEIGHTS * reach
    expected = (transform.inverse(NUMPY, z) * density).sum(axis=1)
    found = transform.mean(NUMPY, location, np.full(2, std))
    np.testing.assert_allclose(found, expected, rtol=2e-3 if name in ("square", "root") else 1e-6)


@each
def test_predictions_are_finite_and_in_the_domain_in_single_precision(name: str) -> None:
    """However far a prediction is out, it can be fed back."""
    transform, _ = EXAMPLES[name]
    far = np.array([-1e30, -1e4, -20.0, 20.0, 1e4, 1e30], np.float32)
    for predicted in (transform.inverse(NUMPY, far), transform.mean(NUMPY, far, np.full_like(far, 1e3))):
        assert predicted.dtype == np.float32
        assert np.isfinite(predicted).all()
        assert (predicted > transform.above).all()
        assert np.isfinite(transform.forward(NUMPY, predicted)).all()


def test_columns_have_transforms_of_their_own() -> None:
    log, root = EXAMPLES["log"][0], EXAMPLES["root"][0]
    x = np.random.default_rng(0).uniform(0.5, 2, (4, 5))
    kinds = (root, None, log, root, log)
    expected = np.stack([x[:, i] if kind is None else kind.forward(NUMPY, x[:, i]) for i, kind in enumerate(kinds)], -1)
    assert np.array_equal(transforms.forward(NUMPY, kinds, x), expected)
    np.testing.assert_allclose(transforms.inverse(NUMPY, kinds, expected), x)
    assert transforms.log_derivative(NUMPY, kinds, expected)[:, 1].tolist() == [0.0] * 4
    assert transforms.forward(NUMPY, (None,) * 5, x) is x


@pytest.mark.parametrize("exponent", [0.0, 0.3, 1.0])
def test_the_exponent_of_largest_likelihood_is_found(exponent: float) -> None:
    """The exponent that 4,000 values were made with is found, whatever their unit."""
    transform = Transform(kind="box_cox", exponent=exponent) if exponent else Transform(kind="log")
    z = 0.2 + 0.25 * np.random.default_rng(1).standard_normal(4000)
    x = transform.inverse(NUMPY, z)
    for unit in (1.0, 1e6):
        found = transforms.box_cox(x * unit)
        assert (found.exponent or 0.0) == pytest.approx(exponent, abs=0.12)


@pytest.mark.parametrize(("kind", "exponent"), [("box_cox", None), ("log", 0.5), ("box_cox", -0.5)])
def test_an_exponent_belongs_to_box_cox(kind: str, exponent: float | None) -> None:
    with pytest.raises(ValueError, match=r"exponent"):
        Transform.model_validate({"kind": kind, "exponent": exponent})
