"""The history of a view: its source, checked against the definition and normalised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.definitions.exact_cast import converted, family, fits
from tallystick.errors import DataError, DefinitionError, Problem
from tallystick.offline_store.journal_history import open_journal
from tallystick.offline_store.sources.file_source import Snapshots, open_source
from tallystick.offline_store.sources.pruning import (
    Bounds,
    Span,
    bounds_of,
    bounds_sql,
    have_no_nulls,
    pruned,
)
from tallystick.offline_store.sources.source_files import SourceFiles
from tallystick.offline_store.sql_dialect import DUCKDB, Dialect
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import (
    POSITION,
    VisibilityClock,
    requires_created,
    visible_sql,
)

if TYPE_CHECKING:
    import pyarrow as pa


NO_TIME = "CAST(NULL AS BIGINT)"


def open_history(
    read: ViewRead,
    *,
    clock: VisibilityClock,
    repo_path: Path | str | None,
    span: Span | None = None,
    snapshots: Snapshots | None = None,
) -> History:
    """Check a view's source against its definition, and say how to read it.

    Args:
        read: What is read.
        clock: When a row counts as visible.
        repo_path: Folder from which relative source paths are taken.
        span: The time span of the requests. Files and row groups that cannot matter to them are not
            read. None for the whole history.
        snapshots: The versions of tables that the answer is made of, or None for the newest.

    Raises:
        DataError: A file or column is missing or has a type that the declared one cannot come from,
            or the clock needs a time that the view does not have. All mismatches at once.
    """
    if clock is VisibilityClock.SERVED:
        return open_journal(read, repo_path)
    try:
        files = open_source(
            read.source,
            repo_path,
            declared={read.source_column(name): dtype for _, name, dtype in required_columns(read)},
            snapshots=snapshots,
        )
    except (DataError, DefinitionError) as error:
        what = f"View {read.spec.name}: {error.what}"
        raise type(error)(what, error.problems, hint=error.hint) from error
    bounds = {}
    if span is not None:
        spec = read.spec
        bounds = bounds_of(
            span,
            clock=clock,
            ttl_us=spec.ttl_us,
            event=read.source_column(spec.event_column),
            created=spec.created_column and read.source_column(spec.created_column),
        )
    return history_of(read, files, clock=clock, bounds=bounds)


def history_of(
    read: ViewRead,
    files: SourceFiles,
    *,
    clock: VisibilityClock,
    bounds: Mapping[str, Bounds] | None = None,
    dialect: Dialect = DUCKDB,
) -> History:
    """As :func:`open_history`, of a source that was opened, in an engine's dialect.

    Args:
        read: What is read.
        files: The source.
        clock: When a row counts as visible.
        bounds: Column of the source → bounds that the rows must meet.
        dialect: The engine's.
    """
    spec = read.spec
    require_clock(read, clock)
    whole = files
    check_columns(read, files)

    def found(name: str) -> pa.DataType:
        return files.schema.field(read.source_column(name)).type

    def named(name: str) -> str:
        return dialect.quoted(read.source_column(name))

    def time_sql(name: str | None) -> str:
        return NO_TIME if name is None else dialect.time_us_sql(named(name), found(name))

    keys = {
        f"key_{at}": dialect.key_sql(named(key.name), key.dtype, found(key.name))
        for at, key in enumerate(read.keys)
    } or {"key_0": "0"}
    values = {
        f"value_{at}": "NULL" if family(found(name)) == "null" else named(name)
        for at, name in enumerate(read.columns)
    }
    columns = {
        **keys,
        **values,
        "event_us": time_sql(spec.event_column),
        "created_us": time_sql(spec.created_column),
    }
    visible = visible_sql(clock)
    selected = ", ".join(f"{expression} AS {name}" for name, expression in columns.items())
    complete = " AND ".join(f"{key} IS NOT NULL" for key in keys)

    def rows_sql(of: SourceFiles, condition: str) -> str:
        return (
            f"(SELECT *, {visible} AS visible_us "
            f"FROM (SELECT {selected}, {of.position_sql} AS {POSITION} FROM {of.relation} "
            f"WHERE {condition}) AS source WHERE {complete})"
        )

    if bounds:
        files = pruned(whole, bounds)
    return History(
        sql=rows_sql(files, bounds_sql(bounds or {})),
        whole=whole,
        # Made on demand: it may have to open every file.
        whole_sql=lambda: rows_sql(whole, "true"),
        keys=tuple(keys),
        values=tuple(values),
        columns=tuple(map(read.source_column, read.columns)),
        files=files,
        what=f"view {spec.name} from {files.label}",
    )


def required_columns(read: ViewRead) -> list[tuple[str, str, str]]:
    """Role, name and type of each column that a view needs, by the view's names."""
    times = (read.spec.event_column, read.spec.created_column)
    return [
        *(("key", each.name, each.dtype) for each in read.keys),
        *(("feature", each.name, each.dtype) for each in read.features),
        *(("time", name, "UNIX_TIMESTAMP") for name in times if name is not None),
    ]


