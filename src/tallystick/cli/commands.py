"""The commands of ``tally``.

Heavy imports happen inside the commands, so that ``--help`` answers at once. The areas are reached
by name: this module imports none of them. A part that is not installed is an error that names the
command which installs it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tallystick import __version__
from tallystick.cli.log_commands import log
from tallystick.errors import MissingExtraError, TallystickError

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.materialization.materializer import Materialized

_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])
_EXTRAS = {
    "tallystick_serving": "serving",
    "tallystick_training": "training",
    "tallystick_monitoring": "monitoring",
    "tallystick_simulation": "demo",
}


class _Group(click.Group):
    """Turns Tallystick's errors into one message and a non-zero exit."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except TallystickError as error:
            click.echo(f"tally: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            # Disk full, no permission, no such folder: the system's sentence names the file.
            click.echo(f"tally: {error}", err=True)
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 click's signature
        """Commands in the order in which they are used."""
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tally")
@click.option(
    "--repo",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("feature_repo"),
    show_default=True,
    help="Folder of the Feast repo (it has feature_store.yaml).",
)
@click.pass_context
def main(context: click.Context, repo: Path) -> None:
    """A feature store in which training and serving match, and which proves it."""
    context.obj = repo


def _area(module_name: str, name: str) -> Callable[..., Any]:
    """A function of an area's module of commands."""
    import importlib

    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        extra = _EXTRAS[module_name.partition(".")[0]]
        raise MissingExtraError(f"tally {name}", extra) from error
    function: Callable[..., Any] = getattr(module, name)
    return function


def _open(path: Path) -> Repo:
    from tallystick.definitions.feature_repo import open_repo

    return open_repo(path)


def _run(module_name: str, name: str, path: Path, model: str, options: dict[str, Any]) -> None:
    """Run an area's command for a model, and print its result."""
    click.echo(_area(module_name, name)(_open(path), model, **options))


def _echo_result(result: tuple[object, bool]) -> None:
    """Print a report; exit with 1 if what it is about did not pass."""
    text, passed = result
    click.echo(text)
    if not passed:
        raise SystemExit(1)


def _moment(_: click.Context, __: click.Parameter, value: datetime | None) -> datetime | None:
    from tallystick.clock import utc

    return None if value is None else utc(value)


def _time_option(name: str, text: str) -> Callable[[Any], Any]:
    return click.option(f"--{name}", type=_TIME, callback=_moment, help=f"{text} (UTC).")


_clock_option = click.option(
    "--clock",
    type=click.Choice(["knowledge", "event", "served"]),
    default="knowledge",
    show_default=True,
    help="When a row counts as visible: once known, from its event time on, or once online.",
)
_repair_option = click.option(
    "--repair",
    is_flag=True,
    help="Keep rows that incidents touched, with the values that should have been served. "
    "Rows for which history is in doubt are left out.",
)
_model = click.argument("model")
_json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the report to this JSON file.",
)


@main.command()
@click.option(
    "--parity",
    is_flag=True,
    help="Compare offline, online and API over scratch stores. The repo is not changed.",
)
@click.option(
    "--sample",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Number of keys of each view, and of requests for each service and model.",
)
@_time_option("at", "Time as of which values are read; default now, or the end of history")
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the sample."
)
@_json_option
@click.option(
    "--fail-over",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Exit with 1 if more than this share of the values differ.",
)
@click.pass_obj
def check(path: Path, /, *, parity: bool, **options: Any) -> None:
    """Validate stores, definitions and contracts.

    With --parity, compare values before anything is served or promoted. The repo's definitions are
    applied to a scratch registry, materialized into a scratch store and served. Keys of each view
    are read offline, online and over HTTP. In CI:  tally check --parity && tally promote MODEL
    --version N
    """
    if parity:
        command = _area("tallystick_monitoring.parity_check.parity_run", "check_parity")
        _echo_result(command(path, **options))
        return
    _only_with_parity(options)
    from tallystick.cli.check import check as validate

    found = validate(_open(path))
    for mark, sentences in (("✓", found.passed), ("!", found.warnings), ("✗", found.failures)):
        for sentence in sentences:
            click.echo(f"{mark} {sentence}")
    if found.failures:
        raise SystemExit(1)


def _only_with_parity(options: Iterable[str]) -> None:
    """Refuse options that only --parity uses."""
    source = click.get_current_context().get_parameter_source
    for name in options:
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.removesuffix("_path").replace("_", "-")
            raise click.UsageError(f"{option} needs --parity:  tally check --parity {option} …")


@main.command()
@click.pass_obj
def apply(path: Path) -> None:
    """Register the repo's definitions, as feast apply does."""
    from tallystick.definitions.feature_repo import apply as register

    repo = _open(path)
    register(repo)
    click.echo(f"Applied {repo.path}: models {', '.join(sorted(repo.models)) or 'none'}")


@main.command()
@click.option("--view", "views", multiple=True, help="Only this view; may be repeated.")
@_time_option("until", "Up to when; default now")
@click.option(
    "--again", is_flag=True, help="Start from the beginning of history, not from the last run."
)
@click.pass_obj
def materialize(path: Path, *, views: tuple[str, ...], until: datetime | None, again: bool) -> None:
    """Bring online the rows that became known since the last run."""
    from tallystick.materialization.materializer import Materializer
    from tallystick.progress import progress

    materializer = Materializer(_open(path))
    total = len(views or materializer.views)
    done: list[Materialized] = []
    with progress(total) as bar:

        def step(result: Materialized) -> None:
            done.append(result)
            bar.step(result.view, done=len(done))

        materializer.run(views=views, until=until, again=again, progress=step)
    for result in done:
        click.echo(
            f"{result.view}: {result.won:,} rows written, {result.lost:,} older than the online "
            f"row, {result.repeated:,} already online (known until {result.until.isoformat()})"
        )


