"""What history says about rows that were served wrongly, for :mod:`.causes`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import SECOND_US
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.exact_cast import log_column
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.expected_values import view_clock
from tallystick_monitoring.audit.findings import evidence_of
from tallystick_monitoring.audit.row_provenance import NOWHERE, Known, Wanted, identified
from tallystick_monitoring.audit.value_comparison import key_columns
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

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.offline_store.view_history import History, ViewRead


@dataclass(frozen=True)
class _Source:
    """A view's history as one query of the audit reads it."""

    repo: Repo
    use: ViewUse
    columns: Sequence[str] = ()

    def answer(self, ask: Callable[[History, Any], Any]) -> Any:
        """What is asked of one version of the source, with a DuckDB connection."""
        from tallystick.offline_store.duckdb_connection import connect
        from tallystick.offline_store.sources.consistent_read import read_steadily
        from tallystick.offline_store.view_history import open_history
        from tallystick.retrieval.model_features import offline_config

        clock = view_clock(self.use, VisibilityClock.KNOWLEDGE)

        def asked(history: History) -> Any:
            with closing(connect(offline_config(self.repo))) as connection:
                return ask(history, connection)

        return read_steadily(
            lambda: open_history(self.read, clock=clock, repo_path=self.repo.path),
            lambda history: [history.files],
            asked,
        )

    @property
    def read(self) -> ViewRead:
        from tallystick.offline_store.view_history import ViewRead

        return ViewRead(
            spec=self.use.spec,
            source=self.repo.view_source(self.use.spec.name),
            name=self.use.spec.name,
            key_map={},
            columns=tuple(self.columns),
        )


def in_history(
    repo: Repo,
    use: ViewUse,
    keys: Mapping[str, Any],
    event_us: Int64s,
    created_us: Int64s,
    *,
    request_us: Int64s,
) -> tuple[Int64s, Bools]:
    """When history's first row of each key became visible; whether it has the rows served.

    Neither is told of what became visible after the request: it would change as history grows.
    """
    import pyarrow as pa

    asked = pa.table(
        {
            **keys,
            "event_us": event_us,
            "created_us": created_us,
            "row": np.arange(len(event_us)),
        }
    )

    def ask(history: History, connection: Any) -> pa.Table:
        from tallystick.offline_store.duckdb_connection import read_table

        names = ", ".join(history.keys)
        created = "coalesce(created_us, event_us)"
        connection.register("asked", asked)
        return read_table(
            connection,
            f"""
            WITH near AS MATERIALIZED (
              SELECT {names}, event_us, {created} AS created_us FROM {history.sql} AS history
              SEMI JOIN asked USING ({names})
            ), firsts AS (
              SELECT {names}, min(greatest(event_us, created_us)) AS first_us
              FROM near GROUP BY {names}
            ), rows AS (SELECT DISTINCT {names}, event_us, created_us, true AS found FROM near)
            SELECT first_us, coalesce(found, false) AS found FROM asked
            LEFT JOIN firsts USING ({names})
            LEFT JOIN rows USING ({names}, event_us, created_us)
            ORDER BY asked.row""",
            what=history.what,
        )

    answer = _Source(repo, use).answer(ask)
    first_us = answer["first_us"].fill_null(NO_TIME).to_numpy()
    found = np.asarray(answer["found"].to_numpy(), dtype=np.bool_)
    first_us = np.where(first_us > request_us, NO_TIME, first_us)
    was_known = np.maximum(event_us, created_us) <= request_us
    return first_us, found & was_known & (event_us != NO_TIME)


def with_origin(
    repo: Repo, findings: pa.Table, use: ViewUse, served: Sequence[pa.Array]
) -> pa.Table:
    """Put in the rows of history for values whose online store does not say which row it was."""
    import pyarrow as pa

    e = evidence_of(findings)
    # A feature of such a name stands in the way of the row's own time.
    columns = [
        name.removeprefix(f"{use.name}__") for name in findings["feature"].unique().to_pylist()
    ]
    own, known = _versions_near(repo, use, key_columns(findings, use), e.served_event_us, columns)
    origin = np.full(len(own), NOWHERE, dtype=np.int64)
    features = np.array(findings["feature"].to_pylist(), dtype=object)
    values = np.concatenate([_objects(each) for each in served])
    for column in columns:
        # What is served ahead of its event is early, whichever version it is.
        mine = e.unstamped & (e.served_event_us <= e.request_us)
        places = np.flatnonzero(mine & (features == f"{use.name}__{column}"))
        wanted = Wanted(
            keys=own[places],
            event_us=e.served_event_us[places],
            request_us=e.request_us[places],
            expected_event_us=e.expected_event_us[places],
            expected_created_us=e.expected_created_us[places],
            present=e.served_present[places],
            values=values[places].tolist(),
        )
        origin[places] = identified(wanted, known, known.values.get(column))
    found = origin != NOWHERE
    event_us, created_us = e.served_event_us.copy(), e.served_created_us.copy()
    event_us[found] = known.event_us[origin[found]]
    created_us[found] = known.created_us[origin[found]]
    return with_columns(
        findings,
        {
            "served_event_time": as_times(event_us),
            "served_created_time": as_times(created_us),
            "evidence.in_history": pa.array(np.where(e.unstamped, found, e.in_history)),
        },
    )


def _objects(column: pa.Array) -> np.ndarray[Any, np.dtype[np.object_]]:
    objects = np.empty(len(column), dtype=object)
    objects[:] = column.to_pylist()
    return objects


