"""When a retraining is worth it and allowed: a pure rule over recorded numbers.

There is a reason for a retraining if

- it *pays*: the expected gain, which is max(0, gain per request less its standard error) times the
  requests expected over the horizon, exceeds the cost. The gain per request is what recalibrating
  the champion saves on rows whose labels have matured. It is a floor: a model trained again learns
  new relations as well, which no recalibration finds. Or
- the world has *moved* under an old model: a feature or the predictions are past their limit of
  drift, and the model is at least :data:`OLD_INTERVALS` shortest intervals old. Drift says nothing
  about the size of a gain, therefore it counts only for a model that is old, and the gates still
  have the last word.

It is too early as long as the shortest interval since the last training, promoted or not, has not
passed. Skew forbids it, because skew is a bug, and no training mends a pipeline: an open incident,
values without an explanation, or a look in which more than :data:`TAINTED_SHARE` of the
requests were served wrongly. Too few mature labels forbid it as well.

The inputs are plain numbers and texts in the decision's record, so that
:func:`judge` can be run again on the record alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Literal

from tallystick.definitions.contract import ModelContract
from tallystick.definitions.model import Model
from tallystick.records.record_store import TAINTED_SHARE, Decision, MonitorReport

RULE = "gain-or-drift-1"
OLD_INTERVALS = 2
DAY = timedelta(days=1)

Outcome = Literal["retrain", "refuse", "nothing"]
Inputs = dict[str, float | int | str | bool | None]


def decide(
    report: MonitorReport,
    model: Model,
    contract: ModelContract,
    *,
    previous: Sequence[Decision],
    forced: bool = False,
) -> Decision:
    """Decide by a look at a model whether to train it again.

    Args:
        report: The look.
        model: The model's definition, for its terms of retraining.
        contract: The champion's contract.
        previous: Earlier decisions about this model.
        forced: Whether a retraining was requested, whatever the gain; skew still forbids it.
    """
    inputs = rule_inputs(report, model, contract, previous=previous, forced=forced)
    outcome, reason = judge(inputs)
    return Decision(
        model=model.name, at=report.at, outcome=outcome, reason=reason, rule=RULE, inputs=inputs
    )


def rule_inputs(
    report: MonitorReport,
    model: Model,
    contract: ModelContract,
    *,
    previous: Sequence[Decision],
    forced: bool = False,
) -> Inputs:
    """Collect every number that the rule uses."""
    terms, performance, drift = model.retraining, report.performance, report.drift
    trainings = [decision.at for decision in previous if decision.outcome == "retrain"]
    last_training = max([contract.data.known_until, *trainings])
    drifted = drift.drifted if drift is not None else []
    tainted = sum(incident.requests for incident in report.incidents)
    days = (performance.end - performance.start) / DAY
    return {
        "at": report.at.isoformat(),
        "forced": forced,
        "contract_hash": contract.contract_hash,
        "report_contract_hash": report.contract_hash,
        "last_training": last_training.isoformat(),
        "days_since_training": (report.at - last_training) / DAY,
        "days_since_champion": (report.at - contract.data.known_until) / DAY,
        "min_interval_days": terms.min_interval / DAY,
        "old_after_days": OLD_INTERVALS * (terms.min_interval / DAY),
        "gain_per_request": performance.gain_per_request,
        "gain_standard_error": performance.gain_standard_error,
        "requests_per_day": performance.requests / days if days > 0 else 0.0,
        "horizon_days": terms.horizon / DAY,
        "cost": terms.cost,
        "labels": performance.labelled,
        "min_labels": terms.min_labels,
        "drifted_features": len(drifted),
        "drifted_most": drifted[0] if drifted else None,
        "prediction_drifted": drift is not None and drift.prediction.drifted,
        "open_incidents": sum(incident.is_open for incident in report.incidents),
        "open_views": ", ".join(sorted({i.view for i in report.incidents if i.is_open})),
        "unexplained": report.parity.unexplained,
        "tainted_share": min(1.0, tainted / report.parity.requests) if tainted else 0.0,
        "tainted_share_max": TAINTED_SHARE,
    }


def judge(inputs: Mapping[str, Any]) -> tuple[Outcome, str]:
    """Apply the rule to its inputs and nothing else.

    Returns:
        The outcome and one sentence with the numbers that led to it.
    """
    if inputs["report_contract_hash"] != inputs["contract_hash"]:
        return "nothing", "The last look was at an earlier champion: look again first."
    has_reason, why = _reason(inputs)
    skew = _skew(inputs)
    if not has_reason:
        besides = f" It would be refused as well: {skew}." if skew else ""
        return "nothing", f"Nothing asks for a retraining: {why}.{besides}"
    if not inputs["forced"] and inputs["days_since_training"] < inputs["min_interval_days"]:
        return "nothing", (
            f"Too early: {why}, but the last training was {inputs['days_since_training']:.1f} days "
            f"ago, and {inputs['min_interval_days']:g} must lie between two."
        )
    forbidden = skew or _lack(inputs)
    if forbidden:
        return "refuse", f"{why}, but {forbidden}."
    return "retrain", f"{why}."


def expected_gain(inputs: Mapping[str, Any]) -> float:
    """Log loss that a retraining is expected to save over the horizon, in nats; 0 if unknown."""
    gain = inputs["gain_per_request"]
    if gain is None:
        return 0.0
    floor = gain - (inputs["gain_standard_error"] or 0.0)
    return float(max(0.0, floor) * inputs["requests_per_day"] * inputs["horizon_days"])


def _reason(inputs: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether there is a reason for a retraining, and the clause that says which or why not."""
    if inputs["forced"]:
        return True, "A retraining was requested"
    expected, cost = expected_gain(inputs), inputs["cost"]
    numbers = f"over {inputs['horizon_days']:g} days against a cost of {cost:g}"
    if expected > cost:
        return True, f"It is expected to save {expected:.1f} nats {numbers}"
    age, old = inputs["days_since_champion"], inputs["old_after_days"]
    moved = _moved(inputs)
    if moved and age >= old:
        return True, f"{moved}, and the model is {age:.0f} days old, {old:g} or more"
    state = f"{moved}, but the model is only {age:.0f} days old" if moved else "no feature drifted"
    return False, f"it is expected to save {expected:.1f} nats {numbers}, and {state}"


def _moved(inputs: Mapping[str, Any]) -> str:
    count = inputs["drifted_features"]
    parts = []
    if count:
        features = "feature has" if count == 1 else "features have"
        parts.append(f"{count} {features} drifted ({inputs['drifted_most']} the most)")
    if inputs["prediction_drifted"]:
        parts.append("the predictions have drifted")
    return " and ".join(parts)


def _skew(inputs: Mapping[str, Any]) -> str:
    """Why skew forbids a retraining; empty if it does not."""
    mend = "skew is a bug, so mend the pipeline"
    if inputs["open_incidents"]:
        return f"an incident of {inputs['open_views']} is open: {mend}"
    if inputs["unexplained"]:
        return f"{inputs['unexplained']:,} served values differ without an explanation: {mend}"
    if inputs["tainted_share"] > inputs["tainted_share_max"]:
        return (
            f"{inputs['tainted_share']:.0%} of the requests of this look were served wrongly: "
            "what they show is skew, not drift"
        )
    return ""


def _lack(inputs: Mapping[str, Any]) -> str:
    """Why there is too little to learn from; empty if there is enough."""
    if inputs["forced"] or inputs["labels"] >= inputs["min_labels"]:
        return ""
    return (
        f"only {inputs['labels']:,} labels have matured since the last training, of the "
        f"{inputs['min_labels']:,} that are needed"
    )
