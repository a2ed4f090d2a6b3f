"""The command `onward load`, which loads a service and checks its answers."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import click

from onward.client.cli.common import (
    REFUSED,
    RETRY_DEADLINE_S,
    connected,
    echo_json,
    echo_table,
    exit_statuses,
    json_option,
    key,
    url_option,
)

MOST_SHOWN = 10
RANDOM_STEPS = 1000


class Mix(click.ParamType[dict[str, float]]):
    name = "mix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        """Returns weights by kind: `steps=8,forecasts=1` -> {"steps": 8.0, "forecasts": 1.0}."""
        from onward.client.loadtest.loadtest import KINDS

        if isinstance(value, dict):
            return value
        parts = [part.partition("=") for part in str(value).split(",")]
        try:
            weights = {kind.strip(): float(weight) for kind, _, weight in parts}
        except ValueError:
            self.fail("expected weights such as steps=8,forecasts=1,creates=1", param, ctx)
        if unknown := set(weights) - set(KINDS):
            self.fail(f"{', '.join(sorted(unknown))}: the kinds are {', '.join(KINDS)}", param, ctx)
        if min(weights.values()) < 0 or not sum(weights.values()) > 0:
            self.fail("no weight may be negative, and at least one must be above 0", param, ctx)
        return weights


@click.command()
@url_option
@json_option
@click.option("--model", required=True, help="the model to load")
@click.option(
    "--sessions", type=click.IntRange(min=1), default=10, show_default=True, help="the number of sessions at once"
)
@click.option(
    "--rate", type=click.FloatRange(min=0), default=0.0, help="requests a second; by default as many as are answered"
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="the duration of the load",
)
@click.option(
    "--mix",
    type=Mix(),
    default="steps=1",
    show_default=True,
    help="the relative frequencies of steps, forecasts, creates",
)
@click.option("--horizon", type=click.IntRange(min=1), default=10, show_default=True, help="the horizon of forecasts")
@click.option(
    "--inputs",
    "file",
    type=click.Path(exists=True, dir_okay=False),
    help="a file of steps to send, each session those of one series; by default random steps",
)
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False),
    help="replay all sessions on the bundle in this folder, and compare the answers",
)
@click.option("--seed", type=int, default=0, help="the seed of random choices")
def load(
    *, url: str, as_json: bool, model: str, sessions: int, rate: float, seconds: float, mix: dict[str, float],
    horizon: int, file: str | None, bundle: str | None, seed: int,
) -> None:  # fmt: skip
    """Load a service and check its answers: latencies, errors, and whether any answer was wrong (status 1).

    Every session must be at the step after its acknowledged steps. With --bundle each answer must also be that of the
    bundle in this process, bit for bit if its model is exact.
    """
    with exit_statuses(url):
        with connected(url) as client:
            detail = client.model(model)
        from onward.client.loadtest.loadtest import Load, Plan, replay
        from onward.client.local import load as load_bundle
        from onward.client.step_files import read_steps

        features, version = detail["inputs"], detail["version"]
        if file:
            sequences = [list(series.steps) for series in read_steps(file, detail)]
        else:
            sequences = [random_steps(features, Random(seed))]  # noqa: S311  (load, not secrets)
        plan = Plan(model, version, sequences, sessions, rate, seconds, mix, horizon, seed)
        local = load_bundle(bundle) if bundle else None
        if local is not None:
            manifest = local.model.manifest
            if (manifest.name, manifest.version) != (model, version):
                what = (
                    f"this bundle is {manifest.name} {manifest.version}; the service's sessions use {model} {version}"
                )
                raise click.BadParameter(what, param_hint="--bundle")

        async def run() -> Any:
            from onward.client.async_client import AsyncClient

            async with AsyncClient(url, key(), patience=RETRY_DEADLINE_S) as client:
                with click.progressbar(
                    length=round(seconds * 10), file=sys.stderr, label="load", hidden=not sys.stderr.isatty()
                ) as bar:
                    return await Load(client, plan, lambda passed: bar.update(round(passed * 10))).run()

        report = asyncio.run(run())
        if local is not None:
            with click.progressbar(
                report.sessions, file=sys.stderr, label="replay", hidden=not sys.stderr.isatty()
            ) as replayed:
                report.wrong += [wrong for record in replayed if (wrong := replay(local, record)) is not None]
    if as_json:
        echo_json(
            {
                "seconds": report.seconds,
                "requests": report.table(),
                "unsent": report.unsent,
                "errors": report.errors,
                "checked": report.checked,
                "wrong": report.wrong,
            }
        )
    else:
        show(report)
    if report.wrong:
        sys.exit(REFUSED)


def show(report: Any) -> None:
    rows = report.table()
    names = ["kind", "count", "a_second", "p50", "p90", "p99", "max"]
    echo_table(
        ["", "count", "a second", "p50 ms", "p90 ms", "p99 ms", "max ms"],
        [[row[name] for name in names] for row in rows],
    )
    if report.unsent:
        click.echo(f"{report.unsent} requests were due but not sent")
    if report.errors:
        click.echo("errors: " + ", ".join(f"{count} {name}" for name, count in report.errors.most_common()))
    click.echo(f"{report.checked} steps of {len(report.sessions)} sessions checked, {len(report.wrong)} wrong")
    for wrong in report.wrong[:MOST_SHOWN]:
        click.echo(f"onward: {wrong}", err=True)


def random_steps(features: Sequence[Mapping[str, Any]], chance: Random) -> list[list[Any]]:
    """Returns steps that fit the model: normally distributed numbers, and any of the categories."""
    return [
        [
            chance.choice(feature["categories"]) if feature["kind"] == "category" else chance.gauss()
            for feature in features
        ]
        for _ in range(RANDOM_STEPS)
    ]
