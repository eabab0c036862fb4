"""``tally check --parity``: from a repo's folder to a report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tallystick.definitions.feature_repo import Repo, open_repo
from tallystick.progress import progress
from tallystick.signals import ending_on_signals
from tallystick.storage.atomic_files import write_text
from tallystick_monitoring.parity_check.parity_report import text
from tallystick_monitoring.parity_check.parity_run import run


def check_parity(
    path: Path,
    *,
    sample: int,
    at: datetime | None,
    seed: int,
    json_path: Path | None,
    fail_over: float,
) -> tuple[str, bool]:
    """Serve a repo from a scratch store, and compare offline, online and API.

    Nothing of the repo is written: no registry, no online store, no state folder.

    Returns:
        The report as text, and whether no more than ``fail_over`` of the values differ and all
        could be compared.

    Raises:
        InputError: There is no Feast repo at ``path``.
        DefinitionError: The definitions cannot be used.
        StateError: There is nothing to compare, or the server does not come up.
        DataError: No view's history can be read.
    """
    with ending_on_signals() as end_if_signalled, _without_bytecode():
        repo = _open(path)
        with progress(lines=False) as bar:

            def on_step(text: str) -> None:
                end_if_signalled()
                bar.step(text)

            check = run(repo, sample=sample, at=at, seed=seed, on_step=on_step)
    if json_path is not None:
        write_text(json_path, check.model_dump_json(indent=1))
    return text(check), check.passed(fail_over)


def _open(path: Path) -> Repo:
    return open_repo(path)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Keep Python from writing compiled files beside the definitions."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
