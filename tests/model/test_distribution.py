"""The distributions of heads, against published tables, closed forms, integrals, and many draws."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onward.model import distribution
from onward.model.distribution import Array
from onward.model.manifest import Head
from onward.model.transforms import Transform

GAUSSIAN = Head(kind="gaussian", outputs=("mean", "std"), targets=("x", "y"))
STUDENT_T = Head(kind="student_t", outputs=("mean", "scale", "df"), targets=("x", "y"))
QUANTILES = Head(kind="quantiles", outputs=("median", "quantiles"), targets=("x",), levels=(0.1, 0.5, 0.8))
DRAWS = 40_000


def array(*values: float) -> Array:
    return np.array(values, np.float64)


def head_outputs(**outputs: Any) -> NDArray[np.void]:
    """(rows,) outputs, each given as (rows, ...)."""
    arrays = {name: np.asarray(value, np.float32) for name, value in outputs.items()}
    rows = len(next(iter(arrays.values())))
    outputs_array = np.zeros(rows, np.dtype([(name, np.float32, value.shape[1:]) for name, value in arrays.items()]))
    for name, value in arrays.items():
        outputs_array[name] = value
    return outputs_array


def two_degrees(x: Array) -> Array:
    """The distribution function of Student's t with 2 degrees of freedom, in closed form."""
    return np.asarray(0.5 + x / (2 * np.sqrt(2 + x * x)), np.float64)


TABLE = [
    (1, 0.75, 1.0),
    (1, 0.975, 12.706),
    (2, 0.95, 2.920),
    (3, 0.9, 1.638),
    (5, 0.995, 4.032),
    (10, 0.975, 2.228),
    (30, 0.95, 1.697),
    (60, 0.9995, 3.460),
    (120, 0.975, 1.980),
    (1_000_000, 0.975, 1.960),
]
"""Degrees of freedom, level, quantile: the table of NIST/SEMATECH's e-Handbook of Statistical Methods, 1.3.6.7.2."""


@pytest.mark.parametrize(("df", "level", "quantile"), TABLE)
def test_quantiles_of_students_t_are_the_published_ones(df: float, level: float, quantile: float) -> None:
    """Both tails, to the table's three digits, and the distribution function leads back."""
    found = distribution.student_t_quantile(level, array(df))
    assert found[0] == pytest.approx(quantile, abs=6e-4)
    assert distribution.student_t_quantile(1 - level, array(df))[0] == pytest.approx(-found[0], rel=1e-7)
    assert distribution.student_t_cdf(found, df)[0] == pytest.approx(level, abs=1e-12)


def test_the_distribution_function_of_students_t_in_closed_form() -> None:
    """The function has closed forms for 1 and 2 degrees of freedom; in the far tails it is 0 and 1."""
    x = array(-30, -1, 0, 0.2, 5)
    assert distribution.student_t_cdf(x, 2) == pytest.approx(two_degrees(x), abs=1e-13)
    assert distribution.student_t_cdf(x, 1) == pytest.approx(0.5 + np.arctan(x) / np.pi, abs=1e-13)
    assert distribution.student_t_cdf(array(-1e9, 1e9), 8) == pytest.approx([0, 1], abs=1e-13)


LEVELS = (
    1e-15,
    1e-12,
    1e-9,
    1e-6,
    1e-3,
    0.01,
    0.1,
    0.3,
    0.49,
    0.5,
    0.51,
    0.7,
    0.9,
    0.99,
    1 - 1e-6,
    1 - 1e-12,
    1 - 1e-15,
)


