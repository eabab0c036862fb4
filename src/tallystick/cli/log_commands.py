"""``tally log``: compact, import, export and mend the prediction log."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystick.definitions.contract import ModelContract
    from tallystick.prediction_log.compactor import CompactionReport

logger = logging.getLogger(__name__)


@click.group()
def log() -> None:
    """Compact, import, export and mend the prediction log."""


@log.command()
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    help="Compact again every so many seconds, until the standard input ends.",
)
@click.pass_obj
def compact(path: Path, every: float | None) -> None:
    """Move what was logged into Parquet files."""
    state = _state_of(path)
    if every is None:
        for line in _compact(state):
            click.echo(line)
        return
    from tallystick.server_process import when_input_ends

    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ended = threading.Event()
    when_input_ends(ended.set)
    while not ended.wait(every):
        _compact_and_log_errors(state)
    _compact_and_log_errors(state)


@log.command(name="import")
@click.argument("model")
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--contract",
    "contract_path",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Contract under which they were made; default the champion's.",
)
@click.pass_obj
def import_(path: Path, model: str, files: tuple[Path, ...], contract_path: Path | None) -> None:
    """Import predictions that another server logged.

    MODEL is a model of the repo; or a feature service that another server answers from.
    """
    from tallystick.errors import InputError, Problem
    from tallystick.model_bundle.bundle import bundle_dir, read_champion, read_contract
    from tallystick.prediction_log.log_import import import_file

    state = _state_of(path)
    if contract_path is not None:
        contract = read_contract(contract_path)
    elif (service := _observed(path, model)) is not None:
        contract = service
    else:
        champion = read_champion(state, model)
        contract_path = bundle_dir(state, model, champion.contract_hash) / "contract.json"
        contract = read_contract(contract_path)
    if contract.model != model:
        raise InputError(
            f"{contract_path} is not a contract of this model.",
            [Problem("model", model, contract.model)],
        )
    for file in files:
        rows = import_file(state, contract, file)
        click.echo(f"{file}: {rows:,} predictions imported" if rows else f"{file}: imported before")


@log.command()
@click.pass_obj
def export(path: Path) -> None:
    """Copy predictions to the destinations in the feature services' LoggingConfig."""
    from tallystick.definitions.feature_repo import open_repo
    from tallystick.prediction_log.feast_export import export_log

    done = export_log(open_repo(path))
    for model, rows in done.items():
        click.echo(f"{model}: {rows:,} predictions copied")
    if not done:
        click.echo("No model's feature service has a logging_config; nothing was copied.")


@log.command()
@click.argument("file")
@click.pass_obj
def forget(path: Path, file: str) -> None:
    """Take a damaged FILE out of the log, and count its rows."""
    from tallystick.prediction_log.compactor import forget_file

    rows = forget_file(_state_of(path), file)
    click.echo(f"{rows:,} rows dropped; the file is removed at the next compaction.")


def _observed(path: Path, name: str) -> ModelContract | None:
    """The contract of a feature service; None if it is the name of a model."""
    from tallystick.definitions.feature_repo import open_repo
    from tallystick.errors import InputError, StateError, did_you_mean
    from tallystick.prediction_log.log_import import observed_contract

    repo = open_repo(path)
    if name in repo.models:
        return None
    try:
        return observed_contract(repo, name)
    except StateError as error:
        services = [service.name for service in repo.store.list_feature_services()]
        raise InputError(
            f"{name!r} is neither a model nor an applied feature service of {repo.path}: "
            f"{did_you_mean(name, [*repo.models, *services])}"
        ) from error


def _state_of(path: Path) -> Path:
    """The state folder of a repo."""
    from tallystick.definitions.feature_repo import require_repo, state_dir

    require_repo(path.resolve())
    return state_dir(path.resolve())


def _compact(state: Path) -> Iterator[str]:
    from tallystick.prediction_log.compactor import Retention, compact
    from tallystick.settings import settings

    days, size = settings().log_keep_days, settings().log_keep_bytes
    age = None if days is None else timedelta(days=days)
    done = compact(state, retention=Retention(age, size))
    if done is None:
        yield "Another compactor is running; nothing was done."
        return
    for stream, result in done.items():
        yield from _lines(stream, result)


def _lines(stream: str, done: CompactionReport) -> Iterator[str]:
    yield (
        f"{stream}: {done.rows:,} rows of {done.segments:,} segments in {done.files:,} files"
        + (f", {done.expired:,} expired rows removed" if done.expired else "")
    )
    if done.damages:
        yield f"✗ {stream}: {done.lost:,} rows are damaged; their segments are in wal/damaged:"
        yield from (f"  {damage}" for damage in done.damages)


def _compact_and_log_errors(state: Path) -> None:
    """Compact; an error is logged, and the next run tries again."""
    try:
        for line in _compact(state):
            if line.startswith(("✗", " ")):
                logger.error(line)
    except Exception:
        # The segments stay until they can be compacted.
        logger.exception("The log cannot be compacted, and stays in segments.")
