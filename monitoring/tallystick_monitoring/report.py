"""One look at a model, and its summary for people."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tallystick.records import MonitorReport, ParityReport, record_name, save_record
from tallystick.repo import Repo
from tallystick_monitoring.drift import drift
from tallystick_monitoring.freshness import freshness
from tallystick_monitoring.incidents import (
    champion_contract,
    incidents_between,
    record_incidents,
)
from tallystick_monitoring.parity import audit_log
from tallystick_monitoring.performance import performance

DRIFTED_MAX = 5
"""Drifted features that a summary names."""


def look(
    repo: Repo, model_name: str, *, at: datetime, start: datetime, end: datetime
) -> MonitorReport:
    """Look at the requests of [start, end): parity, freshness, drift, performance, incidents.

    The report is saved under the look's time, and so are the incidents that it changed.

    Args:
        repo: An applied repo.
        model_name: Model to look at.
        at: When the look is taken; nothing known later is used.
        start: First request time, included.
        end: Last request time, excluded.

    Raises:
        StateError: The model has no champion, or no log yet.
        DamagedError: A file cannot be read.
        DataError: A source is not as declared.
    """
    audited = audit_log(repo, model_name, start=start, end=end)
    contract = champion_contract(repo, model_name)
    record_incidents(repo.state_dir, model_name, audited, contract=contract, at=at)
    report = MonitorReport(
        model=model_name,
        at=at,
        start=start,
        end=end,
        contract_hash=contract.contract_hash,
        parity=audited.report,
        freshness=freshness(contract, [part.table for part in audited.parts]),
        drift=drift(contract, audited.parts),
        performance=performance(repo, contract, at=at),
        incidents=incidents_between(repo.state_dir, model_name, start=start, end=end),
    )
    save_record(repo.state_dir, report, model=model_name, name=record_name(at))
    return report


def parity_summary(report: ParityReport) -> str:
    """The audit in a few lines: the sum, causes by view, and an exemplar of each cause."""
    return "\n".join(_parity_lines(report))


def summary(report: MonitorReport) -> str:
    """A look in a few lines."""
    return "\n".join([*_parity_lines(report.parity), *_look_lines(report)])


def _parity_lines(report: ParityReport) -> Iterator[str]:
    share = f" ({report.equal / report.values:.4%})" if report.values else ""
    yield (
        f"{report.model}: {report.requests:,} requests from {report.start:%Y-%m-%d %H:%M} to "
        f"{report.end:%Y-%m-%d %H:%M} UTC"
    )
    yield f"parity      {report.equal:,} of {report.values:,} values equal{share}"
    for view, causes in sorted(report.views.items()):
        for cause, count in sorted(causes.items(), key=lambda item: -item[1]):
            yield f"  {view:<24} {cause:<26} {count:>10,}"
    if report.unstamped:
        yield (
            f"not told    {', '.join(report.unstamped)}: the online store says neither when a row "
            "was created and written nor by which definition, so that definition_changed and "
            "source_rewritten count as unexplained"
        )
    for cause, exemplars in sorted(report.exemplars.items()):
        first = exemplars[0]
        yield (
            f"  e.g. {cause}: {first.feature} of {first.keys} at "
            f"{first.request_time:%Y-%m-%d %H:%M:%S}: served {first.served}, expected "
            f"{first.expected}. {first.evidence}"
        )


def _look_lines(report: MonitorReport) -> Iterator[str]:
    stale = [view for view, found in report.freshness.items() if found.stale]
    yield f"stale       {', '.join(sorted(stale)) or 'no view'}"
    if report.drift is None:
        yield "drift       no predictions of the champion to compare"
    else:
        named = [
            f"{name} {report.drift.features[name].psi:.2f}"
            for name in report.drift.drifted[:DRIFTED_MAX]
        ]
        yield (
            f"drift       {len(report.drift.drifted)} of {len(report.drift.features)} features"
            f"{': ' + ', '.join(named) if named else ''}; predictions "
            f"{report.drift.prediction.psi:.2f}"
            f"{' (drifted)' if report.drift.prediction.drifted else ''}"
        )
    worth = report.performance
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in worth.metrics.items())
    yield f"performance {worth.labelled:,} of {worth.requests:,} requests labelled  {metrics}"
    if worth.label_delays:
        shares = "  ".join(f"{hours} h {share:.1%}" for hours, share in worth.label_delays.items())
        yield f"labels      known after {shares}"
    if worth.gain_per_request is not None:
        yield (
            f"            recalibration would save {worth.gain_per_request:.5f} nats a request "
            f"(standard error {worth.gain_standard_error:.5f})"
        )
    for incident in report.incidents:
        state = "open" if incident.is_open else "closed"
        yield (
            f"incident    {incident.view} {incident.cause}, {incident.start:%Y-%m-%d %H:%M} to "
            f"{incident.end:%Y-%m-%d %H:%M} ({state}), {incident.requests:,} requests"
        )
