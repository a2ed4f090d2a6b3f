"""The commands `onward models` and `onward sessions`, which list what a service has."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from onward.client.cli.common import echo_json, echo_table, service_command
from onward.client.results import SessionInfo

if TYPE_CHECKING:
    from onward.client.sync_client import Client


@click.command()
@service_command
def models(client: "Client", *, as_json: bool) -> None:
    """List the models that are served."""
    served = client.models()
    if as_json:
        echo_json(served)
        return
    echo_table(
        ["model", "versions", "task", "features", "sessions", "description"],
        [
            (model["name"], ", ".join(map(str, model["versions"])), model["task"], ", ".join(model["features"]),
             model["live_sessions"], model["description"])
            for model in served
        ],
    )  # fmt: skip


@click.command()
@click.option("--model", help="only the sessions of this model")
@click.option("--prefix", help="only the sessions whose ids begin with this")
@click.option(
    "--idle-s", type=click.FloatRange(min=0), help="with --delete: only the sessions without a step for so many seconds"
)
@click.option("--delete", is_flag=True, help="end these sessions instead of listing them")
@click.option("--yes", is_flag=True, help="with --delete: do not ask for confirmation")
@service_command
def sessions(
    client: "Client", *, model: str | None, prefix: str | None, idle_s: float | None, delete: bool, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """List the living sessions, or end a selection of them."""
    if delete:
        if model is None and prefix is None and idle_s is None:
            raise click.UsageError(
                "choose the sessions to end with --model, --prefix or --idle-s; --prefix '' means all"
            )
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
    chosen = (info for info in client.sessions(model, page=1000) if info.session_id.startswith(prefix or ""))
    if as_json:
        echo_json([_members(info) for info in chosen])
        return
    echo_table(
        ["session", "model", "version", "step", "last step", "expires", "surprise"],
        [
            (info.session_id, info.model, info.version, info.step, f"{info.last_step_at:%F %T}",
             info.expires_at and f"{info.expires_at:%F %T}", info.surprise and info.surprise.recent)
            for info in chosen
        ],
    )  # fmt: skip


def _members(info: SessionInfo) -> dict[str, object]:
    return {name: value for name, value in asdict(info).items() if name not in ("replayed", "prediction")}