@main.command()
@_model
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Parquet file to write.",
)
@_time_option("start", "First request time; default the earliest")
@_time_option("end", "Request times before this; default now")
@_time_option("known-until", "Use labels known until then; default the end")
@click.option(
    "--from",
    "source",
    type=click.Choice(["history", "log"]),
    default="history",
    show_default=True,
    help="Take features from history, as known at each request, or from the log, as served.",
)
@_clock_option
@_repair_option
@click.option(
    "--memory-limit",
    help="Memory limit of the engine, for example 4GB; default from feature_store.yaml.",
)
@click.option(
    "--spill-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for spilled data; default from feature_store.yaml, or the folder of --out.",
)
@click.pass_obj
def dataset(path: Path, /, model: str, **options: Any) -> None:
    """Write a training set: entity rows, features, labels.

    It may be larger than memory. What does not fit is spilled to disk.
    """
    _run("tallystick_training.train_command", "dataset", path, model, options)


@main.command()
@_model
@_time_option("start", "First request time; default the earliest")
@_time_option("end", "Request times before this; default now")
@_clock_option
@_repair_option
@click.option(
    "--promote", is_flag=True, help="Make it the champion without comparing it to the present one."
)
@click.pass_obj
def train(path: Path, /, model: str, **options: Any) -> None:
    """Train a model, freeze its contract, register it."""
    _run("tallystick_training.train_command", "train", path, model, options)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@click.option(
    "--uds", type=click.Path(path_type=Path), help="Unix socket instead of host and port."
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Number of worker processes. Worker N serves its own metrics at port + N.",
)
@click.option("--worker", type=(int, int), hidden=True, help="Run as one worker: socket, number.")
@click.option(
    "--ends-with-input", is_flag=True, hidden=True, help="Stop at the end of standard input."
)
@click.pass_obj
def serve(
    path: Path,
    host: str,
    port: int,
    *,
    uds: Path | None,
    workers: int,
    worker: tuple[int, int] | None,
    ends_with_input: bool,
) -> None:
    """Answer requests over HTTP."""
    if worker is not None:
        shared, number = worker
        _area("tallystick_serving.serve_command", "work")(path, shared=shared, number=number)
        return
    _area("tallystick_serving.serve_command", "serve")(
        path,
        host=host,
        port=port,
        uds=uds,
        workers=workers,
        ends_with_input=ends_with_input,
    )


@main.command()
@_model
@_time_option("since", "First request time; default the first logged")
@_time_option("until", "Request times before this; default now")
@_clock_option
@click.option("--again", is_flag=True, help="Compare all requests again, not only new ones.")
@_json_option
@click.option(
    "--findings",
    "findings_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every mismatch to this Parquet file.",
)
@click.option(
    "--fail-over",
    type=click.FloatRange(0, 1),
    help="Exit with 1 if more than this share of the values are mismatches.",
)
@click.pass_obj
def audit(path: Path, /, model: str, **options: Any) -> None:
    """Recompute served values and explain each mismatch."""
    command = _area("tallystick_monitoring.monitor_command", "audit")
    _echo_result(command(_open(path), model, **options))


@main.command()
@_model
@_time_option("since", "First request time; default the first logged")
@_time_option("until", "Request times before this; default now")
@click.pass_obj
def monitor(path: Path, /, model: str, **options: Any) -> None:
    """Record parity, freshness, drift and performance."""
    _run("tallystick_monitoring.monitor_command", "monitor", path, model, options)


@main.command()
@_model
@_repair_option
@click.pass_obj
def retrain(path: Path, /, model: str, **options: Any) -> None:
    """Decide from the last look whether to retrain, and do it."""
    _run("tallystick_training.train_command", "retrain", path, model, options)


@main.command()
@_model
@click.option("--version", required=True, help="Version in the model registry.")
@click.pass_obj
def promote(path: Path, /, model: str, **options: Any) -> None:
    """Make a registered version the champion."""
    _run("tallystick_training.train_command", "promote", path, model, options)


@main.command()
@_model
@click.pass_obj
def rollback(path: Path, model: str) -> None:
    """Make the previous champion the champion again."""
    _run("tallystick_training.train_command", "rollback", path, model, {})


@main.command()
@click.pass_obj
def status(path: Path) -> None:
    """Show what is online, logged and served."""
    from tallystick.cli.status import status as lines

    for line in lines(_open(path)):
        click.echo(line)


main.add_command(log)


@main.command()
@click.pass_obj
def stop(path: Path) -> None:
    """Stop the embedded Redis. Its data is kept."""
    from tallystick.definitions.feature_repo import state_dir
    from tallystick.online_store import embedded_redis

    state = state_dir(path.resolve())
    running = embedded_redis.is_running(state)
    embedded_redis.stop(state)
    click.echo("Stopped the embedded Redis." if running else "No embedded Redis is running.")


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Folder for report, pictures and state of the replay.",
)
@click.pass_obj
def demo(path: Path, out: Path) -> None:
    """Replay the history of the repo through the whole loop."""
    click.echo(_area("tallystick_simulation.demo_command", "demo")(path, out))