def closed_form(df: int, level: float) -> float:
    """The quantile of Student's t for 1, 2 and 4 degrees of freedom (Shaw 2006, sections 2.2 to 2.4)."""
    nearer = min(level, 1 - level)
    spread = 4 * nearer * (1 - nearer)
    match df:
        case 1:
            far = math.tan(math.pi * (0.5 - nearer)) if nearer > 0.1 else 1 / math.tan(math.pi * nearer)
        case 2:
            far = (1 - 2 * nearer) * math.sqrt(2 / spread)
        case _:
            far = 2 * math.sqrt(math.cos(math.acos(math.sqrt(spread)) / 3) / math.sqrt(spread) - 1)
    return math.copysign(far, level - 0.5)


@pytest.mark.parametrize("df", [1, 2, 4])
@pytest.mark.parametrize("level", LEVELS)
def test_quantiles_of_students_t_in_closed_form(df: int, level: float) -> None:
    """As far out as levels go, and the distribution function leads back with as many digits."""
    found = distribution.student_t_quantile(level, array(df))
    assert found[0] == pytest.approx(closed_form(df, level), rel=1e-12, abs=1e-12)
    assert distribution.student_t_cdf(found, df)[0] == pytest.approx(level, rel=1e-12)


@pytest.mark.parametrize("df", [0.3, 0.9, 1.5, 2.5, 7, 20, 33, 34, 50, 79, 80, 81, 100, 300, 1e3, 1e4, 1e6])
def test_the_integral_under_students_t_is_the_beta_function(df: float) -> None:
    """The nodes of the quadrature cover the whole integral for few and many degrees of freedom; levels lead back."""
    whole, _ = distribution._log_tail(np.asarray(math.pi / 2), np.asarray(df))
    assert float(whole) + math.log(2) == pytest.approx(float(distribution.log_beta(0.5, array(df / 2))[0]), abs=1e-8)
    found = distribution.student_t_quantile(LEVELS, array(df))[0]
    assert distribution.student_t_cdf(found, df) == pytest.approx(np.array(LEVELS), rel=1e-11)
    assert (np.diff(found) > 0).all()


def test_far_out_students_t_falls_as_a_power() -> None:
    """The quantile of the level 1e-12 with 2.5 degrees of freedom, 5.5e4, has five digits of its leading term."""
    leading = (1e-12 * 2.5 * math.exp(float(distribution.log_beta(0.5, array(1.25))[0]))) ** (1 / 2.5)
    found = distribution.student_t_quantile((1e-12, 1 - 1e-12), array(2.5))[0]
    assert found[0] == pytest.approx(-math.sqrt(2.5) / leading, rel=1e-5)
    assert found[1] == pytest.approx(-found[0], rel=1e-4)  # 1 - 1e-12 is not quite that


def test_a_quantile_does_not_depend_on_others_of_its_array() -> None:
    """A quantile has the same bits alone, among many degrees of freedom, and in a second call."""
    df = 1.5 + 40 * np.random.default_rng(0).random(300)
    many = distribution.student_t_quantile((0.01, 0.3, 0.9), df)
    for index in (0, 7, 299):
        alone = [distribution.student_t_quantile(level, df[index : index + 1])[0] for level in (0.01, 0.3, 0.9)]
        assert alone == many[index].tolist()
    again = distribution.student_t_quantile((0.01, 0.3, 0.9), df)
    assert again.tobytes() == many.tobytes()


def test_each_step_has_its_own_degrees_of_freedom() -> None:
    """Quantiles have the shape of the degrees of freedom."""
    df = np.array([[1.0, 5.0], [5.0, 30.0]])
    assert distribution.student_t_quantile(0.975, df) == pytest.approx(
        np.array([[12.706, 2.571], [2.571, 2.042]]), abs=6e-4
    )


EXAMPLES = {
    "gaussian": (GAUSSIAN, head_outputs(mean=[[1, -2]], std=[[2, 0.5]])),
    "student_t": (STUDENT_T, head_outputs(mean=[[1, -2]], scale=[[2, 0.5]], df=[[3, 8]])),
    "quantiles": (QUANTILES, head_outputs(median=[[2]], quantiles=[[[1, 2, 5]]])),
}


