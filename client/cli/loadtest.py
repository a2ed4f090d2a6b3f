"""`onward load`: load whose answers are checked."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import click

from onward.client.cli.common import (
    PATIENCE_S,
    REFUSED,
    connected,
    echo_json,
    echo_table,
    failing,
    json_option,
    key,
    url_option,
)
from onward.client.cli.step_files import steps

SHOWN = 10
MADE_UP = 1000


class Mix(click.ParamType[dict[str, float]]):
    name = "mix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, float]:
        """`steps=8,forecasts=1` -> weights by kind."""
        from onward.client.loadtest.loadtest import KINDS

        if isinstance(value, dict):
            return value
        parts = [part.partition("=") for part in str(value).split(",")]
        try:
            told = {kind.strip(): float(weight) for kind, _, weight in parts}
        except ValueError:
            self.fail("expected weights such as steps=8,forecasts=1,creates=1", param, ctx)
        if unknown := set(told) - set(KINDS):
            self.fail(f"{', '.join(sorted(unknown))}: there are {', '.join(KINDS)}", param, ctx)
        if min(told.values()) < 0 or not sum(told.values()) > 0:
            self.fail("weights are not negative, and one of them is above 0", param, ctx)
        return told


@click.command()
@url_option
@json_option
@click.option("--model", required=True, help="the model to load")
@click.option("--sessions", type=click.IntRange(min=1), default=10, show_default=True, help="at once")
@click.option(
    "--rate", type=click.FloatRange(min=0), default=0.0, help="requests a second; 0, or left out: as many as go"
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True, help="how long"
)
@click.option(
    "--mix", type=Mix(), default="steps=1", show_default=True, help="how often each of steps, forecasts, creates"
)
@click.option("--horizon", type=click.IntRange(min=1), default=10, show_default=True, help="of forecasts")
@click.option(
    "--inputs", "file", type=click.Path(exists=True, dir_okay=False), help="steps to send; made up if left out"
)
@click.option(
    "--bundle", type=click.Path(exists=True, file_okay=False), help="replay all sessions on this folder, and compare"
)
@click.option("--seed", type=int, default=0, help="of what is left to chance")
def load(
    *, url: str, as_json: bool, model: str, sessions: int, rate: float, seconds: float, mix: dict[str, float],
    horizon: int, file: str | None, bundle: str | None, seed: int,
) -> None:  # fmt: skip
    """Load a service and check its answers: latencies, errors, and whether any answer was wrong (status 1).

    Every session must be where its acknowledged steps end. With --bundle each answer must also be what the bundle
    says in process, to the bit where its model is exact.
    """
    with failing(url):
        with connected(url) as client:
            detail = client.model(model)
        from onward.client.loadtest.loadtest import Load, Plan, replay
        from onward.client.local import load as load_bundle

        features, version = detail["inputs"], detail["version"]
        inputs = list(steps(file, None, features)) if file else made_up(features, Random(seed))  # noqa: S311  (load, not secrets)
        plan = Plan(model, version, inputs, sessions, rate, seconds, mix, horizon, seed)
        local = load_bundle(bundle) if bundle else None
        if local is not None:
            of = local.model.manifest
            if (of.name, of.version) != (model, version):
                what = f"this is {of.name} {of.version}, not {model} {version}, which sessions are of"
                raise click.BadParameter(what, param_hint="--bundle")

        async def run() -> Any:
            from onward.client.async_client import AsyncClient

            async with AsyncClient(url, key(), patience=PATIENCE_S) as driver:
                with click.progressbar(
                    length=round(seconds * 10), file=sys.stderr, label="load", hidden=not sys.stderr.isatty()
                ) as bar:
                    return await Load(driver, plan, lambda passed: bar.update(round(passed * 10))).run()

        found = asyncio.run(run())
        if local is not None:
            with click.progressbar(
                found.lives, file=sys.stderr, label="replay", hidden=not sys.stderr.isatty()
            ) as lives:
                found.wrong += [wrong for life in lives if (wrong := replay(local, life)) is not None]
    if as_json:
        echo_json(
            {
                "seconds": found.seconds,
                "requests": found.table(),
                "unsent": found.unsent,
                "errors": found.errors,
                "checked": found.checked,
                "wrong": found.wrong,
            }
        )
    else:
        show(found)
    if found.wrong:
        sys.exit(REFUSED)


def show(found: Any) -> None:
    rows = found.table()
    names = ["kind", "count", "a_second", "p50", "p90", "p99", "max"]
    echo_table(
        ["", "count", "a second", "p50 ms", "p90 ms", "p99 ms", "max ms"],
        [[row[name] for name in names] for row in rows],
    )
    if found.unsent:
        click.echo(f"{found.unsent} more requests were due and not sent")
    if found.errors:
        click.echo("errors: " + ", ".join(f"{count} {name}" for name, count in found.errors.most_common()))
    click.echo(f"{found.checked} steps of {len(found.lives)} sessions checked, {len(found.wrong)} wrong")
    for wrong in found.wrong[:SHOWN]:
        click.echo(f"onward: {wrong}", err=True)


def made_up(features: Sequence[Mapping[str, Any]], chance: Random) -> list[list[Any]]:
    """Steps that fit the model: numbers about 0, and any of the categories."""
    return [
        [chance.choice(one["categories"]) if one["kind"] == "category" else chance.gauss() for one in features]
        for _ in range(MADE_UP)
    ]
