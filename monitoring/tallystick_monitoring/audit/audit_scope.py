"""What has to be compared: requests that are new, and those that late history can have changed.

Of the log, the ids of each hour's requests are hashed; an hour whose hash is another one is
compared anew. Of a view's history, the rows that became visible in each hour are hashed, by key in
256 buckets. A row that appears late, is changed, or is gone changes the hash of its hour and
bucket; it can only matter to requests for a key of that bucket from that hour on.

An online store that does not say which row it served has it looked for among all versions of a
time, also those that became visible later. There a row can matter from its event time on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from tallystick.clock import HOUR_US, SECOND_US, from_us
from tallystick.definitions.contract import ModelContract, ViewUse
from tallystick.definitions.feature_view import digest
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import DamagedFile, LogPart, day_versions, read_log
from tallystick.retrieval.expected_values import view_clock
from tallystick_monitoring.audit.audit_state import AuditState
from tallystick_monitoring.audit.causes import Int64s
from tallystick_monitoring.audit.findings import microseconds
from tallystick_monitoring.audit.hourly_counts import schema
from tallystick_monitoring.audit.value_comparison import key_columns
from tallystick_monitoring.equality import Bools

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.offline_store.view_history import History

BUCKETS: Final = 256
NEVER: Final = np.iinfo(np.int64).max
"""An hour that never comes."""

ALWAYS: Final = np.iinfo(np.int64).min
"""An hour before all others."""


@dataclass(frozen=True)
class LogChanges:
    """What of the log is not known as it is.

    Attributes:
        hours: Hours that have to be compared (or forgotten), ascending.
        rows: Rows of every hour of the days that were looked into, as :mod:`.units` counts them.
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
    """Compare the log with what was known of it.

    Args:
        repo: An applied repo.
        model: Whose log.
        state: What is known.
        hours: First hour to look at, and the one after the last.
        frontier: Last hour that is known; usually it has more requests by now.
        damaged: Where files that cannot be read are put; those in it are left out.
    """
    import pyarrow as pa

    first, last = hours
    versions = day_versions(repo.state_dir, model)
    torn = _torn(damaged)
    looked = [
        day
        for day in sorted(versions.keys() | state.days.keys())
        if day_of(first) <= day <= day_of(last - 1)
        and (
            day not in state.days or day in torn or state.days[day].version != versions.get(day, "")
        )
    ]
    found, contracts = [schema().empty_table()], {}
    for begin, end in _runs_of_days(looked, hours):
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
    known = state.units(looked)
    changed = _changed(rows, known, hours)
    return LogChanges(
        hours=changed,
        rows=rows,
        lost=_is_lost(rows, known, changed, frontier=frontier),
        log=versions,
        versions={
            day: versions.get(day, "")
            for day in looked
            if day not in torn | _torn(damaged) and _is_whole(day, hours)
        },
        contracts=contracts,
    )


def _torn(damaged: Mapping[str, DamagedFile]) -> set[str]:
    """Days of which something is in files that cannot be read."""
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
    import pyarrow as pa

    from tallystick.offline_store.duckdb_connection import connect

    ids = pa.table(
        {
            "hour": microseconds(part.table["request_time"]) // HOUR_US,
            "id": part.table["prediction_id"],
        }
    )
    with closing(connect()) as connection:
        connection.register("ids", ids)
        counted = connection.sql(
            "SELECT hour, count(*) AS count, (sum(hash(id)) % 9223372036854775807)::BIGINT AS mark "
            "FROM ids GROUP BY hour ORDER BY hour"
        ).to_arrow_table()
    rows = counted.num_rows
    columns = {
        "contract": pa.array([part.contract.contract_hash] * rows, pa.string()),
        "hour": counted["hour"],
        "kind": pa.array(["rows"] * rows, pa.string()),
        "name": pa.array([""] * rows, pa.string()),
        "bucket": pa.array(np.zeros(rows, dtype=np.int32)),
        "count": counted["count"],
        "mark": counted["mark"],
    }
    return pa.table(columns).cast(schema())


def _changed(now: pa.Table, known: pa.Table, hours: tuple[int, int]) -> Int64s:
    """Hours in which the rows of some contract are not what was known."""
    known = known.filter(_is_rows(known))

    def facts(table: pa.Table) -> set[tuple[str, int, int, int]]:
        columns = [table[name].to_pylist() for name in ("contract", "hour", "count", "mark")]
        return set(zip(*columns, strict=True))

    changed = {fact[1] for fact in facts(now) ^ facts(known)}
    return np.array(sorted(hour for hour in changed if hours[0] <= hour < hours[1]), dtype=np.int64)


def _is_lost(now: pa.Table, known: pa.Table, changed: Int64s, *, frontier: int) -> bool:
    """Whether known hours have changed otherwise than by growing at the end."""

    def counts(table: pa.Table) -> dict[tuple[str, int], int]:
        columns = [table[name].to_pylist() for name in ("contract", "hour", "count")]
        return {(contract, hour): count for contract, hour, count in zip(*columns, strict=True)}

    rows, hours = counts(now), set(changed.tolist())
    return any(
        hour in hours and (hour < frontier or rows.get((contract, hour), 0) < count)
        for (contract, hour), count in counts(known.filter(_is_rows(known))).items()
    )


def _is_rows(units: pa.Table) -> pa.Array:
    import pyarrow.compute as pc

    return pc.equal(units["kind"], "rows")


