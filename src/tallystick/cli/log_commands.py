"""``tally log``: what can be done with the prediction log."""

from __future__ import annotations

import logging
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tallystick.definitions.contract import ModelContract
    from tallystick.prediction_log.compaction_run import Compacted

logger = logging.getLogger(__name__)


@click.group()
def log() -> None:
    """Compact, import and mend the prediction log."""


@log.command()
@click.option(
    "--every",
    type=click.FloatRange(min=0, min_open=True),
    help="Go on, with as many seconds between, until the standard input ends.",
)
@click.pass_obj
def compact(path: Path, every: float | None) -> None:
    """Move what was logged into Parquet files."""
    state = _state_of(path)
    if every is None:
        for line in _compact(state):
            click.echo(line)
        return
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ended = _input_ends()
    while not ended.wait(every):
        _compact_somehow(state)
    _compact_somehow(state)


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
    """Take predictions that another server logged.

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
            f"{contract_path} is no contract of this model.",
            [Problem("model", model, contract.model)],
        )
    for file in files:
        rows = import_file(state, contract, file)
        click.echo(f"{file}: {rows:,} predictions taken" if rows else f"{file}: taken before")


@log.command()
@click.pass_obj
def export(path: Path) -> None:
    """Copy predictions to where feature services' LoggingConfig says."""
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
    from tallystick.prediction_log.compaction import forget_file

    rows = forget_file(_state_of(path), file)
    click.echo(f"{rows:,} rows are forgotten; the file goes with the next compaction.")


def _observed(path: Path, name: str) -> ModelContract | None:
    """The contract of a feature service; None if it is the name of a model."""
    from tallystick.definitions.feature_repo import open_repo
    from tallystick.errors import InputError, StateError, did_you_mean
    from tallystick.prediction_log.imported_contract import observed_contract

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
    from tallystick.prediction_log.compaction import compact, keeping_of
    from tallystick.settings import settings

    done = compact(state, keeping=keeping_of(settings()))
    if done is None:
        yield "Another compactor is at work; nothing was done."
        return
    for stream, result in done.items():
        yield from _told(stream, result)


def _told(stream: str, done: Compacted) -> Iterator[str]:
    yield (
        f"{stream}: {done.rows:,} rows of {done.segments:,} segments in {done.files:,} files"
        + (f", {done.expired:,} rows had had their time" if done.expired else "")
    )
    if done.damages:
        yield f"✗ {stream}: {done.lost:,} rows are damaged; their segments were put aside:"
        yield from (f"  {damage}" for damage in done.damages)


def _compact_somehow(state: Path) -> None:
    """Compact; what goes wrong is logged, and tried again the next time."""
    try:
        for line in _compact(state):
            if line.startswith(("✗", " ")):
                logger.error(line)
    except Exception:
        # Whatever it was, the segments stay until it can be done.
        logger.exception("The log cannot be compacted, and stays in segments.")


def _input_ends() -> threading.Event:
    """Set once the standard input has ended: whoever started this is gone, or wants it to end."""
    ended = threading.Event()

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        ended.set()

    threading.Thread(target=watch, name="input-watch", daemon=True).start()
    return ended
