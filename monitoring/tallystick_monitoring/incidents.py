"""Incidents: opened, extended and closed as looks find, or no longer find, a period of skew."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from tallystick.clock import from_us, to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import StateError
from tallystick.model_bundle.bundle import bundle_dir, read_champion, read_contract
from tallystick.prediction_log.log_reader import read_log
from tallystick.records.record_store import (
    AffectedKeys,
    Incident,
    load_records,
    record_name,
    save_record,
)
from tallystick_monitoring.audit.audit_run import Audited, audit
from tallystick_monitoring.freshness import freshness
from tallystick_monitoring.skew_periods import SkewPeriod, Windows, affected_keys, windowed_columns


def champion_contract(repo: Repo, model_name: str) -> ModelContract:
    """The contract of a model's champion.

    Raises:
        StateError: The model has no champion.
        DamagedError: Pointer or contract cannot be read.
    """
    champion = read_champion(repo.state_dir, model_name)
    folder = bundle_dir(repo.state_dir, model_name, champion.contract_hash)
    return read_contract(folder / "contract.json")


def watch(repo: Repo, model_name: str, *, at: datetime, window: timedelta) -> list[Incident]:
    """The cheap look: audit the last requests if a view is stale, or an incident is open.

    Args:
        repo: An applied repo.
        model_name: Model to look at.
        at: When the look is taken. Requests before it are looked at.
        window: How far back.

    Returns:
        The incidents that this look opened, extended or closed, as they were saved.

    Raises:
        StateError: The model has no champion.
        DataError: A source is not as declared.
    """
    start = at - window
    parts = read_log(
        repo.state_dir, model_name, start=start, end=at, columns=windowed_columns, damaged={}
    )
    if not parts:
        return []
    contract = champion_contract(repo, model_name)
    found = freshness(contract, [part.table for part in parts])
    going_on = any(
        incident.is_open for incident in load_records(repo.state_dir, Incident, model=model_name)
    )
    if not going_on and not any(view.stale for view in found.values()):
        return []
    audited = audit(repo, model_name, start=start, end=at)
    return record_incidents(repo, model_name, audited, at=at)


def record_incidents(
    repo: Repo, model_name: str, audited: Audited, *, at: datetime
) -> list[Incident]:
    """Bring the incidents of a model up to date with an audit, and save those that changed.

    A model without a champion has none.

    Returns:
        The incidents that were opened, extended or closed, by begin.

    Raises:
        DamagedError: The champion's contract, or the log cannot be read.
    """
    whole, state_dir = audited.report, repo.state_dir
    before = {
        incident.incident_id: incident
        for incident in load_records(state_dir, Incident, model=model_name)
    }
    if not audited.findings.num_rows and not before:
        return []
    try:
        contract = champion_contract(repo, model_name)
    except StateError:
        return []
    parts = read_log(
        state_dir,
        model_name,
        start=whole.start,
        end=whole.end,
        columns=windowed_columns,
        damaged={},
    )
    if not parts:
        return []
    windows = Windows(audited.findings, parts, contract)
    after = dict(before)
    for period in windows.periods():
        incident = _matching(period, list(after.values()))
        if incident is None:
            incident = _opened(model_name, period, at)
        else:
            incident = _extended(incident, period, looked_from_us=to_us(whole.start))
        after[incident.incident_id] = incident
    for name, incident in after.items():
        if incident.is_open and windows.is_over(
            incident.view, incident.cause, end_us=to_us(incident.end)
        ):
            after[name] = incident.model_copy(update={"is_open": False})
    changed = [found for name, found in after.items() if found != before.get(name)]
    for found in changed:
        save_record(state_dir, found, model=model_name, name=found.incident_id)
    return sorted(changed, key=lambda found: (found.start, found.incident_id))


def incidents_between(
    state_dir: Path, model_name: str, *, start: datetime, end: datetime
) -> list[Incident]:
    """The incidents of a model that touch [start, end), by begin. An open one has no end."""
    found = load_records(state_dir, Incident, model=model_name)
    touching = [one for one in found if one.start < end and (one.is_open or one.end >= start)]
    return sorted(touching, key=lambda one: (one.start, one.incident_id))


def _matching(period: SkewPeriod, incidents: Sequence[Incident]) -> Incident | None:
    """The incident that a period belongs to: it overlaps, or goes on without a clean window."""
    first, last = int(period.affected_us[0]), int(period.affected_us[-1])
    for incident in incidents:
        if (incident.view, incident.cause) != (period.view, period.cause):
            continue
        start, end = to_us(incident.start), to_us(incident.end)
        overlaps = first <= end and last >= start
        clean_between = period.clean_before and period.begin_us > end
        if overlaps or (incident.is_open and end < first and not clean_between):
            return incident
    return None


def _opened(model: str, period: SkewPeriod, at: datetime) -> Incident:
    start = from_us(int(period.affected_us[0]))
    requests = len(period.affected_us)
    return Incident(
        incident_id=f"{record_name(start)}-{period.view}-{period.cause}",
        model=model,
        view=period.view,
        cause=period.cause,
        start=start,
        end=from_us(int(period.affected_us[-1])),
        found_at=at,
        requests=requests,
        values=len(period.values_us),
        is_open=period.is_ongoing,
        keys=period.keys,
        evidence=(
            f"When it was found, {requests} requests ({period.share:.0%} of those in its time) had "
            f"been served wrong values of {period.view}: {period.cause}."
        ),
    )


def _extended(incident: Incident, period: SkewPeriod, *, looked_from_us: int) -> Incident:
    """The incident with what a later look saw of it. Nothing is counted twice."""
    end_us = to_us(incident.end)
    last_us = int(period.affected_us[-1])
    if looked_from_us <= to_us(incident.start):
        # This look saw all of it: its counts replace the earlier ones.
        requests, values = len(period.affected_us), len(period.values_us)
    else:
        requests = incident.requests + int((period.affected_us > end_us).sum())
        values = incident.values + int((period.values_us > end_us).sum())
    return incident.model_copy(
        update={
            "start": min(incident.start, from_us(int(period.affected_us[0]))),
            "end": max(incident.end, from_us(last_us)),
            "requests": max(requests, incident.requests),
            "values": max(values, incident.values),
            "is_open": period.is_ongoing if last_us > end_us else incident.is_open,
            "keys": _both(incident.keys, period.keys),
        }
    )


def _both(one: AffectedKeys | None, other: AffectedKeys | None) -> AffectedKeys | None:
    """The entities of both, or None, which stands for all, if either is not known."""
    if one is None or other is None or one.names != other.names:
        return None
    keys = {*one.values, *other.values}
    ends = affected_keys(one.names, {*keys, one.first, one.last, other.first, other.last})
    if ends is None or (one.values and other.values):
        return ends
    return ends.model_copy(update={"values": ()})
