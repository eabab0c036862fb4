"""Which hours of the prediction log an audit has to compare: those that are not what was known.

The ids of each hour's requests are hashed. An hour with another hash is compared anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from tallystick.clock import HOUR_US, from_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.offline_store.duckdb_connection import connect
from tallystick.prediction_log.log_reader import DamagedFile, LogPart, day_versions, read_log
from tallystick_monitoring.audit.audit_state import AuditState
from tallystick_monitoring.audit.hourly_counts import counts, schema
from tallystick_monitoring.log_columns import Int64s, hours_of_times, is_value


@dataclass(frozen=True)
class LogChanges:
    """What of the log is not known as it is.

    Attributes:
        hours: Hours that have to be compared (or forgotten), ascending.
        rows: Rows of every hour of these days, as :mod:`.hourly_counts` counts them.
        lost: Whether rows that were known may be gone, or others may lie before the last known.
        versions: Day → version of its log, of the days that are looked at as a whole.
        log: Day → version of its log, of every day of it.
        contracts: Contract hash → contract, of the requests of those days.
    """

    hours: Int64s
    rows: pa.Table
    lost: bool
    versions: Mapping[str, str]
    log: Mapping[str, str]
    contracts: Mapping[str, ModelContract]


def day_of(hour: int) -> str:
    """The day of an hour since 1970."""
    return from_us(hour * HOUR_US).date().isoformat()


def hours_of(day: str) -> tuple[int, int]:
    """The first hour of a day, and the one after its last."""
    first = int(np.datetime64(day, "h").astype(np.int64))
    return first, first + 24


def log_changes(
    repo: Repo,
    model: str,
    state: AuditState,
    *,
    hours: tuple[int, int],
    frontier: int,
    damaged: dict[str, DamagedFile],
) -> LogChanges:
    """Compare the log of hours [first, last) with what was known of it.

    The frontier is the last known hour, which usually has more requests by now. Files that cannot
    be read are left out and added to ``damaged``.
    """
    first, last = hours
    versions = day_versions(repo.state_dir, model)
    torn = _torn(damaged)
    days = [
        day
        for day in sorted(versions.keys() | state.days.keys())
        if day_of(first) <= day <= day_of(last - 1)
        and (
            day not in state.days or day in torn or state.days[day].version != versions.get(day, "")
        )
    ]
    found, contracts = [schema().empty_table()], {}
    for begin, end in _runs_of_days(days, hours):
        for part in read_log(
            repo.state_dir,
            model,
            start=from_us(begin * HOUR_US),
            end=from_us(end * HOUR_US),
            columns=lambda _: ("request_time", "prediction_id"),
            damaged=damaged,
        ):
            found.append(_rows(part))
            contracts[part.contract.contract_hash] = part.contract
    rows = pa.concat_tables(found)
    known = state.units(days)
    known = known.filter(pa.array(is_value(known["kind"], "rows")))
    changed = _changed(rows, known, hours)
    present, hours_changed = counts_of_rows(rows), set(changed.tolist())
    has_shrunk = any(
        hour in hours_changed and present.get((contract, hour), 0) < count
        for (contract, hour), count in counts_of_rows(known).items()
    )
    return LogChanges(
        hours=changed,
        rows=rows,
        lost=has_shrunk or bool((changed < frontier).any()),
        log=versions,
        versions={
            day: versions.get(day, "")
            for day in days
            if day not in torn | _torn(damaged) and _is_whole(day, hours)
        },
        contracts=contracts,
    )


def _torn(damaged: Mapping[str, DamagedFile]) -> set[str]:
    """Days with rows in files that cannot be read."""
    return {
        day_of(hour)
        for file in damaged.values()
        for hour in range(file.first_us // HOUR_US, file.last_us // HOUR_US + 1)
    }


def _runs_of_days(days: Sequence[str], hours: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """The hours of days that follow each other, as first and one after the last."""
    spans: list[tuple[int, int]] = []
    for day in days:
        first, after = hours_of(day)
        begin, end = max(first, hours[0]), min(after, hours[1])
        if spans and spans[-1][1] == begin:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((begin, end))
    return spans


def _is_whole(day: str, hours: tuple[int, int]) -> bool:
    first, after = hours_of(day)
    return hours[0] <= first and after <= hours[1]


def _rows(part: LogPart) -> pa.Table:
    """Count the rows of each hour, and hash their ids."""
    ids = pa.table(
        {
            "hour": hours_of_times(part.table["request_time"]),
            "id": part.table["prediction_id"],
        }
    )
    with closing(connect()) as connection:
        connection.register("ids", ids)
        found = connection.sql(
            "SELECT hour, count(*) AS count, (sum(hash(id)) % 9223372036854775807)::BIGINT AS mark "
            "FROM ids GROUP BY hour ORDER BY hour"
        ).to_arrow_table()
    hash_, marks = part.contract.contract_hash, found["mark"].to_numpy()
    return counts(hash_, found["hour"], found["count"], kind="rows", marks=marks)


def _changed(now: pa.Table, known: pa.Table, hours: tuple[int, int]) -> Int64s:
    """Hours in which the rows of some contract are not what was known."""

    def facts(table: pa.Table) -> set[tuple[str, int, int, int]]:
        columns = [table[name].to_pylist() for name in ("contract", "hour", "count", "mark")]
        return set(zip(*columns, strict=True))

    changed = {fact[1] for fact in facts(now) ^ facts(known)}
    return np.array(sorted(hour for hour in changed if hours[0] <= hour < hours[1]), dtype=np.int64)


def counts_of_rows(units: pa.Table) -> dict[tuple[str, int], int]:
    """Contract and hour → requests, of counts of the kind ``rows``."""
    columns = [units[name].to_pylist() for name in ("contract", "hour", "count")]
    return {(contract, hour): count for contract, hour, count in zip(*columns, strict=True)}