def require_clock(read: ViewRead, clock: VisibilityClock) -> None:
    """Refuse a clock for which the view has no time.

    Raises:
        DataError: The knowledge clock without created time.
    """
    if requires_created(clock) and read.spec.created_column is None:
        raise DataError(
            f"View {read.spec.name} has no created_timestamp_column; "
            "give its source one, or use the event clock."
        )


def check_columns(read: ViewRead, files: SourceFiles) -> None:
    """Compare the source's columns with the definition.

    Raises:
        DataError: With every column that is missing or of a wrong type.
    """
    problems = []
    for role, name, dtype in required_columns(read):
        column = read.source_column(name)
        if column not in files.schema.names:
            problems.append(Problem(f"{role} {name}", f"column {column}", "no such column"))
            continue
        found = files.schema.field(column).type
        # A column of nulls is not a time column: it says nothing about visibility.
        if not fits(dtype, found) or (role == "time" and family(found) == "null"):
            problems.append(Problem(f"{role} {name}", dtype, f"column {column} of type {found}"))
    if problems:
        raise DataError(
            f"View {read.spec.name} does not fit its source {files.label}.",
            problems,
            hint="Correct the source's columns, or the view's schema, and run apply again.",
        )


def require_times(
    query: Callable[[str], pa.Table], history: History, read: ViewRead, clock: VisibilityClock
) -> None:
    """Refuse rows without a time that the clock needs (:mod:`tallystick.point_in_time.rule`).

    Rows are read only if statistics do not show that there are no nulls.

    Args:
        query: Runs a query on the engine.
        history: The history.
        read: How the view is read.
        clock: When a row counts as visible.

    Raises:
        DataError: With the number of such rows per column.
    """
    columns = {"event_us": read.spec.event_column}
    if requires_created(clock):
        columns["created_us"] = str(read.spec.created_column)
    if have_no_nulls(history.whole, [read.source_column(name) for name in columns.values()]):
        return
    counted = ", ".join(f"count(*) - count({column}) AS {column}" for column in columns)
    nulls = query(f"SELECT {counted} FROM {history.whole_sql()} AS history").to_pylist()[0]
    problems = [
        Problem(f"column {name}", "a time in every row", f"{nulls[column]} nulls")
        for column, name in columns.items()
        if nulls[column]
    ]
    if problems:
        raise DataError(
            f"View {read.spec.name} has rows without a time in {history.files.label}.",
            problems,
            hint="Fill these times, or remove the rows.",
        )


def typed(table: pa.Table, history: History, read: ViewRead) -> dict[str, Any]:
    """Feature name → its column of ``table`` (``value_0…``) in the declared type."""
    return {
        feature.name: converted(
            table[value].combine_chunks(),
            feature.dtype,
            where=f"Feature {feature.name} of {history.what}",
        )
        for feature, value in zip(read.features, history.values, strict=True)
    }
