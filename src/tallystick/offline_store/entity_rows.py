"""Entity rows: their columns and keys, and the entity rows of every change of some views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import arrow_from_us, arrow_to_us, to_us
from tallystick.definitions.exact_cast import converted, family, fits
from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import DataError, InputError, Problem
from tallystick.offline_store.duckdb_connection import EngineLimits, query_table
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.sources.file_source import Snapshots
from tallystick.offline_store.sql_dialect import DUCKDB, Dialect, key_type
from tallystick.offline_store.view_history import open_history
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import VisibilityClock

if TYPE_CHECKING:
    import pyarrow as pa


def check_entity_rows(
    schema: pa.Schema, request_time: str, reads: Sequence[ViewRead], *, with_times: bool
) -> None:
    """Compare the columns of entity rows with what the views need.

    Raises:
        InputError: With every column that is missing, of a wrong type, or named twice.
    """
    problems = []
    if request_time not in schema.names:
        problems.append(Problem(f"request time {request_time}", "a column", "no such column"))
    elif not fits("UNIX_TIMESTAMP", schema.field(request_time).type):
        kind = schema.field(request_time).type
        problems.append(Problem(f"request time {request_time}", "timestamps", str(kind)))
    for read in reads:
        for key in read.keys:
            name = read.entity_column(key.name)
            where = f"key {name} of view {read.name}"
            if name not in schema.names:
                problems.append(Problem(where, key.dtype, "no such column"))
            elif not fits(key.dtype, schema.field(name).type):
                problems.append(Problem(where, key.dtype, str(schema.field(name).type)))
    extra = ("event_time", "created_time", "status") if with_times else ()
    features = [f"{read.name}__{name}" for read in reads for name in (*read.columns, *extra)]
    names = [*schema.names, *features]
    problems += [
        Problem(f"column {name}", "one column of this name", f"{names.count(name)}")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    _refuse(problems)


def check_request_times(request_time: str, *, nulls: int) -> None:
    """Refuse entity rows without a request time.

    Raises:
        InputError: With their number.
    """
    if nulls:
        _refuse([Problem(f"request time {request_time}", "a time in every row", f"{nulls} nulls")])


def _refuse(problems: list[Problem]) -> None:
    if problems:
        raise InputError("The entity rows cannot be used.", problems)


def entity_keys(
    entity_rows: pa.Table, request_time: str, read: ViewRead, *, first_row: int = 0
) -> pa.Table:
    """Entity rows as the engine joins them: ``key_0…``, ``request_us`` and ``entity_row``.

    Args:
        entity_rows: All entity rows, or some that follow each other.
        request_time: Their column of request times.
        read: The view whose keys are returned.
        first_row: The row index of the first of them.

    Raises:
        InputError: An integer key holds a fraction or is out of range.
    """
    import numpy as np
    import pyarrow as pa

    rows = entity_rows.num_rows
    columns: dict[str, Any] = {}
    for number, key in enumerate(read.keys):
        name = read.entity_column(key.name)
        column = entity_rows[name]
        try:
            if family(column.type) == "time":
                column = arrow_to_us(column)
            columns[f"key_{number}"] = converted(column, key_type(key.dtype), where=f"Key {name}")
        except DataError as error:
            raise InputError(str(error)) from error
    if not columns:
        columns["key_0"] = pa.array([0] * rows, pa.int64())
    columns["request_us"] = arrow_to_us(entity_rows[request_time])
    columns["entity_row"] = pa.array(np.arange(first_row, first_row + rows))
    return pa.table(columns)


def changes_between(
    reads: Sequence[ViewRead],
    *,
    start: datetime,
    end: datetime,
    time: str,
    clock: VisibilityClock,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
    snapshots: Snapshots | None = None,
) -> pa.Table:
    """Entity rows of all moments at which a row of a view became visible.

    Args:
        reads: The views.
        start: First moment, included.
        end: Last moment, included.
        time: Name of the column of moments.
        clock: When a row counts as visible.
        config: Limits of the engine, or None for the whole machine.
        repo_path: Folder from which relative source paths are taken.
        snapshots: As for ``point_in_time``, which may use the same ones afterwards.

    Returns:
        Each combination of keys and moment once, ordered by moment, then by keys. A key that a view
        does not have is null in its rows. Views without entities have no changes of their own,
        unless there are no others.

    Raises:
        DataError: A source does not fit its view, or lacks the time that the clock needs.
    """
    shared = Snapshots() if snapshots is None else snapshots

    def found(histories: Sequence[History]) -> pa.Table:
        sql = changes_sql(reads, histories, start_us=to_us(start), end_us=to_us(end))
        return query_table(config, sql, what="the views' sources")

    rows = read_steadily(
        lambda: [
            open_history(read, clock=clock, repo_path=repo_path, snapshots=shared)
            for read in changing_views(reads)
        ],
        lambda histories: [history.files for history in histories],
        found,
    )
    return changes_found(rows, reads, time=time)


def changing_views(reads: Sequence[ViewRead]) -> list[ViewRead]:
    """The views whose rows are changes, without their features."""
    return [replace(read, columns=()) for read in reads if read.keys] or [
        replace(read, columns=()) for read in reads
    ]


def _key_types(reads: Sequence[ViewRead]) -> dict[str, pa.DataType]:
    """Key column of the entity rows → its type."""
    return {
        read.entity_column(key.name): arrow_type(key.dtype) for read in reads for key in read.keys
    }


def changes_sql(
    reads: Sequence[ViewRead],
    histories: Sequence[History],
    *,
    start_us: int,
    end_us: int,
    dialect: Dialect = DUCKDB,
) -> str:
    """The query of :func:`changes_between`. :func:`changes_found` reads its answer."""
    types = _key_types(reads)
    rows = []
    for read, history in zip(changing_views(reads), histories, strict=True):
        own = {read.entity_column(key.name): f"key_{at}" for at, key in enumerate(read.keys)}
        keys = "".join(f"{own.get(name, 'NULL')} AS {dialect.quoted(name)}, " for name in types)
        rows.append(
            f"SELECT {keys}visible_us FROM {history.sql} AS history "
            f"WHERE visible_us BETWEEN {start_us} AND {end_us}"
        )
    order = ", ".join(("visible_us", *(f"{dialect.quoted(name)} ASC NULLS LAST" for name in types)))
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(rows)}) AS changes ORDER BY {order}"


def changes_found(found: pa.Table, reads: Sequence[ViewRead], *, time: str) -> pa.Table:
    """The answer to :func:`changes_sql` as entity rows."""
    import pyarrow as pa

    columns = {
        name: arrow_from_us(found[name]) if pa.types.is_timestamp(kind) else found[name].cast(kind)
        for name, kind in _key_types(reads).items()
    }
    return pa.table({**columns, time: arrow_from_us(found["visible_us"])})