@dataclass(frozen=True)
class ViewHistory:
    """What a view's history is under a definition, and from when on it is not what it was.

    Attributes:
        identity: Of its source and columns.
        rows: ``hour``, ``event_hour``, ``bucket``, ``rows`` and ``mark`` of what was visible, or
            had its event, by the audit's end.
        since: Bucket → the first hour from which on requests for its keys may be answered another
            way; :data:`NEVER` where nothing has changed; of shape (:data:`BUCKETS`,).
    """

    identity: str
    rows: pa.Table
    since: Int64s = field(default_factory=lambda: np.full(BUCKETS, NEVER, dtype=np.int64))


def history_changes(
    repo: Repo,
    uses: Sequence[ViewUse],
    state: AuditState,
    *,
    clock: VisibilityClock,
    covered: int,
    until: int,
    by_event: bool,
) -> ViewHistory:
    """Compare the history of one view with what it was when it was last looked at.

    Args:
        repo: An applied repo.
        uses: The view as the contracts of the log use it, by one definition.
        state: What is known.
        clock: Clock of the expected values.
        covered: The hour before which history had been looked at.
        until: The hour before which rows are looked at now.
        by_event: Whether a row can matter from its event time on, before it became visible.
    """
    use = uses[0]
    columns = sorted({name for each in uses for name in each.columns})
    clock = view_clock(use, clock)
    source = repo.view_source(use.spec.name).to_proto()
    # When it was applied says nothing about it.
    source.ClearField("meta")
    identity = digest(
        f"{clock} {columns} {use.spec.join_keys} {use.spec.event_column} "
        f"{use.spec.created_column} {source.SerializeToString(deterministic=True)!r}"
    )
    rows = _hashed(repo, use, columns, clock=clock, until=until)
    name = history_name(use, clock)
    if name not in state.history or covered == ALWAYS:
        return ViewHistory(identity, rows)
    if state.history[name].identity != identity:
        return ViewHistory(identity, rows, np.full(BUCKETS, ALWAYS, dtype=np.int64))
    before = state.history_rows(name)
    return ViewHistory(identity, rows, _since(rows, before, covered, by_event=by_event))


def history_name(use: ViewUse, clock: VisibilityClock) -> str:
    """The name of a view's history under the definition that a contract has of it."""
    return f"{use.spec.name}-{use.spec.definition_hash}-{view_clock(use, clock)}"


def _hashed(
    repo: Repo, use: ViewUse, columns: Sequence[str], *, clock: VisibilityClock, until: int
) -> pa.Table:
    from tallystick.offline_store.duckdb_connection import connect, read_table
    from tallystick.offline_store.sources.consistent_read import read_steadily
    from tallystick.offline_store.view_history import ViewRead, open_history
    from tallystick.retrieval.model_features import offline_config

    read = ViewRead(
        spec=use.spec,
        source=repo.view_source(use.spec.name),
        name=use.spec.name,
        key_map={},
        columns=tuple(columns),
    )

    def ask(history: History) -> pa.Table:
        hashed = ", ".join((*history.keys, "event_us", "created_us", *history.values))
        with closing(connect(offline_config(repo))) as connection:
            return read_table(
                connection,
                f"SELECT visible_us // {HOUR_US} AS hour, "
                f"(event_us - {SECOND_US}) // {HOUR_US} AS event_hour, "
                f"{_bucket_sql(history.keys)} AS bucket, "
                f"count(*) AS rows, (sum(hash({hashed})) % 9223372036854775807)::BIGINT AS mark "
                f"FROM {history.sql} AS history "
                f"WHERE least(visible_us, event_us - {SECOND_US}) < {until * HOUR_US} GROUP BY ALL",
                what=history.what,
            )

    return read_steadily(
        lambda: open_history(read, clock=clock, repo_path=repo.path),
        lambda history: [history.files],
        ask,
    )


def _bucket_sql(keys: Iterable[str]) -> str:
    return f"(hash({', '.join(keys)}) % {BUCKETS})::INTEGER"


def _since(now: pa.Table, then: pa.Table, covered: int, *, by_event: bool) -> Int64s:
    from tallystick.offline_store.duckdb_connection import connect

    hour = "least(hour, event_hour)" if by_event else "hour"
    with closing(connect()) as connection:
        connection.register("now", now)
        connection.register("before", then)
        changed = connection.sql(
            f"SELECT bucket, min({hour}) AS hour FROM ((FROM now EXCEPT FROM before) UNION ALL "
            f"(FROM before EXCEPT FROM now)) WHERE {hour} < {covered} GROUP BY bucket"
        ).to_arrow_table()
    since = np.full(BUCKETS, NEVER, dtype=np.int64)
    since[changed["bucket"].to_numpy()] = changed["hour"].to_numpy()
    return since


def reopened(part: LogPart, since: Mapping[str, Int64s]) -> Bools:
    """Which requests of a part late history may answer another way.

    Args:
        part: A part of the log.
        since: Definition of a view → first hour by bucket, as :class:`ViewHistory` has it.
    """
    import pyarrow as pa

    from tallystick.offline_store.duckdb_connection import connect

    hours = microseconds(part.table["request_time"]) // HOUR_US
    result = np.zeros(part.table.num_rows, dtype=np.bool_)
    for use in part.contract.views:
        first = since[use.spec.definition_hash]
        if (first == NEVER).all():
            continue
        keys = pa.table(key_columns(part.table, use))
        names = keys.column_names
        with closing(connect()) as connection:
            connection.register("keys", keys.append_column("row", pa.array(np.arange(len(hours)))))
            buckets = connection.sql(
                f"SELECT {_bucket_sql(names)} AS bucket FROM keys ORDER BY row"
            ).to_arrow_table()["bucket"]
        result |= first[buckets.to_numpy()] <= hours
    return result
