"""The decision about retraining, carried out: challenger, gates, promotion, record."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DataError, InputError
from tallystick.model_bundle.bundle import Champion, load_bundle, read_champion
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.record_store import (
    Decision,
    Incident,
    MonitorReport,
    load_records,
    record_name,
    save_record,
)
from tallystick_training import model_registry
from tallystick_training.evaluation import predictions_of
from tallystick_training.gates import apply_gates
from tallystick_training.population import training_start
from tallystick_training.retraining_policy import decide
from tallystick_training.row_selection import RowSelection
from tallystick_training.train import train

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model


def retrain(
    repo: Repo,
    model: Model,
    report: MonitorReport,
    *,
    at: datetime,
    repair: bool,
    force: bool = False,
) -> Decision:
    """Decide by a look; if it says so, train a challenger and promote it if every gate passes.

    The challenger learns from the model's window up to ``at``, from labels known by then, under the
    champion's clock, without the rows that recorded incidents touched. Champion and challenger are
    scored on the challenger's holdout; the champion was not fitted to it either, since it had a
    holdout of its own, unless the model's has been lengthened since.

    Args:
        repo: The repo, applied.
        model: The model.
        report: The last look at it.
        at: The time of the decision.
        force: Whether to train whatever the gain; skew still forbids it.
        repair: Whether the challenger learns from the rows that incidents touched too, where they
            can be repaired.

    Returns:
        The decision, recorded. Asked again for the same ``at``, the same decision, carried out to
        its end if it was interrupted.

    Raises:
        StateError: The model has no champion yet.
        InputError: Rows are to be repaired, and the champion was trained under the served clock.
        DamagedError: The champion or a record is damaged.
        DataError: A source cannot be used.
        UnavailableError: MLflow does not answer.
    """
    recorded = load_records(repo.state_dir, Decision, model=model.name)
    champion = read_champion(repo.state_dir, model.name)
    for decision in recorded:
        if decision.at != at:
            continue
        if decision.promoted:
            return decision
        if decision.challenger == champion.version and all(one.passed for one in decision.gates):
            # It was interrupted between the promotion and the record of it.
            return _promote(repo, decision)
    previous = [decision for decision in recorded if decision.at < at]
    bundle = load_bundle(repo.state_dir, model.name, champion.contract_hash)
    _require_repairable(bundle.contract, repair=repair)
    decision = decide(report, model, bundle.contract, previous=previous, forced=force)
    decision = decision.model_copy(update={"at": at})
    if decision.outcome == "retrain":
        return _carry_out(repo, model, decision, champion, repair=repair)
    return _record(repo, decision)


def _require_repairable(contract: ModelContract, *, repair: bool) -> None:
    """Refuse to repair rows for a challenger that is trained under the served clock.

    Raises:
        InputError: The champion was trained so.
    """
    if repair and contract.data.clock == VisibilityClock.SERVED:
        raise InputError(
            f"The champion of {contract.model} was trained under the served clock, and so would "
            "the challenger be: it gives the values that were served, so retrain without --repair."
        )


def _carry_out(
    repo: Repo, model: Model, decision: Decision, champion: Champion, *, repair: bool
) -> Decision:
    """Train, compare, record, promote, and record that as well."""
    at = decision.at
    bundle = load_bundle(repo.state_dir, model.name, champion.contract_hash)
    clock = VisibilityClock(bundle.contract.data.clock)
    try:
        selection = RowSelection(
            start=training_start(repo, model, end=at),
            end=at,
            known_until=at,
            clock=clock,
            incidents=load_records(repo.state_dir, Incident, model=model.name),
            repair=repair,
        )
        trained = train(repo, model, selection)
    except DataError as error:
        reason = f"{decision.reason} But no challenger could be trained: {error.what}"
        return _record(repo, decision.model_copy(update={"outcome": "refuse", "reason": reason}))
    version = model_registry.register(repo, trained).version
    model_registry.mark_challenger(repo, model.name, version)
    evaluation = trained.evaluation
    gates = apply_gates(
        model,
        evaluation.outcomes,
        predictions_of(repo, bundle, evaluation.rows, clock=clock),
        evaluation.predictions,
        evaluation.slices,
    )
    failed = [f"{result.gate} ({result.where})" for result in gates if not result.passed]
    decision = decision.model_copy(
        update={
            "challenger": version,
            "gates": gates,
            "quarantined_rows": trained.counts.quarantined,
            "repaired_rows": trained.counts.repaired or 0,
            "reason": (
                f"{decision.reason} The challenger, version {version}, stays one: it failed "
                f"{'; '.join(failed)}."
                if failed
                else f"{decision.reason} Version {version} passed every gate."
            ),
        }
    )
    # Before the promotion, so that no champion is without a record of how it came to be one.
    _record(repo, decision)
    if failed:
        return decision
    return _promote(repo, decision)


def _promote(repo: Repo, decision: Decision) -> Decision:
    """Make the challenger of a recorded decision the champion, and record that it is."""
    model_registry.promote(repo, decision.model, str(decision.challenger))
    return _record(repo, decision.model_copy(update={"promoted": True}))


def _record(repo: Repo, decision: Decision) -> Decision:
    save_record(repo.state_dir, decision, model=decision.model, name=record_name(decision.at))
    return decision