def test_quantiles_lie_at_every_target_and_level() -> None:
    """A normal distribution's are its mean and so many deviations; Student's t its location and so many scales."""
    levels = (0.05, 0.5, 0.975)
    outputs = head_outputs(mean=[[1, -2], [7, 0]], std=[[2, 0.5], [1, 1]])
    found = distribution.quantile(GAUSSIAN, outputs, levels)
    assert found.shape == (2, 2, 3)
    assert found[0, 1, 2] == pytest.approx(-2 + 0.5 * NormalDist().inv_cdf(0.975))
    assert found[:, :, 1] == pytest.approx(outputs["mean"])
    head, outputs = EXAMPLES["student_t"]
    assert distribution.quantile(head, outputs, (0.9, 0.95))[0, 0, 0] == pytest.approx(1 + 2 * 1.638, abs=2e-3)


def test_lines_between_quantiles_and_exponential_tails_beyond() -> None:
    """The head's quantiles are met, between them the line is straight, and a tail falls by e over one beta."""
    head, outputs = EXAMPLES["quantiles"]
    low, high = (2 - 1) / math.log(0.5 / 0.1), (5 - 2) / math.log((1 - 0.5) / (1 - 0.8))
    levels = (0.1 / math.e, 0.1, 0.3, 0.5, 0.65, 0.8, 1 - 0.2 / math.e)
    expected = [1 - low, 1, 1.5, 2, 3.5, 5, 5 + high]
    assert distribution.quantile(head, outputs, levels)[0, 0] == pytest.approx(expected, rel=1e-6)


def test_the_mean_of_quantiles_is_the_integral_over_the_levels() -> None:
    """The closed form against a sum over fine levels, finest in the tails; the other heads output their mean."""
    head, outputs = EXAMPLES["quantiles"]
    u = 1 / (1 + np.exp(-np.linspace(-30, 30, 200_001)))
    u = u[u < 1]
    integral = float(np.trapezoid(distribution.quantile(head, outputs, list(u))[0, 0], u))
    assert distribution.mean(head, outputs)[0, 0] == pytest.approx(integral, abs=1e-4)
    two = QUANTILES.model_copy(update={"levels": (0.2, 0.9)})
    outputs = head_outputs(median=[[2]], quantiles=[[[1, 5]]])
    integral = float(np.trapezoid(distribution.quantile(two, outputs, list(u))[0, 0], u))
    assert distribution.mean(two, outputs)[0, 0] == pytest.approx(integral, abs=1e-4)
    for kind in ("gaussian", "student_t"):
        assert distribution.mean(*EXAMPLES[kind])[0].tolist() == [1, -2]


