"""Training commands; the ``str`` of every result is the text that the command prints."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from tallystick.clock import from_us, process_clock
from tallystick.errors import StateError
from tallystick.model_bundle.bundle import Champion
from tallystick.model_bundle.compiled.form_comparison import Compilation
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.progress import progress
from tallystick.records.record_store import Decision, Incident, MonitorReport, load_records
from tallystick.signals import ending_on_signals
from tallystick_training import model_registry
from tallystick_training import retrain as retraining
from tallystick_training import train as training
from tallystick_training.log_training_set import write_served_dataset
from tallystick_training.population import training_start
from tallystick_training.row_selection import RowSelection
from tallystick_training.train import Trained
from tallystick_training.training_set import DatasetFile, write_dataset

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

STEPS = 1000
"""Units of the progress bar."""


@dataclass(frozen=True)
class TrainedVersion:
    """A trained and registered model."""

    trained: Trained
    version: str
    promoted: bool

    def __str__(self) -> str:
        contract, metrics = self.trained.contract, self.trained.evaluation.metrics
        scores = ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))
        text = (
            f"Trained {contract.model} version {self.version} (contract "
            f"{contract.contract_hash[:12]}) on {contract.data.rows:,} rows; on the holdout, the "
            f"newest part, which it was not fitted to: {scores}; {self.trained.counts}\n"
            f"{_form(self.trained.compilation)}\n"
        )
        if self.promoted:
            return text + "It is the champion."
        return text + f"To make it answer:  tally promote {contract.model} --version {self.version}"


@dataclass(frozen=True)
class Decided:
    """A decision about retraining."""

    decision: Decision

    def __str__(self) -> str:
        decision = self.decision
        lines = [f"{decision.outcome}: {decision.reason}"]
        if decision.quarantined_rows or decision.repaired_rows:
            lines.append(
                f"  of the rows that incidents touched {decision.quarantined_rows:,} were left "
                f"out, {decision.repaired_rows:,} repaired"
            )
        for result in decision.gates:
            before = "" if result.champion is None else f", champion {result.champion:.4f}"
            lines.append(
                f"  {'✓' if result.passed else '✗'} {result.where}: {result.gate}: challenger "
                f"{result.challenger:.4f}{before}"
            )
        return "\n".join(lines)


class Window(TypedDict, total=False):
    """Options by which commands choose the rows of a training set; all have a default.

    ``start`` is the model's window before the end, or all history. ``end`` is now, and
    ``known_until`` the end. ``clock`` is the knowledge clock. ``repair`` is false: rows that
    incidents touched are left out.
    """

    start: datetime | None
    end: datetime | None
    known_until: datetime | None
    clock: str
    repair: bool


def _selection(repo: Repo, model: Model, window: Window, *, all_rows: bool = False) -> RowSelection:
    """The rows that a command chose; of all of them where the log decides on the first one."""
    end = window.get("end") or _now()
    start = window.get("start")
    if start is None:
        start = from_us(0) if all_rows else training_start(repo, model, end=end)
    return RowSelection(
        start=start,
        end=end,
        known_until=window.get("known_until") or end,
        clock=VisibilityClock(window.get("clock", VisibilityClock.KNOWLEDGE)),
        incidents=load_records(repo.state_dir, Incident, model=model.name),
        repair=window.get("repair", False),
    )


def dataset(
    repo: Repo,
    model: str,
    *,
    out: Path,
    memory_limit: str | None = None,
    spill_dir: Path | None = None,
    source: str = "history",
    **window: Unpack[Window],
) -> DatasetFile:
    """Write a training set; by default of all requests until now, with labels known by the end.

    It is made from history, or from the log, where clock and limits do not matter. The limits are
    those of ``offline_store`` in ``feature_store.yaml``, unless others are given.

    Raises:
        InputError: The rows cannot be repaired under the clock.
    """
    definition = repo.model(model)
    is_logged = source == "log"
    selection = _selection(repo, definition, window, all_rows=is_logged)
    with progress(STEPS, lines=False) as bar, ending_on_signals():

        def report(text: str, share: float) -> None:
            bar.step(text, done=int(share * STEPS))

        if is_logged:
            return write_served_dataset(repo, definition, selection, out=out, progress=report)
        selection.check(definition)
        if selection.clock is VisibilityClock.SERVED:
            _require_journal(repo)
        from tallystick.offline_store.duckdb_store import offline_config

        given = {"memory_limit": memory_limit, "spill_dir": spill_dir and spill_dir.as_posix()}
        return write_dataset(
            repo,
            definition,
            selection,
            out=out,
            config=offline_config(repo).model_copy(
                update={name: value for name, value in given.items() if value is not None}
            ),
            progress=report,
        )


def train(
    repo: Repo, model: str, *, promote: bool = False, **window: Unpack[Window]
) -> TrainedVersion:
    """Train a model, register it, and make it the champion if so requested."""
    definition = repo.model(model)
    trained = training.train(repo, definition, _selection(repo, definition, window))
    version = model_registry.register(repo, trained).version
    if promote:
        model_registry.promote(repo, model, version)
    return TrainedVersion(trained, version, promoted=promote)


def retrain(
    repo: Repo,
    model: str,
    *,
    at: datetime | None = None,
    force: bool = False,
    repair: bool = False,
) -> Decided:
    """Decide by the last recorded look whether to train again, and carry it out."""
    definition = repo.model(model)
    looks = load_records(repo.state_dir, MonitorReport, model=model)
    if not looks:
        raise StateError(
            f"Nobody has looked at model {model!r} yet.", hint=f"Look first:  tally monitor {model}"
        )
    moment = _now() if at is None else at
    return Decided(
        retraining.retrain(repo, definition, looks[-1], at=moment, force=force, repair=repair)
    )


def promote(repo: Repo, model: str, *, version: str) -> str:
    """Make a registered version the champion."""
    return _change(model_registry.promote(repo, repo.model(model).name, version))


def rollback(repo: Repo, model: str) -> str:
    """Make the champion before the present one the champion again."""
    return _change(model_registry.rollback(repo, repo.model(model).name))


def _change(champion: Champion) -> str:
    return (
        f"Version {champion.version} of {champion.model} is the champion "
        f"(contract {champion.contract_hash[:12]})."
    )


def _require_journal(repo: Repo) -> None:
    """Refuse the served clock where the online store has no journal.

    Raises:
        StateError: The online store keeps no journal.
    """
    if not getattr(repo.store.config.online_store, "journal", False):
        raise StateError(
            "The online store has no journal of its writes, so the served values are not known.",
            hint="Set  journal: true  in the online_store of feature_store.yaml (which has to be "
            "Tallystick's), and write all that is online once more:  tally materialize --again",
        )


def _now() -> datetime:
    return from_us(process_clock().now_us())


def _form(compilation: Compilation) -> str:
    """Which form answers requests, and why."""
    spec = compilation.spec
    if spec is None:
        return f"The original estimator answers requests: {compilation.reason}."
    differed = f"by more than {spec.difference_max:.1e}" if spec.difference_max else "at all"
    return (
        f"Its compiled form ({spec.library} {spec.version}) answers requests: on {spec.rows:,} "
        f"real and {spec.probes:,} made-up rows no decision differed, and no probability "
        f"{differed} (allowed: {spec.tolerance:g})."
    )
