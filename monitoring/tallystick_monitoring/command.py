"""What the command line calls: ``tally audit`` and ``tally monitor``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from tallystick.clock import from_us, process_clock
from tallystick.files import write_text
from tallystick.records import record_name, save_record
from tallystick.repo import Repo
from tallystick_monitoring import parity, report


def audit(
    repo: Repo,
    model: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    json_path: Path | None = None,
    fail_over: float | None = None,
) -> tuple[str, bool]:
    """Audit the log and save the record.

    Args:
        repo: An applied repo.
        model: Model name.
        since: First request time; the first logged by default.
        until: Request times before this; the process clock's now by default.
        json_path: File to write the report to as JSON, too.
        fail_over: Share of unequal values from which the audit does not pass.

    Returns:
        The report as text, and whether it passed.

    Raises:
        InputError: There is no such model.
        StateError: The model has no log yet.
    """
    now = from_us(process_clock().now_us())
    found = parity.audit(repo, model, start=since or first_request(repo, model), end=until or now)
    save_record(repo.state_dir, found, model=model, name=record_name(now))
    if json_path is not None:
        write_text(json_path, found.model_dump_json(indent=1))
    wrong = (found.values - found.equal) / found.values if found.values else 0.0
    passed = fail_over is None or wrong <= fail_over
    lines = [report.parity_summary(found)]
    if not passed:
        lines.append(f"{wrong:.4%} of the values differ, more than the {fail_over:.4%} allowed.")
    return "\n".join(lines), passed


def monitor(
    repo: Repo, model: str, *, since: datetime | None = None, until: datetime | None = None
) -> str:
    """Take a look at a model now, and save it.

    Args:
        repo: An applied repo.
        model: Model name.
        since: First request time; the first logged by default.
        until: Request times before this; the process clock's now by default.

    Returns:
        The report as text.

    Raises:
        InputError: There is no such model.
        StateError: The model has no champion, or no log yet.
    """
    now = from_us(process_clock().now_us())
    start = since or first_request(repo, model)
    return report.summary(report.look(repo, model, at=now, start=start, end=until or now))


def first_request(repo: Repo, model: str) -> datetime:
    """The first request time in a model's log.

    Raises:
        InputError: There is no such model.
        StateError: It has no log yet.
    """
    repo.model(model)
    return parity.first_logged(repo, model)
