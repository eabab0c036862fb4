"""What history says about rows that were served wrongly: evidence for :mod:`.cause_rules`.

An online store that is not Tallystick's gives a row's event time, some cut to whole seconds, and no
created time. The row is then looked for among the versions that history has for the key within a
second of that time. It is the one with the value that was served, if any version has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tallystick.clock import SECOND_US
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.exact_cast import log_column
from tallystick.definitions.feature_repo import Repo
from tallystick.offline_store.duckdb_connection import read_table
from tallystick.offline_store.view_history import typed
from tallystick.offline_store.view_read import History, ViewRead
from tallystick_monitoring.audit.findings import evidence_of
from tallystick_monitoring.audit.value_comparison import key_columns
from tallystick_monitoring.history_query import query_history
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Bools,
    Int64s,
    as_times,
    microseconds,
    one_chunk,
    texts,
    with_columns,
)


def rows_in_history(
    repo: Repo,
    use: ViewUse,
    keys: Mapping[str, Any],
    event_us: Int64s,
    created_us: Int64s,
    *,
    request_us: Int64s,
) -> tuple[Int64s, Bools]:
    """When history's first row of each key became visible, and whether it has the rows served.

    Rows that became visible after the request do not count, as they would change the answer
    whenever history grows.
    """

    def ask(history: History, _: ViewRead, connection: Any) -> pa.Table:
        names = ", ".join(history.keys)
        created = "coalesce(created_us, event_us)"
        return read_table(
            connection,
            f"""
            WITH near AS MATERIALIZED (
              SELECT {names}, event_us, {created} AS created_us FROM {history.sql} AS history
              SEMI JOIN requested USING ({names})
            ), firsts AS (
              SELECT {names}, min(greatest(event_us, created_us)) AS first_us
              FROM near GROUP BY {names}
            ), rows AS (SELECT DISTINCT {names}, event_us, created_us, true AS found FROM near)
            SELECT first_us, coalesce(found, false) AS found FROM requested
            LEFT JOIN firsts USING ({names})
            LEFT JOIN rows USING ({names}, event_us, created_us)
            ORDER BY requested.row""",
            what=history.what,
        )

    requested = {**keys, "event_us": event_us, "created_us": created_us}
    answer = query_history(repo, use, ask, requested=requested)
    first_us = answer["first_us"].fill_null(NO_TIME).to_numpy()
    found = np.asarray(answer["found"].to_numpy(), dtype=np.bool_)
    first_us = np.where(first_us > request_us, NO_TIME, first_us)
    was_known = np.maximum(event_us, created_us) <= request_us
    return first_us, found & was_known & (event_us != NO_TIME)


def with_identified_rows(repo: Repo, findings: pa.Table, use: ViewUse) -> pa.Table:
    """Findings with the row of history for values whose store does not say which row it served."""
    e = evidence_of(findings)
    # A value that is served ahead of its event is early, whichever version it is of.
    is_early = e.served_event_us > e.request_us
    rows = np.flatnonzero(e.unstamped & ~is_early & (e.served_event_us != NO_TIME))
    few = findings.take(rows)
    features = [name.removeprefix(f"{use.name}__") for name in few["feature"].to_pylist()]
    columns = sorted(set(features))
    requested = {
        **key_columns(few, use),
        "event_us": e.served_event_us[rows],
        "request_us": e.request_us[rows],
        "expected_event_us": e.expected_event_us[rows],
        "expected_created_us": e.expected_created_us[rows],
        "present": e.served_present[rows],
        "feature": np.array([columns.index(name) for name in features], dtype=np.int64),
        "text": few["served"],
    }

    def ask(history: History, read: ViewRead, connection: Any) -> pa.Table:
        near = f"abs(history.event_us - requested.event_us) < {SECOND_US}"
        _register_versions(connection, history, read, near)
        return nearest_versions(connection, history.keys, features=len(columns))

    found = query_history(repo, use, ask, columns=columns, requested=requested)
    identified = rows[found["row"].to_numpy()]
    event_us, created_us = e.served_event_us.copy(), e.served_created_us.copy()
    event_us[identified] = found["event_us"].to_numpy()
    created_us[identified] = found["created_us"].to_numpy()
    in_history = e.in_history & ~e.unstamped
    in_history[identified] = True
    return with_columns(
        findings,
        {
            "served_event_time": as_times(event_us),
            "served_created_time": as_times(created_us),
            "evidence.in_history": pa.array(in_history),
        },
    )


def nearest_versions(connection: Any, keys: Sequence[str], *, features: int) -> pa.Table:
    """The version of a row that each value was served from.

    It is a version within a second of the value's event time that has the value, else the one that
    should have been served, else any. Of several it is the last that was visible at the request, or
    the first if none was. A row that was too old when it was served shows no value.

    Args:
        connection: Has the table ``requested``, with ``row``, the keys, ``event_us``,
            ``request_us``, ``expected_event_us``, ``expected_created_us``, ``present``, ``feature``
            (an index) and ``text``. It also has the table ``versions``, with the keys,
            ``event_us``, ``created_us``, and ``text_0…`` of the features.
        keys: Names of the keys.
        features: How many features there are.

    Returns:
        ``row``, ``event_us`` and ``created_us``, for the rows that have such a version.
    """
    joined = " AND ".join(f"r.{key} = v.{key}" for key in keys)
    values = " ".join(f"WHEN {index} THEN v.text_{index}" for index in range(features))
    value = f"CASE feature {values} END" if features else "NULL"
    return connection.sql(
        f"""
        SELECT DISTINCT ON (row) row, event_us, created_us FROM (
          SELECT r.row, v.event_us, v.created_us,
            greatest(v.event_us, v.created_us) <= r.request_us AS visible,
            CASE WHEN r.present AND r.text IS NOT DISTINCT FROM {value} THEN 0
              WHEN v.event_us = r.expected_event_us AND v.created_us = r.expected_created_us THEN 1
              ELSE 2 END AS rank
          FROM requested AS r JOIN versions AS v
          ON {joined} AND abs(r.event_us - v.event_us) < {SECOND_US}
        ) ORDER BY row, rank, visible DESC, CASE WHEN visible THEN -event_us ELSE event_us END,
          CASE WHEN visible THEN -created_us ELSE created_us END"""
    ).to_arrow_table()


def rows_with_values(
    repo: Repo, use: ViewUse, log: pa.Table, *, among: Int64s
) -> tuple[Int64s, Int64s]:
    """Which row of history was served, by its values, where the log says nothing else of it.

    Args:
        repo: An applied repo.
        use: The view.
        log: Logged requests.
        among: Rows of the log to look at.

    Returns:
        Event and created time for every row of the log: those in the log, and for rows ``among``
        those of the last version of the key that has all values served and an event before the
        request, preferably of a version that was visible then. :data:`NO_TIME` if none has.
    """
    few = log.take(among)
    requested = {
        **key_columns(few, use),
        **{
            f"text_{index}": texts(one_chunk(few[f"feature.{use.name}__{name}"]))
            for index, name in enumerate(use.columns)
        },
        "request_us": microseconds(few["request_time"]),
    }

    def ask(history: History, read: ViewRead, connection: Any) -> pa.Table:
        _register_versions(connection, history, read, "history.event_us <= requested.request_us")
        names = [*history.keys, *(f"text_{index}" for index in range(len(use.columns)))]
        same = [f"r.{name} IS NOT DISTINCT FROM v.{name}" for name in names]
        found: pa.Table = connection.sql(
            "SELECT DISTINCT ON (row) row, v.event_us, v.created_us FROM requested AS r "
            f"JOIN versions AS v ON v.event_us <= r.request_us AND {' AND '.join(same)} "
            "ORDER BY row, (greatest(v.event_us, v.created_us) <= request_us) DESC, "
            "v.event_us DESC, v.created_us DESC"
        ).to_arrow_table()
        return found

    found = query_history(repo, use, ask, columns=use.columns, requested=requested)
    event_us = microseconds(log[f"view.{use.name}.event_time"]).copy()
    created_us = microseconds(log[f"view.{use.name}.created_time"])
    created_us = np.where(created_us == NO_TIME, event_us, created_us)
    rows = among[found["row"].to_numpy()]
    event_us[rows] = found["event_us"].to_numpy()
    created_us[rows] = found["created_us"].to_numpy()
    return event_us, created_us


def _register_versions(connection: Any, history: History, read: ViewRead, condition: str) -> None:
    """Put history's versions of the requested keys, with values as text, into ``versions``."""
    same = " AND ".join(f"history.{key} = requested.{key}" for key in history.keys)
    rows = read_table(
        connection,
        f"SELECT {', '.join(history.keys)}, event_us, "
        "coalesce(created_us, event_us) AS created_us "
        f"{''.join(f', {value}' for value in history.values)} FROM {history.sql} AS history "
        f"SEMI JOIN requested ON {same} AND {condition}",
        what=history.what,
    )
    values = typed(rows, history, read)
    versions = rows.select([*history.keys, "event_us", "created_us"])
    for index, column in enumerate(read.features):
        logged = one_chunk(log_column(values[column.name], column.dtype))
        versions = versions.append_column(f"text_{index}", texts(logged))
    connection.register("versions", versions)
