"""Reading features from history: as of request times, newly visible, or all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import arrow_from_us, arrow_to_us, to_us
from tallystick.definitions.exact_cast import converted, family, fits
from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import DataError, InputError, Problem
from tallystick.offline_store.duckdb_connection import (
    EngineLimits,
    connect,
    memory_limit,
    read_table,
)
from tallystick.offline_store.row_lookup import bytes_of, rows_at
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.sources.pruning import span_of
from tallystick.offline_store.sources.snapshot import Snapshots
from tallystick.offline_store.sql_dialect import DUCKDB, Dialect, key_type
from tallystick.offline_store.view_history import (
    History,
    ViewRead,
    open_history,
    require_times,
    typed,
)
from tallystick.point_in_time.feature_status import Status
from tallystick.point_in_time.rule import (
    VisibilityClock,
    as_of_sql,
    values_sql,
)

if TYPE_CHECKING:
    import pyarrow as pa

FETCHED_SHARE: Final = 0.125
"""Share of the engine's memory that a view's columns may take to be fetched by position at once."""


def point_in_time(
    *,
    spine: pa.Table,
    request_time: str,
    reads: Sequence[ViewRead],
    clock: VisibilityClock,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
    with_times: bool = False,
    snapshots: Snapshots | None = None,
) -> pa.Table:
    """The features of every row of a spine at its request time.

    Args:
        spine: Entity keys and request times, and whatever else; one row per request.
        request_time: The spine's column of request times: timestamps, naive ones in UTC.
        reads: The views to read.
        clock: When a row counts as visible.
        config: What the engine may take; None for all of the machine.
        repo_path: Folder from which relative source paths are taken.
        with_times: Add, per view, the winning row's ``view__event_time`` and
            ``view__created_time`` (timestamp[us, UTC], also where it is too old) and
            ``view__status`` (``PRESENT``, ``NOT_FOUND`` or ``OUTSIDE_MAX_AGE``).
        snapshots: The versions of tables of which the answer is made; None for the newest.

    Returns:
        The spine, untouched and in its order, one row per row, and after it ``view__feature`` per
        feature in the declared type.

    Raises:
        InputError: The spine lacks columns, or has some of a wrong type or a null request time.
        DataError: A source does not fit its view, or lacks the time that the clock asks for.
    """
    check_spine(spine, request_time, reads, with_times=with_times)
    shared = snapshots or Snapshots()

    def answered(read: ViewRead) -> dict[str, Any]:
        return _answer(
            spine_keys(spine, request_time, read),
            read,
            clock=clock,
            config=config,
            repo_path=repo_path,
            with_times=with_times,
            snapshots=shared,
        )

    answer = spine
    for read, found in zip(reads, each(answered, reads), strict=True):
        for name, column in found.items():
            answer = answer.append_column(f"{read.name}__{name}", column)
    return answer


def each(work: Callable[[ViewRead], Any], reads: Sequence[ViewRead]) -> Iterator[Any]:
    """The work for each view, in order; one view's values are fetched while the next is folded."""
    with ThreadPoolExecutor(max_workers=2) as threads:
        yield from threads.map(work, reads)


def _answer(
    keys: pa.Table,
    read: ViewRead,
    *,
    clock: VisibilityClock,
    config: EngineLimits | None,
    repo_path: Path | str | None,
    with_times: bool,
    snapshots: Snapshots,
) -> dict[str, Any]:
    """What one view answers: feature, or ``event_time`` and so on → its column."""
    span = span_of(keys["request_us"], with_times=with_times)
    return read_steadily(
        lambda: open_history(
            read, clock=clock, repo_path=repo_path, span=span, snapshots=snapshots
        ),
        lambda history: [history.files],
        lambda history: _answer_of(
            history, keys, read, clock=clock, config=config, with_times=with_times
        ),
    )


