"""The figures of a replay, as JSON and as a short report."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from tallystick.records.record_store import Effect, Exemplar, Incident, ParityReport
from tallystick_simulation.replay import ReplayResult
from tallystick_simulation.replay_scores import ReplayScores, iso_week
from tallystick_simulation.scenario import Scenario

MINUTE = timedelta(minutes=1)


def summarize(
    scenario: Scenario,
    result: ReplayResult,
    scores: ReplayScores,
    audited: ParityReport,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Collect the figures.

    Args:
        scenario: The scenario.
        result: What happened in the replay.
        scores: The scores of the predictions.
        audited: The audit of the staged outage.
        seconds: Stage → its time.
    """
    causes: dict[str, int] = {}
    for look in result.looks:
        for cause, count in look.parity.causes.items():
            causes[cause] = causes.get(cause, 0) + count
    performance = scores.performance()
    return {
        "requests": result.sent,
        "http_requests": result.calls,
        "days": len(scenario.days),
        "logged": scores.logged,
        "labelled": len(scores.outcomes),
        "parity": {
            "values": sum(look.parity.values for look in result.looks),
            "equal": sum(look.parity.equal for look in result.looks),
            "causes": causes,
            "unexplained": sum(look.parity.unexplained for look in result.looks),
        },
        "incident": _incident(scenario, result),
        "audit": _outage_audit(scenario, audited),
        # Of any view and cause: any besides the staged one is a false alarm, or real.
        "incidents": len(result.incidents),
        "decisions": [
            {
                "week": iso_week(decision.at - timedelta(days=1)),
                "outcome": decision.outcome,
                "reason": decision.reason,
                "promoted": decision.promoted,
                "quarantined_rows": decision.quarantined_rows,
            }
            for decision in result.decisions
        ],
        "performance": performance,
        "loop_is_better": performance["loop"]["log_loss"] < performance["never"]["log_loss"],
        "seconds": {stage: round(spent, 1) for stage, spent in seconds.items()},
    }


def _staged_incident(scenario: Scenario, result: ReplayResult) -> Incident | None:
    """The incident found for the staged outage; None if it was not found."""
    outage = scenario.outage
    found = [
        incident
        for incident in result.incidents.values()
        if incident.view == outage.view
        and outage.start - timedelta(days=1) < incident.start < outage.end + timedelta(days=1)
    ]
    return min(found, key=lambda incident: incident.found_at, default=None)


def _incident(scenario: Scenario, result: ReplayResult) -> dict[str, Any]:
    outage = scenario.outage
    incident = _staged_incident(scenario, result)
    retrained = any(
        decision.outcome == "retrain"
        for decision in result.decisions
        if outage.start < decision.at and decision.at - timedelta(days=7) < outage.end
    )
    excluded = [
        decision.quarantined_rows for decision in result.decisions if decision.at > outage.end
    ]
    return {
        "view": outage.view,
        "start": outage.start.isoformat(),
        "end": outage.end.isoformat(),
        "found": incident is not None,
        "found_after_minutes": (
            None if incident is None else (incident.found_at - outage.start) // MINUTE
        ),
        "cause": None if incident is None else incident.cause,
        "requests": None if incident is None else incident.requests,
        "values": None if incident is None else incident.values,
        "retrained": retrained,
        "training_rows_kept_out": max(excluded, default=0),
    }


def _outage_audit(scenario: Scenario, audited: ParityReport) -> dict[str, Any]:
    """The audit's findings about the view of the outage, during the outage."""
    causes = audited.views.get(scenario.outage.view, {})
    main = max(causes, key=causes.__getitem__, default=None)
    effect = None if main is None else audited.effects[main]
    prefix = f"{scenario.outage.view}__"
    shown = [
        each
        for each in (audited.exemplars.get(main, []) if main else [])
        if each.feature.startswith(prefix)
    ]
    return {
        "requests": audited.requests,
        "causes": causes,
        "exemplar": shown[0].model_dump(mode="json") if shown else None,
        "effect": effect.model_dump() if effect else None,
        "unexplained": audited.unexplained,
    }


def _audit_lines(audit: dict[str, Any]) -> dict[str, str]:
    if audit["exemplar"] is None or audit["effect"] is None:
        return {"Audit": "NO WRONG VALUE FOUND while the view was not brought online"}
    shown = Exemplar.model_validate(audit["exemplar"])
    effect = Effect.model_validate(audit["effect"])
    keys = ", ".join(f"{name} {value}" for name, value in shown.keys.items())
    return {
        "Cause": (
            f"{', '.join(f'{name} {count:,}' for name, count in audit['causes'].items())}: e.g. "
            f"{shown.feature} of {keys} at {shown.request_time:%Y-%m-%d %H:%M}: served "
            f"{shown.served}, expected {shown.expected}. {shown.evidence} {shown.mend}"
        ),
        "Effect": (
            f"{effect.requests:,} of {audit['requests']:,} predictions in that time had wrong "
            f"values of it: by {effect.mean_change:.4f} on average, {effect.max_change:.4f} at "
            f"most; {effect.flipped:,} decisions flipped"
        ),
    }


def report(summary: dict[str, Any]) -> str:
    """The report as text."""
    parity, incident = summary["parity"], summary["incident"]
    never, loop = summary["performance"]["never"], summary["performance"]["loop"]
    share = parity["equal"] / parity["values"] if parity["values"] else 0.0
    outcomes = [decision["outcome"] for decision in summary["decisions"]]
    promoted = sum(decision["promoted"] for decision in summary["decisions"])
    causes = ", ".join(f"{name} {count:,}" for name, count in parity["causes"].items() if count)
    found = (
        f"found after {incident['found_after_minutes']:,} minutes, named {incident['cause']}"
        if incident["found"]
        else "NOT FOUND"
    )
    better = "beats" if summary["loop_is_better"] else "DOES NOT BEAT"
    lines = {
        "Served": (
            f"{summary['requests']:,} predictions in {summary['http_requests']:,} HTTP requests "
            f"on {summary['days']} days; {summary['logged']:,} logged, "
            f"{summary['labelled']:,} labelled"
        ),
        "Parity": (
            f"{parity['equal']:,} of {parity['values']:,} values equal ({share:.3%}); "
            f"{causes or 'no mismatch'}; unexplained {parity['unexplained']}"
        ),
        "Incident": (
            f"{incident['view']} not brought online from {incident['start']} to "
            f"{incident['end']}: {found}; retrained because of it: "
            f"{'YES' if incident['retrained'] else 'no'}; "
            f"{incident['training_rows_kept_out']:,} rows kept out of training; "
            f"{summary['incidents'] - incident['found']} other incidents"
        ),
        **_audit_lines(summary["audit"]),
        "Decisions": (
            f"{outcomes.count('retrain')} retrain ({promoted} promoted), "
            f"{outcomes.count('refuse')} refuse, {outcomes.count('nothing')} nothing"
        ),
        "Log loss": (
            f"the loop {loop['log_loss']:.4f} {better} the never retrained model's "
            f"{never['log_loss']:.4f}"
        ),
        "AUC": f"the loop {loop['auc']:.3f}, never retrained {never['auc']:.3f}",
        "Brier": f"the loop {loop['brier']:.4f}, never retrained {never['brier']:.4f}",
        "Time": (
            f"{sum(summary['seconds'].values()):.0f} s: "
            + ", ".join(f"{stage} {spent:.0f}" for stage, spent in summary["seconds"].items())
        ),
    }
    return "\n".join(f"{name:10}{text}" for name, text in lines.items())