@pytest.mark.parametrize("kind", EXAMPLES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_have_the_distribution(kind: str, temperature: float) -> None:
    """Deep in both tails too the share of draws below a quantile is its level; at half the heat half as far."""
    head, outputs = EXAMPLES[kind]
    drawn = distribution.draw(head, np.repeat(outputs, DRAWS), np.random.default_rng(1), temperature)
    centre = outputs[head.outputs[0]].astype(np.float64)
    for level in (0.01, 0.1, 0.3, 0.5, 0.7, 0.95, 0.99):
        at = centre + temperature * (distribution.quantile(head, outputs, (level,))[..., 0] - centre)
        error = 4 * math.sqrt(level * (1 - level) / DRAWS)
        assert (drawn <= at).mean(axis=0) == pytest.approx(np.full(at.shape[1], level), abs=error)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_without_heat_a_draw_is_the_centre(kind: str) -> None:
    """A rollout without draws feeds this centre back; the same generator gives the same draws."""
    head, outputs = EXAMPLES[kind]
    centre = outputs[head.outputs[0]].astype(np.float64)
    assert np.array_equal(distribution.draw(head, outputs, np.random.default_rng(1), 0.0), centre)
    first, same, different = (distribution.draw(head, outputs, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tobytes() == same.tobytes() != different.tobytes()


def test_heads_without_a_distribution() -> None:
    """Points, categories and a single quantile have no distribution, and draws from them are refused."""
    point = Head(kind="point", outputs=("point",), targets=("x",))
    median_only = QUANTILES.model_copy(update={"levels": (0.5,)})
    categorical = Head(kind="categorical", outputs=("top", "log_probability"), targets=("x",))
    assert [distribution.has_distribution(head) for head in (point, median_only, categorical)] == [False, False, False]
    assert all(distribution.has_distribution(head) for head, _ in EXAMPLES.values())
    outputs = head_outputs(point=[[1]])
    with pytest.raises(ValueError, match="point has no distribution"):
        distribution.draw(point, outputs, np.random.default_rng(1))
    with pytest.raises(ValueError, match="point has no distribution"):
        distribution.quantile(point, outputs, (0.5,))


LOG = Transform(kind="log")
TRANSFORMED = {
    "gaussian": (
        Head(kind="gaussian", outputs=("mean", "location", "scale"), targets=("x", "y"), transforms=(LOG, None)),
        head_outputs(mean=[[math.exp(1.125), -2]], location=[[1, -2]], scale=[[0.5, 2]]),
    ),
    "student_t": (
        Head(
            kind="student_t", outputs=("median", "location", "scale", "df"), targets=("x", "y"), transforms=(LOG, None)
        ),
        head_outputs(median=[[math.e, -2]], location=[[1, -2]], scale=[[0.5, 2]], df=[[3, 8]]),
    ),
    "quantiles": (
        Head(
            kind="quantiles",
            outputs=("median", "quantiles"),
            targets=("x", "y"),
            levels=(0.1, 0.5, 0.8),
            transforms=(LOG, None),
        ),
        head_outputs(median=[[math.e, 2]], quantiles=[[np.exp([0.2, 1, 2]), [1, 2, 5]]]),
    ),
}


@pytest.mark.parametrize("kind", TRANSFORMED)
def test_distributions_of_transformed_targets_are_inverse_transforms(kind: str) -> None:
    """Quantiles are the inverse transforms of those in transformed units, draws have them, and the means are finite."""
    head, outputs = TRANSFORMED[kind]
    plain = head.model_copy(update={"transforms": (), "outputs": EXAMPLES[kind][0].outputs})
    if kind == "quantiles":
        in_logarithms = head_outputs(median=[[1, 2]], quantiles=[[[0.2, 1, 2], [1, 2, 5]]])
    else:
        df = {"df": [[3, 8]]} if kind == "student_t" else {}
        in_logarithms = head_outputs(mean=[[1, -2]], **{plain.outputs[1]: [[0.5, 2]]}, **df)
    levels = (0.02, 0.1, 0.3, 0.5, 0.8, 0.99)
    expected = distribution.quantile(plain, in_logarithms, levels)
    expected[:, 0] = np.exp(expected[:, 0])
    found = distribution.quantile(head, outputs, levels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    drawn = distribution.draw(head, np.repeat(outputs, DRAWS), np.random.default_rng(1))
    for index, level in enumerate(levels):
        error = 4 * math.sqrt(level * (1 - level) / DRAWS)
        assert (drawn <= found[..., index]).mean(axis=0) == pytest.approx(np.full(2, level), abs=error)
    assert distribution.has_mean(head).tolist() == [kind == "gaussian", True]
    mean = distribution.mean(head, outputs)[0]
    assert mean[0] == pytest.approx(drawn[:, 0].mean() if kind == "gaussian" else math.e, rel=0.02)
    assert mean[1] == pytest.approx(distribution.mean(plain, in_logarithms)[0, 1])
    assert distribution.has_distribution(head)
    cold = distribution.draw(head, outputs, np.random.default_rng(1), 0.0)
    np.testing.assert_allclose(cold, found[..., 3], rtol=1e-6)
