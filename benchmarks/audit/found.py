"""The one place that knows how the audit gives its findings."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import pyarrow as pa

from tallystick.definitions.feature_repo import Repo
from tallystick.point_in_time.rule import VisibilityClock
from tallystick_monitoring.audit.audit_run import Audited, audit

SCHEMA: Final = pa.schema(
    [("prediction_id", pa.string()), ("feature", pa.string()), ("cause", pa.string())]
)


def found(repo: Repo, model: str, start: datetime, end: datetime) -> pa.Table:
    """Audit the requests of [start, end) of a model under the knowledge clock.

    Returns:
        One row per wrong value: ``prediction_id``, ``feature`` (``view__feature``), ``cause``.
    """
    return _of(audit(repo, model, start=start, end=end, again=True))


def found_by_event_time(repo: Repo, model: str, start: datetime, end: datetime) -> pa.Table:
    """The same under the event clock."""
    clock = VisibilityClock.EVENT
    return _of(audit(repo, model, start=start, end=end, clock=clock, again=True))


def found_damage(repo: Repo, model: str, start: datetime, end: datetime) -> tuple[int, pa.Table]:
    """Audit a damaged log.

    Returns:
        How many predictions are said to be lost to damage, and what :func:`found` gives of the
        others.
    """
    whole = audit(repo, model, start=start, end=end, again=True)
    lost = sum(each.rows for each in whole.report.damage)
    return lost, _of(whole)


def _of(audited: Audited) -> pa.Table:
    return audited.findings.select(SCHEMA.names).cast(SCHEMA)
