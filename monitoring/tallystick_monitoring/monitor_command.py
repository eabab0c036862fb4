"""What the command line calls: ``tally audit`` and ``tally monitor``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tallystick.clock import from_us, process_clock
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import InputError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.progress import progress
from tallystick.records.record_store import ParityReport, save_record
from tallystick.storage.atomic_files import write_text
from tallystick_monitoring import monitor_report
from tallystick_monitoring.audit import audit_run
from tallystick_monitoring.audit.audit_state import state_errors
from tallystick_monitoring.audit.findings import write_findings
from tallystick_monitoring.incidents import record_incidents


def audit(
    repo: Repo,
    model: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    clock: str = VisibilityClock.KNOWLEDGE,
    again: bool = False,
    json_path: Path | None = None,
    findings_path: Path | None = None,
    fail_over: float | None = None,
) -> tuple[str, bool]:
    """Audit the log, save the record, and bring the model's incidents up to date.

    The arguments are the options of ``tally audit``. Incidents are recorded under the knowledge
    clock only, because only there a mismatch is skew.

    Returns:
        The report as text, and whether no more than ``fail_over`` of the values differ.

    Raises:
        InputError: There is no such model, or the time span is empty.
        StateError: The model has no log yet, or another audit does not end.
        DataError: A source is not as declared, or a file cannot be written.
    """
    now = from_us(process_clock().now_us())
    start, end = _span(repo, model, since=since, until=until or now)
    visible = VisibilityClock(clock)
    with progress(100, lines=False) as bar:
        found = audit_run.audit(
            repo,
            model,
            start=start,
            end=end,
            clock=visible,
            again=again,
            on_step=lambda done, of: bar.step(
                f"comparing {done:,} of {of:,} hours", done=100 * done // max(of, 1)
            ),
        )
    if visible is VisibilityClock.KNOWLEDGE:
        record_incidents(repo, model, found, at=now)
    _save_last_of_day(repo, found.report, now)
    if json_path is not None:
        with state_errors(json_path.parent):
            write_text(json_path, found.report.model_dump_json(indent=1))
    if findings_path is not None:
        write_findings(findings_path, found.findings)
    whole = found.report
    wrong = (whole.values - whole.equal) / whole.values if whole.values else 0.0
    passed = fail_over is None or wrong <= fail_over
    lines = [monitor_report.parity_summary(whole)]
    if not passed:
        lines.append(f"{wrong:.4%} of the values differ, more than the {fail_over:.4%} allowed.")
    return "\n".join(lines), passed


def _save_last_of_day(repo: Repo, report: ParityReport, now: datetime) -> None:
    """Keep one record a day, without the hours in which nothing was wrong: audits may be many."""
    hours = {hour: each for hour, each in report.hours.items() if each.unequal}
    save_record(
        repo.state_dir,
        report.model_copy(update={"hours": hours}),
        model=report.model,
        name=f"{now:%Y-%m-%d}-{report.clock}",
    )


def monitor(
    repo: Repo, model: str, *, since: datetime | None = None, until: datetime | None = None
) -> str:
    """Report on a model now, save the report, and return it as text.

    Raises:
        InputError: There is no such model, or the time span is empty.
        StateError: The model has no champion, or no log yet.
    """
    now = from_us(process_clock().now_us())
    start, end = _span(repo, model, since=since, until=until or now)
    return monitor_report.summary(monitor_report.monitor(repo, model, at=now, start=start, end=end))


def _span(
    repo: Repo, model: str, *, since: datetime | None, until: datetime
) -> tuple[datetime, datetime]:
    start = audit_run.first_logged(repo, model) if since is None else since
    if since is not None and since >= until:
        raise InputError(
            f"No request is from {since:%Y-%m-%d %H:%M:%S} on and before "
            f"{until:%Y-%m-%d %H:%M:%S}: --since must be before --until, which is now by default."
        )
    return start, until
