"""The root of the command line. Each command imports what it needs when it is used."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from onward import process_exit

SERVICE_COMMANDS = {
    "models": "listing", "sessions": "listing", "predict": "predictions", "stream": "predictions",
    "forecast": "predictions", "generate": "predictions", "load": "loadtest",
}  # fmt: skip
"""The commands that call a service, with their modules in `onward.client.cli`."""
SECTIONS = {
    "Serving": ("serve",),
    "Calling a service (--url, or ONWARD_URL)": tuple(SERVICE_COMMANDS),
    "Training": ("train", "tune", "export"),
    "Bundles": ("verify", "evaluate", "inspect"),
}


class _Commands(click.Group):
    """A group that imports a command of the client when it is used, and lists the commands by section.

    To call it is to run the process's command. Interrupts and failures of the output are handled here for all commands.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        process_exit.run(lambda: self.main(*args, **kwargs))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with process_exit.reported():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with process_exit.reported():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's signature)
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SERVICE_COMMANDS:
            return super().get_command(ctx, cmd_name)
        command = getattr(import_module(f"onward.client.cli.{SERVICE_COMMANDS[cmd_name]}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, names in SECTIONS.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            with formatter.section(section):
                formatter.write_dl([(name, command.get_short_help_str(90)) for name, command in commands if command])


@click.group(cls=_Commands)
@click.version_option(package_name="onward")
def main() -> None:
    """Serve recurrent models with their memory.

    To begin, run `onward serve` here, then `onward models` in a second terminal. `onward COMMAND --help` explains each
    command.

    Exit statuses: 0 done, 1 refused or wrong, 2 usage, 3 the service cannot be reached, 130 interrupted (Ctrl-C), 141
    the reader of the output has gone.
    """


@main.command()
def serve() -> None:
    """Serve the models of ONWARD_MODELS; every setting is an ONWARD_* environment variable (docs/settings.md)."""
    from onward.service.server.serve import serve as start

    start()


@main.command()
@click.argument("source", metavar="CONFIG|TABLE", type=click.Path(path_type=Path))
@click.option("--quiet", is_flag=True, help="no progress bar, and of the data's summary only hints")
@click.option("--resume", is_flag=True, help="resume a stopped run of this CONFIG")
@click.option(
    "--must-beat", is_flag=True, help="publish nothing and end with status 1 unless every naive forecast is beaten"
)
@click.option("--target", "targets", multiple=True, help="of a TABLE: a column to predict; by default all numbers")
@click.option("--series", help="of a TABLE: the column that tells series apart; by default found")
@click.option("--time", "times", multiple=True, help="of a TABLE: the column of the time; by default found")
@click.option(
    "--known", "plans", multiple=True, help="of a TABLE: a column whose future is known in advance, such as a plan"
)
@click.option(
    "--budget", default="1m", show_default=True, help="of a TABLE: the time to search and train in, such as 90s or 5m"
)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="of a TABLE: a key of the configuration")
@click.option(
    "--out", type=click.Path(path_type=Path), help="of a TABLE: the file of the configuration; default: NAME.toml"
)
@click.pass_context
def train(ctx: click.Context, /, source: Path, *, quiet: bool, resume: bool, must_beat: bool, **preset: Any) -> None:
    """Train, export, prove and evaluate a model of a TABLE, or of the TOML file CONFIG.

    For a TABLE, such as a CSV file, a configuration is found first: columns, transforms, size and rate are chosen by
    the error on the validation part, and written to a TOML file here with the reason of each choice.

    For several GPUs or machines: torchrun ... -m onward train CONFIG.
    """
    try:
        from onward.training import run
        from onward.training.config import ConfigError, read
        from onward.training.errors import DataError, TrainingError
        from onward.training.export.export_bundle import ExportError
        from onward.training.fit import devices
        from onward.training.report import report_table
        from onward.training.report.html_report import REPORT
        from onward.training.run import LosesError
    except ModuleNotFoundError as error:
        _fail(f"training needs {error.name}: pip install 'onward[train]'")
    from onward.model.checks import CheckError

    try:
        if source.suffix.lower() == ".toml":
            _refuse_preset_options(ctx)
            config = source
        else:
            config = _found_configuration(source, resume=resume, **preset)
        settings = read(config)
        stopped = settings.checkpoint_file.exists()
        if devices.is_first_process() and stopped != resume:
            state = (
                "a stopped run exists; this run starts anew, --resume would continue it"
                if stopped
                else "no stopped run exists; this run starts anew"
            )
            click.echo(f"onward: {settings.checkpoint_file}: {state}", err=True)
        fitted = run.fit(
            settings,
            quiet=quiet or None,
            resume=resume,
            must_beat=must_beat,
            on_summary=lambda found: click.echo(found.text(brief=quiet), err=True, nl=False),
        )
        if not devices.is_first_process():
            return
        bundle, model = run.publish(settings, fitted, must_beat=must_beat)
    except LosesError as error:
        click.echo(str(error))
        _fail("the model does not beat the naive forecasts, so with --must-beat nothing is published")
    except (ConfigError, DataError, TrainingError, ExportError, CheckError) as error:
        _fail(str(error))
    click.echo(report_table.text(model.manifest))
    click.echo(f"\nbundle: {bundle}\nserve it: ONWARD_MODELS={bundle.parent.parent} onward serve")
    click.echo(f"report: {bundle / REPORT}")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
def export(config: Path) -> None:
    """Export, prove and evaluate the best weights so far of a stopped run of the TOML file CONFIG."""
    try:
        from onward.training import run
        from onward.training.config import ConfigError, read
        from onward.training.errors import DataError, TrainingError
        from onward.training.export.export_bundle import ExportError
        from onward.training.report import report_table
    except ModuleNotFoundError as error:
        _fail(f"exporting needs {error.name}: pip install 'onward[train]'")
    from onward.model.checks import CheckError

    try:
        settings = read(config)
        bundle, model = run.publish(settings, run.restore_stopped(settings), finished=False)
    except (ConfigError, DataError, TrainingError, ExportError, CheckError) as error:
        _fail(str(error))
    click.echo(report_table.text(model.manifest))
    click.echo(f"\nbundle: {bundle}\nto continue the run: onward train {config} --resume")


@main.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(min=1), default=20, show_default=True, help="runs to try")
@click.option("--out", type=click.Path(path_type=Path), help="file for the better settings; default: CONFIG.tuned.toml")
def tune(config: Path, *, trials: int, out: Path | None) -> None:
    """Search for better settings of the TOML file CONFIG in its [tune.search], and write them to another file."""
    try:
        from onward.training import tune as tuning
        from onward.training.config import ConfigError, read
        from onward.training.errors import DataError, TrainingError
        from onward.training.fit import output_folders
    except ModuleNotFoundError as error:
        _fail(f"tuning needs {error.name}: pip install 'onward[train,tune]'")

    target = out or config.with_suffix(".tuned.toml")
    try:
        output_folders.require_writable(target.parent)
        best = tuning.search(read(config), trials, click.echo)
        if best.settings:
            tuning.write(config, best.settings, target)
    except (ConfigError, DataError, TrainingError) as error:
        _fail(str(error))
    if not best.settings:
        click.echo(f"\nnone of {best.runs - 1} runs was better than {config}, whose loss is {best.loss_before:.6g}")
        return
    click.echo(
        f"\nbest validation loss {best.loss:.6g}, before {best.loss_before:.6g}\nto train: onward train {target}"
    )


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
def verify(bundle: Path) -> None:
    """Verify the folder BUNDLE: its checksum, manifest and parity vectors, and the checks of model/checks.py."""
    from onward.model.checks import CheckError, check
    from onward.model.errors import BundleError
    from onward.model.repository import open_bundle

    try:
        model = open_bundle(bundle)
        check(model)
    except (BundleError, CheckError) as error:
        _fail(str(error))
    click.echo(f"{model.manifest.name} {model.manifest.version}: verified")


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with the settings by which TABLE is read")
@click.option("--test-from", help="the time from which the steps are scored: as 2012-01-31, or a number")
def evaluate(bundle: Path, table: Path, *, config: Path | None, test_from: str | None) -> None:
    """Evaluate the folder BUNDLE on the held-out part of TABLE, a CSV or Parquet file or a text."""
    try:
        from onward.training.config import ConfigError, read, read_moment
        from onward.training.errors import DataError
        from onward.training.evaluation import evaluate_bundle
        from onward.training.report.report_table import text
    except ModuleNotFoundError as error:
        _fail(f"evaluating needs {error.name}: pip install 'onward[train]'")
    from onward.model.errors import BundleError
    from onward.model.repository import open_bundle

    try:
        model = open_bundle(bundle)
        moment = None if test_from is None else read_moment(test_from)
        evaluation = evaluate_bundle.measure(model, table, read(config) if config else None, test_from=moment)
    except (BundleError, ConfigError, DataError) as error:
        _fail(str(error))
    click.echo(text(model.manifest.model_copy(update={"metrics": evaluation.metrics})))


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def inspect(bundle: Path, *, as_json: bool) -> None:
    """Describe the folder BUNDLE: tensors, state, head, sizes, and the time of a step."""
    try:
        from onward.training.evaluation import inspect_bundle
    except ModuleNotFoundError as error:
        _fail(f"inspecting needs {error.name}: pip install 'onward[train]'")
    from onward.model.errors import BundleError
    from onward.model.repository import open_bundle

    try:
        description = inspect_bundle.inspect(bundle, open_bundle(bundle))
    except BundleError as error:
        _fail(str(error))
    click.echo(json.dumps(description, indent=2) if as_json else inspect_bundle.text(description))