def _versions_near(
    repo: Repo,
    use: ViewUse,
    keys: Mapping[str, Any],
    event_us: Int64s,
    columns: Sequence[str],
) -> tuple[Int64s, Known]:
    """History's versions of the rows of these keys, within a second of these event times.

    Returns:
        For every row of ``keys`` the number of its key, and the versions.
    """
    import pyarrow as pa

    asked = pa.table({**keys, "event_us": event_us, "row": np.arange(len(event_us))})
    source = _Source(repo, use, columns)

    def ask(history: History, connection: Any) -> tuple[pa.Table, pa.Table]:
        from tallystick.offline_store.duckdb_connection import read_table

        names = ", ".join(history.keys)
        connection.register("asked", asked)
        connection.execute(
            f"CREATE TEMP TABLE numbered AS SELECT {names}, event_us, row, "
            f"dense_rank() OVER (ORDER BY {names}) AS number FROM asked"
        )
        values = "".join(f", history.{name}" for name in history.values)
        own = read_table(connection, "SELECT number FROM numbered ORDER BY row", what=history.what)
        same = " AND ".join(f"history.{name} = numbered.{name}" for name in history.keys)
        rows = read_table(
            connection,
            f"""
            SELECT number, history.event_us,
              coalesce(history.created_us, history.event_us) AS created_us{values}
            FROM (
              SELECT history.* FROM {history.sql} AS history
              SEMI JOIN (FROM numbered WHERE event_us > {NO_TIME}) AS numbered
              ON {same} AND abs(history.event_us - numbered.event_us) < {SECOND_US}
            ) AS history
            JOIN (SELECT DISTINCT {names}, number FROM numbered) AS numbered ON {same}""",
            what=history.what,
        )
        return own, _typed(rows, history, source.read)

    own, rows = source.answer(ask)
    return own["number"].to_numpy(), Known(
        keys=rows["number"].to_numpy(),
        event_us=rows["event_us"].to_numpy(),
        created_us=rows["created_us"].to_numpy(),
        values={
            column.name: one_chunk(log_column(rows[column.name], column.dtype))
            for column in source.read.features
        },
    )


def _typed(rows: pa.Table, history: History, read: ViewRead) -> pa.Table:
    from tallystick.offline_store.view_history import typed

    values = typed(rows, history, read)
    kept = rows.select(["number", "event_us", "created_us"])
    for name, column in values.items():
        kept = kept.append_column(name, column)
    return kept


def by_values(repo: Repo, use: ViewUse, log: pa.Table, *, among: Int64s) -> tuple[Int64s, Int64s]:
    """Which row of history was served, by its values, where nothing else is told of it.

    Args:
        repo: An applied repo.
        use: The view.
        log: Logged requests.
        among: Rows of the log to look at.

    Returns:
        Event and created time of every row of the log: those it tells; for rows ``among``, those of
        the last version of the key that has all values served, of events before the request; of
        versions that were visible then if there are any; :data:`NO_TIME` if none has.
    """
    import pyarrow as pa

    few = log.take(among)
    keys = key_columns(few, use)
    asked = pa.table(
        {
            **keys,
            **{
                f"text_{place}": texts(one_chunk(few[f"feature.{use.name}__{name}"]))
                for place, name in enumerate(use.columns)
            },
            "request_us": microseconds(few["request_time"]),
            "row": np.arange(len(among)),
        }
    )
    source = _Source(repo, use, use.columns)

    def ask(history: History, connection: Any) -> pa.Table:
        from tallystick.offline_store.duckdb_connection import read_table
        from tallystick.offline_store.view_history import typed

        names, values_of = ", ".join(history.keys), ", ".join(history.values)
        connection.register("asked", asked)
        rows = read_table(
            connection,
            f"SELECT {names}, event_us, coalesce(created_us, event_us) AS created_us, "
            f"{values_of} FROM {history.sql} AS history "
            f"SEMI JOIN asked USING ({names})",
            what=history.what,
        )
        values = typed(rows, history, source.read)
        versions = rows.select([*history.keys, "event_us", "created_us"])
        for place, column in enumerate(source.read.features):
            logged = one_chunk(log_column(values[column.name], column.dtype))
            versions = versions.append_column(f"text_{place}", texts(logged))
        connection.register("versions", versions)
        same = " AND ".join(
            ["versions.event_us <= asked.request_us"]
            + [f"asked.{key} = versions.{key}" for key in history.keys]
            + [
                f"asked.text_{place} IS NOT DISTINCT FROM versions.text_{place}"
                for place in range(len(use.columns))
            ]
        )
        order = (
            "(greatest(versions.event_us, versions.created_us) <= request_us) DESC, "
            "versions.event_us DESC, versions.created_us DESC"
        )
        return read_table(
            connection,
            f"SELECT DISTINCT ON (row) row, versions.event_us, versions.created_us "
            f"FROM asked JOIN versions ON {same} ORDER BY row, {order}",
            what=history.what,
        )

    found = source.answer(ask)
    event_us = microseconds(log[f"view.{use.name}.event_time"]).copy()
    created_us = microseconds(log[f"view.{use.name}.created_time"])
    created_us = np.where(created_us == NO_TIME, event_us, created_us)
    places = among[found["row"].to_numpy()]
    event_us[places] = found["event_us"].to_numpy()
    created_us[places] = found["created_us"].to_numpy()
    return event_us, created_us
