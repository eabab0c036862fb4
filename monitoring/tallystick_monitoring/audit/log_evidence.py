"""What other requests saw of the same entities: evidence for :mod:`.cause_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import SECOND_US
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_types import arrow_type
from tallystick.definitions.feature_view import ViewSpec
from tallystick.offline_store.duckdb_connection import connect
from tallystick.point_in_time.feature_status import Status
from tallystick.prediction_log.log_reader import LogPart
from tallystick_monitoring.audit.cause_rules import same_row
from tallystick_monitoring.audit.findings import ENTITY, evidence_of, flag
from tallystick_monitoring.audit.value_comparison import key_columns
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Bools,
    is_value,
    microseconds,
    one_chunk,
    texts,
    with_columns,
)

_SIGHTED_TIMES: Final = ("status", "event_time", "created_time", "write_time")


def _rank_sql(table: str) -> str:
    """One number that orders rows by event and created time."""
    return f"({table}.event_us::HUGEINT * 18446744073709551616 + {table}.created_us)"


def sightings(
    parts: Sequence[LogPart], spec: ViewSpec, *, columns: Sequence[str] = ()
) -> pa.Table | None:
    """What the log saw online of a view, under every contract and alias that has its keys.

    Returns:
        One row per request: ``key_0…``, ``request_us``, ``present``, ``event_us``, ``created_us``
        (null where nothing was online, or the store does not say), ``write_us`` (likewise),
        ``value_<feature>``. None if the log has no such request.
    """
    types = {each.name: each.dtype for each in spec.columns}
    known = [column for column in columns if column in types]
    tables = []
    for part in parts:
        for use in part.contract.views:
            if (use.spec.name, use.spec.join_keys) != (spec.name, spec.join_keys):
                continue
            name, log = f"view.{use.name}", part.table
            event = log[f"{name}.event_time"].cast(pa.int64())
            created = log[f"{name}.created_time"].cast(pa.int64())
            own = {each.name: each.dtype for each in use.spec.columns if each.name in use.columns}
            tables.append(
                pa.table(
                    {
                        **key_columns(log, use),
                        "request_us": log["request_time"].cast(pa.int64()),
                        "present": pa.array(is_value(log[f"{name}.status"], Status.PRESENT)),
                        "event_us": event,
                        "created_us": pc.coalesce(created, event),
                        "write_us": log[f"{name}.write_time"].cast(pa.int64()),
                        **{
                            f"value_{column}": log[f"feature.{use.name}__{column}"]
                            if own.get(column) == types[column]
                            else pa.nulls(log.num_rows, arrow_type(types[column]))
                            for column in known
                        },
                        **{
                            f"has_{column}": pa.repeat(
                                pa.scalar(own.get(column) == types[column]), log.num_rows
                            )
                            for column in known
                        },
                    }
                )
            )
    return pa.concat_tables(tables) if tables else None


def sighting_columns(use: ViewUse, *, columns: Sequence[str] = ()) -> list[str]:
    """The columns of the log that :func:`sightings` needs for a view of a contract."""
    return [
        "request_time",
        *(ENTITY + name for name in use.request_keys),
        *(f"view.{use.name}.{name}" for name in _SIGHTED_TIMES),
        *(f"feature.{use.name}__{name}" for name in columns if name in use.columns),
    ]


def is_doubtful(findings: pa.Table) -> Bools:
    """Which findings depend on what another request was served of the same row."""
    e = evidence_of(findings)
    return np.asarray(
        same_row(e) & e.served_present & e.expected_present & ~e.cast_equal & ~e.unstamped,
        dtype=np.bool_,
    )


def seen_in_log(findings: pa.Table, keys: pa.Table, seen: pa.Table) -> pa.Table:
    """Put in what other requests say about findings of one view.

    Args:
        findings: The findings.
        keys: Their keys, row by row, as :func:`key_columns` gives them.
        seen: By :func:`sightings`, of the whole log, with the values of the features of those that
            are :func:`is_doubtful`.
    """
    e = evidence_of(findings)
    names = ", ".join(keys.column_names)
    same = " AND ".join(f"a.{name} IS NOT DISTINCT FROM b.{name}" for name in keys.column_names)
    coarse_us = microseconds(findings["evidence.logged_event_time"])
    requested = keys.append_column("row", pa.array(np.arange(findings.num_rows)))
    for name, column in {
        "request_us": e.request_us,
        "event_us": e.served_event_us,
        "created_us": e.served_created_us,
        "logged_us": coarse_us,
        "first_us": e.first_visible_us,
    }.items():
        requested = requested.append_column(name, pa.array(column, mask=column == NO_TIME))
    with closing(connect()) as connection:
        connection.register("requested_keys", requested)
        connection.register("seen", seen)
        connection.execute(
            f"CREATE TEMP TABLE numbers AS SELECT {names}, row_number() OVER () AS number "
            f"FROM (SELECT DISTINCT {names} FROM requested_keys)"
        )
        connection.execute(
            "CREATE TEMP TABLE requested AS SELECT b.number, a.row, a.request_us, a.event_us, "
            "a.created_us, a.logged_us, a.first_us "
            f"FROM requested_keys AS a JOIN numbers AS b ON {same}"
        )
        connection.execute(
            "CREATE TEMP TABLE sighted AS SELECT b.number, a.* FROM seen AS a "
            f"JOIN numbers AS b ON {same} WHERE a.event_us IS NOT NULL OR a.present"
        )

        def which(sql: str) -> Bools:
            result = np.zeros(findings.num_rows, dtype=np.bool_)
            result[connection.sql(sql).to_arrow_table()["row"].to_numpy()] = True
            return result

        newer = which(_newer_sql(_rank_sql("sighted"), _rank_sql("requested")))
        # Some stores give times to the second, and tell no versions apart.
        newer_second = which(
            _newer_sql(f"event_us // {SECOND_US}", f"requested.logged_us // {SECOND_US}")
        )
        flags = {
            "seen_online": which("SELECT row FROM requested SEMI JOIN sighted USING (number)"),
            "newer_served_before": np.where(e.unstamped, newer_second, newer),
            "written_since": np.zeros(findings.num_rows, dtype=np.bool_),
            "served_rightly": _served_rightly(connection, findings, is_doubtful(findings)),
        }
        absent = (e.served_event_us == NO_TIME) & e.expected_present
        if absent.any():
            flags["written_since"] = absent & which(_WRITTEN_SINCE_SQL)
    return with_columns(
        findings, {f"evidence.{name}": pa.array(column) for name, column in flags.items()}
    )


def _newer_sql(seen: str, served: str) -> str:
    """The requests before which a newer row of the key was served, by these ranks of rows."""
    return f"""
        SELECT requested.row FROM requested ASOF JOIN (
          SELECT number, request_us,
            max(max({seen})) OVER (PARTITION BY number ORDER BY request_us) AS newest
          FROM sighted WHERE event_us IS NOT NULL GROUP BY number, request_us
        ) AS running
        ON requested.number = running.number AND requested.request_us >= running.request_us
        WHERE running.newest > {served}"""


_WRITTEN_SINCE_SQL: Final = """
    SELECT requested.row FROM requested ASOF LEFT JOIN (
      SELECT request_us, max(max(coalesce(write_us, event_us))) OVER (ORDER BY request_us) AS newest
      FROM seen WHERE event_us IS NOT NULL GROUP BY request_us
    ) AS running ON requested.request_us >= running.request_us
    WHERE running.newest IS NULL OR running.newest > requested.first_us"""


def _served_rightly(connection: Any, findings: pa.Table, among: Bools) -> Bools:
    """Whether another request was served the row of a finding with history's value."""
    result = np.zeros(findings.num_rows, dtype=np.bool_)
    positions = np.flatnonzero(among)
    few = findings.select(["feature", "view", "expected"]).take(positions)
    columns = [
        feature.removeprefix(f"{view}__")
        for feature, view in zip(few["feature"].to_pylist(), few["view"].to_pylist(), strict=True)
    ]
    connection.register(
        "is_doubtful",
        pa.table(
            {"row": positions, "feature": pa.array(columns, pa.string()), "value": few["expected"]}
        ),
    )
    for column in sorted(set(columns)):
        of_row = "event_us, created_us"
        connection.execute(
            "CREATE OR REPLACE TEMP TABLE required AS SELECT requested.row, requested.number, "
            "requested.event_us, requested.created_us, is_doubtful.value FROM is_doubtful "
            "JOIN requested USING (row) WHERE is_doubtful.feature = ?",
            [column],
        )
        near = connection.sql(
            f'SELECT DISTINCT number, {of_row}, "value_{column}" AS value FROM sighted '
            f'SEMI JOIN required USING (number, {of_row}) WHERE present AND "has_{column}"'
        ).to_arrow_table()
        near = near.set_column(3, "value", texts(one_chunk(near["value"])))
        connection.register("near", near)
        rows = connection.sql(
            "SELECT required.row FROM required SEMI JOIN near ON required.number = near.number "
            "AND required.event_us = near.event_us AND required.created_us = near.created_us "
            "AND required.value IS NOT DISTINCT FROM near.value"
        ).to_arrow_table()
        result[rows["row"].to_numpy()] = True
    return result


def may_change_cause(findings: pa.Table) -> Bools:
    """Which findings a later request may show in another light."""
    computed = is_value(findings["cause"], "transform")
    unseen = ~flag(findings, "seen_online")
    return np.asarray(~computed & (unseen | is_doubtful(findings)), dtype=np.bool_)
