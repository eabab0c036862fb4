"""What has changed in a view's history since an earlier audit, and which requests that may touch.

The rows of each source file are hashed once, by the hour in which they became visible and by key in
256 buckets. A file whose version is known is not read again, so an audit costs what is new. A row
that appears late, is changed or is gone changes the hash of its hour and bucket. By the
point-in-time rule it can only matter to requests for a key of that bucket from that hour on.

Where an online store does not say which row it served, the audit looks for that row among all
versions of an event, including those that became visible later. There a row can matter from its
event time on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from itertools import compress
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallystick.clock import HOUR_US, SECOND_US, SystemClock
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_view import digest
from tallystick.offline_store.duckdb_connection import connect, read_table
from tallystick.offline_store.sources.source_files import FILE_INDEX_SQL
from tallystick.offline_store.view_history import history_of
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import LogPart
from tallystick.retrieval.expected_values import view_clock
from tallystick_monitoring.audit.audit_state import AuditState, HistoryMark, hash_schema
from tallystick_monitoring.audit.value_comparison import key_columns
from tallystick_monitoring.history_query import query_history
from tallystick_monitoring.log_columns import Bools, Int64s, hours_of_times

BUCKETS: Final = 256
NEVER: Final = np.iinfo(np.int64).max
"""An hour that never comes."""

ALWAYS: Final = np.iinfo(np.int64).min
"""An hour before all others."""

_HASH_MAX: Final = 9_223_372_036_854_775_807
_SETTLED_US: Final = 2 * SECOND_US
"""Age of a file from which another change of it has another time of change."""

_UNSETTLED: Final = "?"
"""End of the version of a younger file, which the next audit hashes again."""


def history_name(use: ViewUse, clock: VisibilityClock) -> str:
    """The name of a view's history, under the definition that a contract has of the view."""
    return f"{use.spec.name}-{use.spec.definition_hash}-{view_clock(use, clock)}"


def history_changes(
    repo: Repo,
    uses: Sequence[ViewUse],
    state: AuditState,
    *,
    clock: VisibilityClock,
    covered: int,
    by_event: bool,
) -> tuple[Int64s, Callable[[], HistoryMark] | None]:
    """Compare the history of one view with what it was at the last audit.

    Args:
        repo: An applied repo.
        uses: The view as the contracts of the log use it, under one definition.
        state: What is known.
        clock: Clock of the expected values.
        covered: The hour before which requests have been compared.
        by_event: Whether a row can matter from its event time on, before it became visible.

    Returns:
        The first hour of each bucket from which requests for its keys may have another answer
        (of shape (:data:`BUCKETS`,), :data:`NEVER` where nothing has changed), and what writes
        the new mark of the history, or None if the history is as it was.

    Raises:
        DataError: The source is not as declared.
    """
    name, clock = history_name(uses[0], clock), view_clock(uses[0], clock)
    columns = sorted({column for use in uses for column in use.columns})
    identity = _identity(repo, uses[0], columns, clock)
    mark = state.history.get(name)
    is_same = mark is not None and mark.identity == identity
    known = list(mark.hashes) if mark is not None and is_same else []
    hashed = {version for each in known for version in each.versions}
    trusted = {version for version in hashed if not version.endswith(_UNSETTLED)}
    versions, fresh = _hashed(repo, uses[0], columns, clock=clock, trusted=trusted)
    stay = trusted.intersection(versions)
    if is_same and stay == hashed and not fresh.num_rows and stay.issuperset(versions):
        return _from(NEVER), None
    if mark is None:
        since = _from(NEVER)
    elif not is_same:
        since = _from(ALWAYS)
    else:
        gone = [state.hashes(each, set(each.versions) - stay) for each in known]
        since = _since(fresh, gone, covered, by_event=by_event)
    left = [
        each.model_copy(update={"versions": tuple(v for v in each.versions if v in stay)})
        for each in known
    ]
    files = [each for each in left if each.versions]
    new = set(versions) - stay
    # Hashes are merged so that the state has few files, and each is written few times.
    while files and files[-1].rows <= fresh.num_rows:
        last = files.pop()
        fresh = pa.concat_tables([fresh, state.hashes(last, set(last.versions))])
        new.update(last.versions)

    def write_mark() -> HistoryMark:
        added = [state.write_hashes(name, new, fresh)] if new else []
        return HistoryMark(identity=identity, hashes=(*files, *added))

    return since, write_mark


