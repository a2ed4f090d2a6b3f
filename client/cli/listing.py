"""`onward models` and `onward sessions`: what is there."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from onward.client.cli.common import echo_json, echo_table, talking
from onward.client.session_info import SessionInfo

if TYPE_CHECKING:
    from onward.client.sync_client import Client


@click.command()
@talking
def models(client: "Client", *, as_json: bool) -> None:
    """List the models that are served."""
    found = client.models()
    if as_json:
        echo_json(found)
        return
    echo_table(
        ["model", "versions", "task", "features", "sessions", "description"],
        [
            (one["name"], ", ".join(map(str, one["versions"])), one["task"], ", ".join(one["features"]),
             one["live_sessions"], one["description"])
            for one in found
        ],
    )  # fmt: skip


@click.command()
@click.option("--model", help="only this model's")
@click.option("--prefix", help="only those whose id begins so")
@click.option("--idle-s", type=click.FloatRange(min=0), help="with --delete: only those not stepped for so long")
@click.option("--delete", is_flag=True, help="end them instead of listing them")
@click.option("--yes", is_flag=True, help="with --delete: do not ask")
@talking
def sessions(
    client: "Client", *, model: str | None, prefix: str | None, idle_s: float | None, delete: bool, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """List the living sessions, or end those that are chosen."""
    if delete:
        if model is None and prefix is None and idle_s is None:
            raise click.UsageError("say which sessions are to end: --model, --prefix, --idle-s; --prefix '' means all")
        if not yes:
            click.confirm("End these sessions?", abort=True, err=True)
        ended = client.delete_sessions(model, prefix, idle_s)
        if as_json:
            echo_json({"ended": ended})
        else:
            click.echo(f"ended: {ended}")
        return
    if idle_s is not None:
        raise click.UsageError("--idle-s goes with --delete")
    found = (one for one in client.sessions(model, page=1000) if one.session_id.startswith(prefix or ""))
    if as_json:
        echo_json([_plain(one) for one in found])
        return
    echo_table(
        ["session", "model", "version", "step", "last step", "expires", "surprise"],
        [
            (one.session_id, one.model, one.version, one.step, f"{one.last_step_at:%F %T}",
             one.expires_at and f"{one.expires_at:%F %T}", one.surprise and one.surprise.recent)
            for one in found
        ],
    )  # fmt: skip


def _plain(one: SessionInfo) -> dict[str, object]:
    return {name: value for name, value in asdict(one).items() if name not in ("replayed", "prediction")}