def _answer_of(
    history: History,
    keys: pa.Table,
    read: ViewRead,
    *,
    clock: VisibilityClock,
    config: EngineLimits | None,
    with_times: bool,
) -> dict[str, Any]:
    connection = connect(config)
    try:
        connection.register("spine", history.asked(keys))
        require_times(connection, history, read, clock)
        # To fetch, all of the columns are read into memory; to join, only what is found is kept.
        is_fetched = (
            keys.num_rows * 2 >= history.files.rows
            and bytes_of(history.files, history.columns) < memory_limit(connection) * FETCHED_SHARE
        )
        times = (*history.position, "event_us", "created_us")
        sql = as_of_sql(
            asked_sql(history, keys.num_rows),
            spine="spine",
            keys=history.keys,
            position=history.position,
            ttl_us=read.spec.ttl_us,
            wanted=times if with_times or not is_fetched else history.place,
        )
        if with_times or not is_fetched:
            sql = history.told(sql)
        if not is_fetched:
            sql = values_sql(
                history.sql, f"({sql})", values=history.values, position=history.position
            )
        found = read_table(connection, sql, what=history.what)
    finally:
        connection.close()
    if is_fetched:
        found = _fetched(in_order(found), history)
    return typed(found, history, read) | (times_of(found) if with_times else {})


def times_of(found: pa.Table) -> dict[str, Any]:
    """``event_time``, ``created_time`` and ``status`` of what was found."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found_status = pc.if_else(found["too_old"], Status.OUTSIDE_MAX_AGE, Status.PRESENT)
    status = pc.if_else(pc.is_null(found["event_us"]), Status.NOT_FOUND, found_status)
    return {
        "event_time": arrow_from_us(found["event_us"]),
        "created_time": arrow_from_us(found["created_us"]),
        "status": status.cast(pa.string()),
    }


def asked_sql(history: History, spine_rows: int) -> str:
    """The history, without keys that the relation ``spine`` lacks, if that is worth the look."""
    if spine_rows > history.files.rows:
        return history.sql
    matches = " AND ".join(f"spine.{key} = history.{key}" for key in history.keys)
    return (
        f"(SELECT * FROM {history.sql} AS history "
        f"WHERE EXISTS (SELECT 1 FROM spine WHERE {matches}))"
    )


def in_order(found: pa.Table) -> pa.Table:
    """What was found, in the spine's order; every row of the spine is in it once."""
    import numpy as np
    import pyarrow as pa

    rows = found["spine_row"].to_numpy()
    order = np.empty(len(rows), dtype=np.int64)
    order[rows] = np.arange(len(rows))
    return found.drop_columns(["spine_row"]).combine_chunks().take(pa.array(order))


def _fetched(found: pa.Table, history: History) -> pa.Table:
    """With the values of the rows that were found."""
    import pyarrow.compute as pc

    places = [pc.if_else(found["too_old"], None, found[name]) for name in history.place]
    values = rows_at(history.files, history.columns, places)
    for name, column in zip(history.values, history.columns, strict=True):
        found = found.append_column(name, values[column])
    return found


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
    """A spine of all moments at which some view may have changed for some key.

    Args:
        reads: The views.
        start: First moment, included.
        end: Last moment, included.
        time: Name of the column of moments.
        clock: When a row counts as visible; what became visible is a change.
        config: What the engine may take; None for all of the machine.
        repo_path: Folder from which relative source paths are taken.
        snapshots: As for :func:`point_in_time`, which may go on with them.

    Returns:
        Each combination of keys and moment once, ordered by moment, then by keys. A key that a view
        does not have is null in its rows. Views without entities have no changes of their own,
        unless there are no others.

    Raises:
        DataError: A source does not fit its view, or lacks the time that the clock asks for.
    """
    shared = snapshots or Snapshots()

    def found(histories: Sequence[History]) -> pa.Table:
        sql = changes_sql(reads, histories, start_us=to_us(start), end_us=to_us(end))
        connection = connect(config)
        try:
            return read_table(connection, sql, what="the views' sources")
        finally:
            connection.close()

    rows = read_steadily(
        lambda: [
            open_history(read, clock=clock, repo_path=repo_path, snapshots=shared)
            for read in that_change(reads)
        ],
        lambda histories: [history.files for history in histories],
        found,
    )
    return changes_found(rows, reads, time=time)


def that_change(reads: Sequence[ViewRead]) -> list[ViewRead]:
    """The views whose rows are changes, without their features."""
    return [replace(read, columns=()) for read in reads if read.keys] or [
        replace(read, columns=()) for read in reads
    ]


def spine_types(reads: Sequence[ViewRead]) -> dict[str, pa.DataType]:
    """The spine's key columns that the views ask for, with their types."""
    return {read.spine_key(key.name): arrow_type(key.dtype) for read in reads for key in read.keys}


