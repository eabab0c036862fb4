"""Audits in steps against one from the beginning."""

from __future__ import annotations

import shutil
from typing import Any

from tallystick.definitions.feature_repo import Repo
from tallystick.point_in_time.rule import VisibilityClock
from tallystick_monitoring.audit.audit_run import Audited, audit
from tallystick_monitoring.audit.audit_state import folder_of
from tiny_repo import MODEL

COUNTED = {"read", "reopened"}
"""What of a report is about the audit itself."""


def anew(repo: Repo, *, clock: VisibilityClock = VisibilityClock.KNOWLEDGE, **span: Any) -> Audited:
    """An audit that knows nothing of earlier ones; what these know stays."""
    folder = folder_of(repo.state_dir, MODEL, clock)
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        return audit(repo, MODEL, clock=clock, **span)
    finally:
        shutil.rmtree(folder)
        aside.rename(folder)


def assert_same(one: Audited, other: Audited) -> None:
    """Findings and reports are one, to the last evidence."""
    assert one.findings.schema == other.findings.schema
    assert one.findings.to_pylist() == other.findings.to_pylist()
    ours, theirs = (each.report.model_dump(exclude=COUNTED) for each in (one, other))
    assert ours == theirs
    whole = one.report
    assert whole.equal + sum(whole.causes.values()) == whole.values


def in_steps(repo: Repo, **span: Any) -> Audited:
    """An audit that goes on from earlier ones, and finds what one from the beginning does."""
    found = audit(repo, MODEL, **span)
    assert_same(found, anew(repo, **span))
    return found
