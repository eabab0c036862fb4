"""The report of an audit, from the counts and findings that are known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import HOUR_US, from_us, to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.log_reader import DamagedFile, read_log
from tallystick.prediction_log.streams import PREDICTIONS
from tallystick.records.causes import Cause
from tallystick.records.record_store import (
    Effect,
    Exemplar,
    FieldParity,
    LogDamage,
    Parity,
    ParityReport,
    Staleness,
)
from tallystick_monitoring.audit.audit_state import AuditState
from tallystick_monitoring.audit.cause_rules import finding_sentence
from tallystick_monitoring.audit.findings import (
    ENTITY,
    evidence_of,
    flag,
    request_names,
    with_entities,
)
from tallystick_monitoring.audit.hourly_counts import age_buckets, age_of
from tallystick_monitoring.audit.log_changes import counts_of_rows, day_of
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Int64s,
    hours_of_times,
    is_value,
    microseconds,
)

EXEMPLARS_MAX: Final = 3
"""Mismatches shown in full for each cause."""


def report(
    repo: Repo,
    model: str,
    state: AuditState,
    *,
    start: datetime,
    end: datetime,
    clock: str,
    damaged: dict[str, DamagedFile],
    contract_of: Callable[[str], ModelContract],
) -> tuple[ParityReport, pa.Table]:
    """Report on the requests of [start, end).

    Ages, and request fields against features, are counted by whole hours.

    Returns:
        The report, and the findings of these requests.
    """
    span = (to_us(start), to_us(end))
    first, last = span[0] // HOUR_US, -(-span[1] // HOUR_US)
    days = [day for day in state.days if day_of(first) <= day <= day_of(last - 1)]
    units = state.units(days)
    hours = units["hour"].to_numpy()
    units = units.filter(pa.array((hours >= first) & (hours < last)))
    rows = _rows(repo, model, units, span, damaged=damaged)
    findings = state.findings(days)
    times = microseconds(findings["request_time"])
    of_hours = findings.filter(pa.array((times >= first * HOUR_US) & (times < last * HOUR_US)))
    findings = findings.filter(pa.array((times >= span[0]) & (times < span[1])))
    contracts = [contract_of(each) for each in sorted(_counts(findings, "contract"))]
    findings = with_entities(findings, contracts).combine_chunks()

    torn = [
        file
        for _, file in sorted(damaged.items())
        if file.first_us < span[1] and file.last_us >= span[0]
    ]
    damage = [*map(_damaged_file, torn), *_damaged_segments(repo)]
    lost = sum(file.rows * len(contract_of(file.contract).value_columns) for file in torn)
    by_hour, by_feature = Counter[int](), Counter[str]()
    for (contract_hash, hour), count in rows.items():
        columns = contract_of(contract_hash).value_columns
        by_hour[hour] += count * len(columns)
        by_feature.update(dict.fromkeys(columns, count))
    values = by_hour.total()
    causes = _counts(findings, "cause")
    if lost:
        causes[Cause.LOG_DAMAGE] = lost
    unequal_hours = _counts(pa.table({"hour": hours_of_times(findings["request_time"])}), "hour")
    unequal = _counts(findings, "feature")
    views = {
        view: _counts(_where(findings, "view", view), "cause")
        for view in sorted(_counts(findings, "view"))
    }
    whole = ParityReport(
        model=model,
        start=start,
        end=end,
        clock=str(clock),
        requests=sum(rows.values()) + sum(each.rows for each in damage if each.start is not None),
        values=values + lost,
        equal=values - findings.num_rows,
        causes=causes,
        views=views,
        features={
            name: Parity(values=count, unequal=unequal.get(name, 0))
            for name, count in by_feature.items()
        },
        hours={
            from_us(hour * HOUR_US).isoformat(): Parity(
                values=count, unequal=unequal_hours.get(hour, 0)
            )
            for hour, count in sorted(by_hour.items())
        },
        exemplars={
            cause: list(_exemplars(_where(findings, "cause", cause), cause))
            for cause in Cause
            if cause in causes and cause is not Cause.LOG_DAMAGE
        },
        unstamped=sorted(set(_where(units, "kind", "unstamped")["name"].to_pylist())),
        staleness=_staleness(units, of_hours),
        effect=_effect(findings, contract_of) if findings.num_rows else None,
        effects={
            cause: _effect(_where(findings, "cause", cause), contract_of)
            for cause in causes
            if cause != Cause.LOG_DAMAGE
        },
        request_fields=_fields(units),
        damage=damage,
    )
    return whole, findings


def _rows(
    repo: Repo,
    model: str,
    units: pa.Table,
    span: tuple[int, int],
    *,
    damaged: dict[str, DamagedFile],
) -> dict[tuple[str, int], int]:
    """Contract and hour → requests in the span. Of the hours at its ends the log is read."""
    rows = counts_of_rows(_where(units, "kind", "rows"))
    for edge in span:
        hour = edge // HOUR_US
        if edge % HOUR_US == 0 or all(each != hour for _, each in rows):
            continue
        begin = from_us(hour * HOUR_US)
        parts = read_log(
            repo.state_dir,
            model,
            start=begin,
            end=begin + timedelta(hours=1),
            columns=lambda _: ("request_time",),
            damaged=damaged,
        )
        for part in parts:
            times = microseconds(part.table["request_time"])
            key = (part.contract.contract_hash, hour)
            rows[key] = int(((times >= span[0]) & (times < span[1])).sum())
    return {key: count for key, count in rows.items() if count}


def _damaged_file(file: DamagedFile) -> LogDamage:
    return LogDamage(
        place=file.path,
        rows=file.rows,
        start=from_us(file.first_us),
        end=from_us(file.last_us),
        problem=file.problem,
    )


def _damaged_segments(repo: Repo) -> Iterator[LogDamage]:
    """Records lost before they reached a file. Their model and time are not known."""
    ledger = ledger_of(repo.state_dir, PREDICTIONS)
    if ledger.damages:
        yield LogDamage(
            place="segments",
            rows=ledger.lost,
            start=None,
            end=None,
            problem=(
                f"segments fail their checksum at {ledger.damages:,} positions; the model and time "
                "of their rows are not known"
            ),
        )


def _where(table: pa.Table, column: str, value: str) -> pa.Table:
    return table.filter(pc.equal(table[column], value))


def _counts(table: pa.Table, column: str) -> dict[Any, int]:
    found = pc.value_counts(table[column].combine_chunks()).to_pylist()
    return {each["values"]: each["counts"] for each in found}


def _staleness(units: pa.Table, findings: pa.Table) -> dict[str, Staleness]:
    """The ages of all that was served, without those of wrong values.

    Args:
        units: What was counted in whole hours.
        findings: What was found in the same hours.
    """
    ages = _where(units, "kind", "age")
    requests = _numbers(request_names(findings))
    # The logged time, as the counts have it. A row that was identified in history has another.
    served_us = microseconds(findings["evidence.logged_event_time"])
    present = flag(findings, "served_present") & (served_us != NO_TIME)
    wrong_ages = age_buckets(microseconds(findings["request_time"]) - served_us)
    answer = {}
    for view in sorted(set(ages["name"].to_pylist())):
        mine = _where(ages, "name", view)
        buckets = mine["bucket"].to_numpy()
        counts = np.bincount(buckets, weights=mine["count"].to_numpy()).astype(np.int64)
        wrong = np.flatnonzero(present & is_value(findings["view"], view))
        # A request is counted once, however many of the view's values are wrong.
        wrong = wrong[np.unique(requests[wrong], return_index=True)[1]]
        np.subtract.at(counts, wrong_ages[wrong], 1)
        if counts.sum() > 0:
            quantiles = np.searchsorted(np.cumsum(counts), np.array([0.5, 0.99]) * counts.sum())
            median, high = (age_of(int(bucket)) for bucket in quantiles)
            answer[view] = Staleness(values=int(counts.sum()), age_s_p50=median, age_s_p99=high)
    return answer


def _effect(findings: pa.Table, contract_of: Callable[[str], ModelContract]) -> Effect:
    _, firsts = np.unique(_numbers(request_names(findings)), return_index=True)
    few = findings.take(firsts)
    both = pc.and_(pc.is_valid(few["score_served"]), pc.is_valid(few["score_expected"]))
    requested = few.filter(both)
    served, expected = (requested[name].to_numpy() for name in ("score_served", "score_expected"))
    limits = np.array(
        [contract_of(each).threshold for each in requested["contract"].to_pylist()],
        dtype=np.float64,
    )
    changes = np.abs(expected - served)
    return Effect(
        requests=few.num_rows,
        scored=requested.num_rows,
        mean_change=float(changes.mean()) if len(changes) else 0.0,
        max_change=float(changes.max(initial=0.0)),
        flipped=int(((served >= limits) != (expected >= limits)).sum()),
    )


def _numbers(column: pa.Array) -> Int64s:
    """A number for each value, the same for equal ones."""
    return np.asarray(column.dictionary_encode().indices.to_numpy())


def _fields(units: pa.Table) -> list[FieldParity]:
    both, differ = _sums(units, "field"), _sums(units, "unequal")
    return [
        FieldParity(
            field=name.partition("=")[0],
            feature=name.partition("=")[2],
            values=count,
            unequal=differ.get(name, 0),
        )
        for name, count in sorted(both.items())
    ]


def _sums(units: pa.Table, kind: str) -> dict[str, int]:
    """Name → count, of the counts of a kind."""
    found = _where(units, "kind", kind).group_by("name").aggregate([("count", "sum")])
    return dict(zip(found["name"].to_pylist(), found["count_sum"].to_pylist(), strict=True))


def _exemplars(findings: pa.Table, cause: Cause) -> Iterator[Exemplar]:
    """The first of the cause, then the first of other features and entities, if there are any."""
    few = findings.take(_various(findings))
    evidence = evidence_of(few)
    for index, row in enumerate(few.to_pylist()):
        yield Exemplar(
            prediction_id=row["prediction_id"],
            request_time=row["request_time"],
            feature=row["feature"],
            keys={
                name.removeprefix(ENTITY): str(value)
                for name, value in row.items()
                if name.startswith(ENTITY) and value is not None
            },
            served=row["served"],
            expected=row["expected"],
            served_event_time=row["served_event_time"],
            served_created_time=row["served_created_time"],
            served_write_time=row["served_write_time"],
            expected_event_time=row["expected_event_time"],
            expected_created_time=row["expected_created_time"],
            evidence=finding_sentence(cause, evidence, index),
            mend=cause.description.remedy.replace("VIEW", row["source_view"]),
        )


def _various(findings: pa.Table) -> list[int]:
    firsts: dict[Any, int] = {}
    for index, feature in enumerate(findings["feature"].slice(0, 10_000).to_pylist()):
        firsts.setdefault(feature, index)
    chosen = sorted(firsts.values())[:EXEMPLARS_MAX]
    others = (index for index in range(findings.num_rows) if index not in chosen)
    return [*chosen, *islice(others, EXEMPLARS_MAX - len(chosen))]
