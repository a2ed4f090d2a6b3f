"""Forecasts that are drawn, and told what is known: against a real service."""

import json

import numpy as np
from click.testing import CliRunner

from onward.__main__ import main
from onward.client.sync_client import Client
from tests.e2e.server import Server
from tests.helpers.reference_loop import pulse


def test_paths_are_drawn_and_told_as_quantiles(client: Client) -> None:
    """Shapes as documented; quantiles rise and are the paths' own; the same seed draws the same."""
    with client.session("pulse", inputs=pulse(30)) as session:
        ahead_of = session.forecast(6, samples=50, quantiles=[0.1, 0.5, 0.9], seed=4, paths=True)
        assert (ahead_of.step, ahead_of.seed, ahead_of.samples, ahead_of.levels) == (30, 4, 50, (0.1, 0.5, 0.9))
        assert ahead_of["mean"].shape == (6, 1)
        assert ahead_of["quantiles"].shape == (6, 1, 3)
        assert ahead_of["paths"].shape == (50, 6, 1)
        assert (np.diff(ahead_of["quantiles"], axis=-1) >= 0).all()
        assert np.allclose(
            ahead_of["paths"].mean(axis=0)[1:], ahead_of["mean"][1:], rtol=1e-4
        )  # of the first step, the head's
        again = session.forecast(6, samples=50, quantiles=[0.1, 0.5, 0.9], seed=4)
        assert again["quantiles"].tobytes() == ahead_of["quantiles"].tobytes()
        assert "paths" not in again
        assert session.forecast(6, samples=50).seed is not None
        assert session.info().step == 30


def test_inputs_before_a_forecast_leave_the_session(client: Client) -> None:
    rows = pulse(20)
    with client.session("pulse", inputs=rows[:15]) as session:
        ahead = session.forecast(4, inputs=np.array(rows[15:]))
        assert session.info().step == 15
        session.steps(rows[15:])
        assert session.forecast(4)["mean"].tobytes() == ahead["mean"].tobytes()


def test_categories_have_probabilities(client: Client) -> None:
    with client.session("characters", inputs="The ") as session:
        ahead_of = session.forecast(3, samples=40, seed=1)
        assert set(ahead_of) >= {"top", "probability"}
        for likeliest, probability in zip(ahead_of["top"], ahead_of["probability"], strict=True):
            assert likeliest.shape == probability.shape
            assert ((probability > 0) & (probability <= 1)).all()


def test_the_command_draws(server: Server, client: Client) -> None:
    with client.session("pulse", inputs=pulse(20)) as session:
        arguments = ["forecast", "--session", session.id, "--horizon", "4", "--samples", "30", "--quantiles", "0.1,0.9"]
        env = {"ONWARD_URL": server.url}
        shown = CliRunner().invoke(main, [*arguments, "--seed", "5"], env=env)
        assert shown.exit_code == 0, shown.output
        assert shown.stdout.splitlines()[0].split("  ")[1:] != []
        assert shown.stdout.splitlines()[-1] == "seed: 5"
        ahead_of = json.loads(CliRunner().invoke(main, [*arguments, "--seed", "5", "--json"], env=env).stdout)
        assert np.array(ahead_of["forecast"]["quantiles"]).shape == (4, 1, 2)


def test_the_command_tells_likeliest_categories(server: Server, client: Client) -> None:
    """However many there are at a step."""
    with client.session("characters", inputs="The ") as session:
        arguments = ["forecast", "--session", session.id, "--horizon", "3", "--samples", "40", "--seed", "1"]
        ahead, env = session.forecast(3, samples=40, seed=1), {"ONWARD_URL": server.url}
        shown = CliRunner().invoke(main, arguments, env=env)
        assert shown.stdout.splitlines()[0].split() == ["ahead", "likeliest", "probability"], shown.output
        ahead_of = json.loads(CliRunner().invoke(main, [*arguments, "--json"], env=env).stdout)["forecast"]
        assert ahead_of["top"] == [row.tolist() for row in ahead["top"]]