def changes_sql(
    reads: Sequence[ViewRead],
    histories: Sequence[History],
    *,
    start_us: int,
    end_us: int,
    dialect: Dialect = DUCKDB,
) -> str:
    """The query of :func:`changes_between`, to be read with :func:`changes_found`."""
    types = spine_types(reads)
    rows = []
    for read, history in zip(that_change(reads), histories, strict=True):
        own = {read.spine_key(key.name): f"key_{at}" for at, key in enumerate(read.keys)}
        keys = "".join(f"{own.get(name, 'NULL')} AS {dialect.quoted(name)}, " for name in types)
        rows.append(
            f"SELECT {keys}visible_us FROM {history.sql} AS history "
            f"WHERE visible_us BETWEEN {start_us} AND {end_us}"
        )
    order = ", ".join(("visible_us", *(f"{dialect.quoted(name)} ASC NULLS LAST" for name in types)))
    return f"SELECT DISTINCT * FROM ({' UNION ALL '.join(rows)}) AS changes ORDER BY {order}"


def changes_found(found: pa.Table, reads: Sequence[ViewRead], *, time: str) -> pa.Table:
    """What :func:`changes_sql` found, as a spine."""
    import pyarrow as pa

    columns = {
        name: arrow_from_us(found[name]) if pa.types.is_timestamp(kind) else found[name].cast(kind)
        for name, kind in spine_types(reads).items()
    }
    return pa.table({**columns, time: arrow_from_us(found["visible_us"])})


def check_spine(
    spine: pa.Table, request_time: str, reads: Sequence[ViewRead], *, with_times: bool
) -> None:
    """Compare a spine with what the views ask of it.

    Raises:
        InputError: With every column that is missing, of a wrong type, or named twice.
    """
    problems = []
    have = spine.schema.names
    if request_time not in have:
        problems.append(Problem(f"request time {request_time}", "a column", "no such column"))
    elif not fits("UNIX_TIMESTAMP", spine.schema.field(request_time).type):
        kind = spine.schema.field(request_time).type
        problems.append(Problem(f"request time {request_time}", "timestamps", str(kind)))
    elif spine[request_time].null_count:
        nulls = f"{spine[request_time].null_count} nulls"
        problems.append(Problem(f"request time {request_time}", "a time in every row", nulls))
    for read in reads:
        for key in read.keys:
            name = read.spine_key(key.name)
            where = f"key {name} of view {read.name}"
            if name not in have:
                problems.append(Problem(where, key.dtype, "no such column"))
            elif not fits(key.dtype, spine.schema.field(name).type):
                problems.append(Problem(where, key.dtype, str(spine.schema.field(name).type)))
    extra = ("event_time", "created_time", "status") if with_times else ()
    names = [*have, *(f"{read.name}__{name}" for read in reads for name in (*read.columns, *extra))]
    problems += [
        Problem(f"column {name}", "one column of this name", f"{names.count(name)}")
        for name in sorted({name for name in names if names.count(name) > 1})
    ]
    if problems:
        raise InputError("The spine cannot be used.", problems)


def spine_keys(
    spine: pa.Table, request_time: str, read: ViewRead, *, first_row: int = 0
) -> pa.Table:
    """The spine as the fold reads it: ``key_0…``, ``request_us`` and ``spine_row``.

    Args:
        spine: All rows of the spine, or some that follow each other.
        request_time: The spine's column of request times.
        read: The view whose keys are wanted.
        first_row: The number of the first of them.

    Raises:
        InputError: An integer key holds a fraction or is out of range.
    """
    import numpy as np
    import pyarrow as pa

    rows = spine.num_rows
    columns: dict[str, Any] = {}
    for at, key in enumerate(read.keys):
        name = read.spine_key(key.name)
        column = spine[name]
        try:
            if family(column.type) == "time":
                column = arrow_to_us(column)
            columns[f"key_{at}"] = converted(column, key_type(key.dtype), where=f"Key {name}")
        except DataError as error:
            raise InputError(str(error)) from error
    if not columns:
        columns["key_0"] = pa.array([0] * rows, pa.int64())
    columns["request_us"] = arrow_to_us(spine[request_time])
    columns["spine_row"] = pa.array(np.arange(first_row, first_row + rows))
    return pa.table(columns)