def _identity(repo: Repo, use: ViewUse, columns: Sequence[str], clock: VisibilityClock) -> str:
    """A digest of all that the hashes depend on beside the rows."""
    source = repo.view_source(use.spec.name).to_proto()
    # It says when the source was applied, which does not change any row.
    source.ClearField("meta")
    return digest(
        f"{clock} {columns} {use.spec.join_keys} {use.spec.event_column} "
        f"{use.spec.created_column} {source.SerializeToString(deterministic=True)!r}"
    )


def _from(hour: int) -> Int64s:
    return np.full(BUCKETS, hour, dtype=np.int64)


def _hashed(
    repo: Repo,
    use: ViewUse,
    columns: Sequence[str],
    *,
    clock: VisibilityClock,
    trusted: Collection[str],
) -> tuple[list[str], pa.Table]:
    """The versions of a view's source files, and hashes of the rows of those not yet trusted.

    The table has the columns ``version``, ``hour``, ``event_hour``, ``bucket``, ``rows`` and
    ``mark``.
    """

    def hash_new(history: History, read: ViewRead, connection: Any) -> tuple[list[str], pa.Table]:
        versions, file = _versions(history, clock), FILE_INDEX_SQL
        is_new = [version not in trusted for version in versions]
        if not any(is_new):
            return versions, hash_schema().empty_table()
        if clock is VisibilityClock.SERVED:
            # A row of the journal counts by what was written before it: there is one version.
            file = "0"
        else:
            history = history_of(read, history.files.only(is_new), clock=clock)
        hashed = ", ".join((*history.keys, "event_us", "created_us", *history.values))
        rows = read_table(
            connection,
            f"SELECT {file}::BIGINT AS file, visible_us // {HOUR_US} AS hour, "
            f"(event_us - {SECOND_US}) // {HOUR_US} AS event_hour, "
            f"{_bucket_sql(history.keys)} AS bucket, "
            f"count(*) AS rows, (sum(hash({hashed})) % {_HASH_MAX})::BIGINT AS mark "
            f"FROM {history.sql} AS history GROUP BY ALL",
            what=history.what,
        )
        names = pa.array(compress(versions, is_new), pa.string()).take(rows["file"])
        return versions, rows.set_column(0, "version", names).cast(hash_schema())

    return query_history(repo, use, hash_new, columns=columns, clock=clock)


def _versions(history: History, clock: VisibilityClock) -> list[str]:
    """A text for each file of a history. The same text means the same rows.

    A journal has one for all its files.
    """
    files = history.files
    if clock is VisibilityClock.SERVED:
        return [digest(f"{history.sql} {files.signature}")]
    settled_until_us = SystemClock().now_us() - _SETTLED_US
    deleted = getattr(files, "deleted", ())
    versions = []
    for index, (path, changed_ns, size) in enumerate(files.signature):
        folders = {name: values[index].as_py() for name, values in files.partitions.items()}
        gone = deleted[index] if deleted else ()
        version = digest(f"{path} {changed_ns} {size} {folders} {gone} {files.schema}")
        is_settled = files.are_fixed or changed_ns // 1_000 < settled_until_us
        versions.append(version if is_settled else version + _UNSETTLED)
    return versions


def _bucket_sql(keys: Iterable[str]) -> str:
    return f"(hash({', '.join(keys)}) % {BUCKETS})::INTEGER"


def _since(now: pa.Table, before: Sequence[pa.Table], covered: int, *, by_event: bool) -> Int64s:
    """The first hour before ``covered`` in which the rows of each bucket are others."""
    hour = "least(hour, event_hour)" if by_event else "hour"
    with closing(connect()) as connection:
        connection.register("now", now)
        connection.register("before", pa.concat_tables([hash_schema().empty_table(), *before]))
        changed = connection.sql(
            f"SELECT bucket, min({hour}) AS hour FROM (SELECT bucket, hour, event_hour FROM ("
            "SELECT *, 1 AS sign FROM now UNION ALL SELECT *, -1 AS sign FROM before) "
            f"WHERE {hour} < {covered} GROUP BY bucket, hour, event_hour "
            "HAVING sum(rows * sign) <> 0 "
            f"OR sum(mark::HUGEINT * sign) % {_HASH_MAX} <> 0) GROUP BY bucket"
        ).to_arrow_table()
    since = _from(NEVER)
    since[changed["bucket"].to_numpy()] = changed["hour"].to_numpy()
    return since


def reopened(part: LogPart, since: Mapping[str, Int64s]) -> Bools:
    """Which requests of a part of the log may have another answer, as history has changed."""
    hours = hours_of_times(part.table["request_time"])
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