PRESET_OPTIONS = ("targets", "series", "times", "plans", "budget", "settings", "out")
"""The parameters of `onward train` that are about a table without a configuration."""


def _refuse_preset_options(ctx: click.Context) -> None:
    given = [
        option.opts[0]
        for option in ctx.command.params
        if option.name in PRESET_OPTIONS and ctx.get_parameter_source(option.name) != ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(f"{', '.join(given)} are for a TABLE; a CONFIG says this in its sections")


def _found_configuration(
    table: Path,
    *,
    resume: bool,
    targets: tuple[str, ...],
    series: str | None,
    times: tuple[str, ...],
    plans: tuple[str, ...],
    budget: str,
    settings: tuple[str, ...],
    out: Path | None,
) -> Path:
    """Returns the file of the configuration that is found for a table. Raises DataError, ConfigError, TrainingError."""
    from onward.training.preset import preset
    from onward.training.preset.columns import Named

    target = out or Path(f"{preset.model_name(table)}.toml")
    if resume:
        raise click.UsageError(f"to resume the run of a TABLE, name the configuration that was found: {target}")
    preset.require_absent(target)
    found = preset.configure(
        table,
        Named(targets, series, times, plans),
        name=target.stem,
        folder=target.parent,
        seconds=preset.seconds_of(budget),
        report=lambda line: click.echo(line, err=True),
        given=preset.values_of(settings),
    )
    preset.write(found, target, table)
    click.echo(f"configuration: {target}", err=True)
    return target


def _fail(message: str) -> NoReturn:
    click.echo(f"onward: {message}", err=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
