"""The report on a model, and its text: parity, freshness, drift, performance and incidents."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tallystick.definitions.feature_repo import Repo
from tallystick.prediction_log.log_reader import read_log
from tallystick.records.causes import Cause
from tallystick.records.record_store import MonitorReport, ParityReport, record_name, save_record
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.drift import drift
from tallystick_monitoring.freshness import freshness
from tallystick_monitoring.incidents import champion_contract, incidents_between, record_incidents
from tallystick_monitoring.performance import performance

DRIFTED_MAX = 5
"""Drifted features that a summary names."""


def monitor(
    repo: Repo, model_name: str, *, at: datetime, start: datetime, end: datetime
) -> MonitorReport:
    """Report on the requests of [start, end): parity, freshness, drift, performance, incidents.

    The report is saved under its time, and so are the incidents that it changed.

    Args:
        repo: An applied repo.
        model_name: Model to report on.
        at: Time of the report. What becomes known later is not used.
        start: First request time, included.
        end: Last request time, excluded.

    Raises:
        StateError: The model has no champion, or no log yet.
        DamagedError: A file cannot be read.
        DataError: A source is not as declared.
    """
    audited = audit(repo, model_name, start=start, end=end)
    parts = read_log(repo.state_dir, model_name, start=start, end=end, damaged={})
    contract = champion_contract(repo, model_name)
    record_incidents(repo, model_name, audited, at=at)
    report = MonitorReport(
        model=model_name,
        at=at,
        start=start,
        end=end,
        contract_hash=contract.contract_hash,
        parity=audited.report,
        freshness=freshness(contract, [part.table for part in parts]),
        drift=drift(contract, parts),
        performance=performance(repo, contract, at=at),
        incidents=incidents_between(repo.state_dir, model_name, start=start, end=end),
    )
    save_record(repo.state_dir, report, model=model_name, name=record_name(at))
    return report


def parity_summary(report: ParityReport) -> str:
    """The audit in a few lines: the sum, causes by view, and an exemplar of each cause."""
    return "\n".join(_parity_lines(report))


def summary(report: MonitorReport) -> str:
    """A report in a few lines."""
    return "\n".join([*_parity_lines(report.parity), *_look_lines(report)])


def _parity_lines(report: ParityReport) -> Iterator[str]:
    share = f" ({report.equal / report.values:.4%})" if report.values else ""
    clock = "" if report.clock == "knowledge" else f", under the {report.clock} clock"
    yield (
        f"{report.model}: {report.requests:,} requests from {report.start:%Y-%m-%d %H:%M} to "
        f"{report.end:%Y-%m-%d %H:%M} UTC{clock}"
    )
    yield f"parity      {report.equal:,} of {report.values:,} values equal{share}"
    for view, causes in sorted(report.views.items()):
        for cause, count in sorted(causes.items(), key=lambda item: -item[1]):
            yield f"  {view:<24} {cause:<26} {count:>10,}"
    if lost := report.causes.get(Cause.LOG_DAMAGE):
        yield f"  {'(the log)':<24} {'log_damage':<26} {lost:>10,}"
    for damage in report.damage:
        yield f"  damaged: {damage.place}, {damage.rows:,} records: {damage.problem}"
    yield from _worst_lines(report)
    yield from _effect_lines(report)
    yield from _staleness_lines(report)
    for field in report.request_fields:
        yield (
            f"requests    {field.field} as it was sent differs from {field.feature} as it was "
            f"served in {field.unequal:,} of {field.values:,}"
        )
    if report.unstamped:
        yield (
            f"unstamped   {', '.join(report.unstamped)}: the online store gives neither created "
            "time, write time nor definition of a row, so definition_changed and source_rewritten "
            "count as unexplained"
        )
    for cause, exemplars in sorted(report.exemplars.items()):
        first = exemplars[0]
        yield (
            f"  e.g. {cause}: {first.feature} of {first.keys} at "
            f"{first.request_time:%Y-%m-%d %H:%M:%S}: served {_value(first.served)}, expected "
            f"{_value(first.expected)}. {first.evidence}"
        )
        if first.mend:
            yield f"       {first.mend}"


def _value(text: str | None) -> str:
    return "nothing" if text is None else text


def _worst_lines(report: ParityReport) -> Iterator[str]:
    """The features and the hours with the most wrong values."""
    wrong = {name: each for name, each in report.features.items() if each.unequal}
    worst = sorted(wrong, key=lambda name: -wrong[name].unequal)
    if worst:
        named = [f"{name} {wrong[name].unequal / wrong[name].values:.2%}" for name in worst]
        yield f"features    {', '.join(_first(named))}"
    hours = {hour: each for hour, each in report.hours.items() if each.unequal}
    if hours:
        first, last = min(hours), max(hours)
        top = max(hours, key=lambda hour: hours[hour].unequal / hours[hour].values)
        yield (
            f"hours       {len(hours):,} of {len(report.hours):,} with wrong values, from "
            f"{_hour(first)} to {_hour(last)}; worst {_hour(top)} "
            f"({hours[top].unequal / hours[top].values:.2%})"
        )


def _first(names: list[str]) -> list[str]:
    more = len(names) - DRIFTED_MAX
    return [*names[:DRIFTED_MAX], f"and {more} more"] if more > 0 else names


def _hour(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:00}"


def _effect_lines(report: ParityReport) -> Iterator[str]:
    effect = report.effect
    if effect is None:
        return
    if not effect.scored:
        yield f"effect      unknown for {effect.requests:,} predictions without a model"
        return
    yield (
        f"effect      {effect.requests:,} predictions had wrong values: with the expected values "
        f"the probability changes by {effect.mean_change:.4f} on average, "
        f"{effect.max_change:.4f} at most, and {effect.flipped:,} decisions flip"
    )


def _staleness_lines(report: ParityReport) -> Iterator[str]:
    ages = [
        f"{view} {_age(each.age_s_p50)} / {_age(each.age_s_p99)}"
        for view, each in sorted(report.staleness.items())
    ]
    if ages:
        yield f"age         of correct values, median / 99%: {', '.join(ages)}"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


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
        yield (
            f"incident    {incident.view} {incident.cause}, {incident.start:%Y-%m-%d %H:%M} to "
            f"{incident.end:%Y-%m-%d %H:%M} ({incident.status}), {incident.requests:,} requests"
        )
