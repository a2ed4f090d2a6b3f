"""A plan that decides the next value: training, evaluation, forecasts and files give it to the step that needs it."""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

import onward
from onward.model.tables import inputs
from onward.model.tables.inputs import StepLayout
from onward.training import run
from onward.training.config import Config
from onward.training.evaluation.point_metrics import Array

STEPS, HORIZON, NOISE, DEVIATION = 4000, 12, 1.0, 1.0
FUTURE = 12
"""Further rows of the file that have a plan and nothing else."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A bundle trained on y = 2 x plan + noise, its metrics, and the file with its plan and noise."""

    bundle: Path
    metrics: Any
    plan: Array  # (STEPS + FUTURE,)
    noise: Array  # (STEPS,)


@cache
def planned(lead: int, head: str = "gaussian") -> Planned:
    folder, rng = Path(mkdtemp()), np.random.default_rng(7)
    plan, noise = DEVIATION * rng.standard_normal(STEPS + FUTURE), NOISE * rng.standard_normal(STEPS)
    y = [f"{value:.9g}" for value in 2 * plan[:STEPS] + noise] + [""] * FUTURE
    rows = [f"{value:.9g},{target}" for value, target in zip(plan, y, strict=True)]
    if not lead:
        rows = rows[:STEPS]
    (folder / "t.csv").write_text("\n".join(["plan,y", *rows]) + "\n")
    config = Config.model_validate(
        {
            "name": "planned",
            "data": {"path": "t.csv", "targets": ("y",), "features": ("y", "plan"), "known": ("plan",), "lead": lead},
            "model": {"cell": "lstm", "units": 16, "head": head},
            "train": {"epochs": 40, "window": 25, "batch": 16, "learning_rate": 0.01, "schedule": "cosine"},
        }
    ).model_copy(update={"folder": folder})
    bundle, model = run.train(config, quiet=True)
    return Planned(bundle, model.manifest.metrics, plan, noise)


def held_out_noise(trained: Planned) -> float:
    return float(np.sqrt((trained.noise[-int(trained.metrics["steps"]) :] ** 2).mean()))


@pytest.mark.parametrize("head", ["gaussian", "point", "quantiles"])
def test_the_error_is_that_of_the_noise(head: str) -> None:
    """The error is within 5% of the noise, the least that any model can reach, and within 10% at 12 steps."""
    trained = planned(1, head)
    assert trained.metrics["targets"]["y"]["model"]["rmse"] < 1.05 * held_out_noise(trained)
    by_horizon = trained.metrics["horizons"]["targets"]["y"]["model"]["rmse"]
    assert len(by_horizon) == HORIZON
    assert max(by_horizon) < 1.10 * held_out_noise(trained)


def test_without_a_lead_the_plan_comes_too_late() -> None:
    """The same network without a lead predicts as the mean does."""
    trained = planned(0)
    assert trained.metrics["targets"]["y"]["model"]["rmse"] > 0.9 * 2 * DEVIATION


def test_a_session_takes_the_next_plan_from_a_file_and_by_hand(tmp_path: Path) -> None:
    """Steps of a file and future rows of a forecast have the plan of the step that is predicted, as in training."""
    trained = planned(1)
    model = onward.load(trained.bundle)
    (feature,) = [feature for feature in model.model.manifest.features if feature.role == "known"]
    assert feature.lead == 1
    layout = StepLayout.of_manifest(model.model.manifest)
    table = inputs.read(trained.bundle.parents[2] / "t.csv", layout)
    ((_, steps),) = table.series
    assert (len(steps), table.notes) == (STEPS, [])
    assert steps[-1]["plan"] == pytest.approx(trained.plan[STEPS])
    session = model.session()
    session.steps(steps)
    future = tmp_path / "future.csv"
    future.write_text("plan\n" + "\n".join(f"{value:.9g}" for value in trained.plan[STEPS:]) + "\n")
    ((_, ahead),) = inputs.read(future, replace(layout, only=["plan"])).series
    forecast = session.forecast(FUTURE, future=ahead)["mean"][:, 0]
    assert np.sqrt(((forecast - 2 * trained.plan[STEPS:]) ** 2).mean()) < NOISE / 2
    by_hand = session.forecast(FUTURE, future=[[value] for value in trained.plan[STEPS + 1 :]])
    np.testing.assert_allclose(by_hand["mean"][:, 0], forecast, rtol=1e-6)
