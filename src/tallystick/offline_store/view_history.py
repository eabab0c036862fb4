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
from tallystick.offline_store.sources.source_files import (
    FileGroup,
    SourceFiles,
    has_naive_beside_zoned,
    types_text,
)
from tallystick.offline_store.sql_dialect import DUCKDB, Dialect
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import (
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
    keys = [f"key_{at}" for at in range(len(read.keys))] or ["key_0"]
    values = [f"value_{at}" for at in range(len(read.columns))]
    times = {"event_us": spec.event_column, "created_us": spec.created_column}
    mixed = {name for name in read.columns if len(files.types(read.source_column(name))) > 1}

    def selected(group: FileGroup, bounds: Mapping[str, Bounds]) -> str:
        columns = {"key_0": "0"}
        for name, key in zip(keys, read.keys, strict=False):
            columns[name] = dialect.key_sql(*group.column(read.source_column(key.name)), key)
        for name, feature in zip(values, read.features, strict=True):
            value, found = group.column(read.source_column(feature.name))
            if feature.name in mixed:
                value = dialect.value_sql(value, found, feature)
            columns[name] = "NULL" if family(found) == "null" else value
        for name, time in times.items():
            columns[name] = (
                NO_TIME
                if time is None
                else dialect.time_us_sql(*group.column(read.source_column(time)))
            )
        return group.select(columns, bounds_sql(bounds, group))

    visible = visible_sql(clock)
    complete = " AND ".join(f"{key} IS NOT NULL" for key in keys)

    def rows_sql(of: SourceFiles, bounds: Mapping[str, Bounds]) -> str:
        rows = " UNION ALL ".join(selected(group, bounds) for group in of.groups)
        return f"(SELECT *, {visible} AS visible_us FROM ({rows}) AS source WHERE {complete})"

    if bounds:
        files = pruned(whole, bounds)
    return History(
        sql=rows_sql(files, bounds or {}),
        whole=whole,
        # Made on demand: it may have to open every file.
        whole_sql=lambda: rows_sql(whole, {}),
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
        found = files.types(column)
        odd = [kind for kind in found if not fits(dtype, kind)]
        whole = files.schema.field(column).type
        if role == "time" and family(whole) == "null":
            # A column of nulls is not a time column: it says nothing about visibility.
            found, odd = {whole: files.label}, [whole]
        for kind in odd:
            where = f" in {found[kind]}" if len(found) > 1 else ""
            got = f"column {column} of type {kind}{where}"
            problems.append(Problem(f"{role} {name}", dtype, got))
        if not odd and has_naive_beside_zoned(found):
            expected = "times with a zone, or all without"
            problems.append(Problem(f"{role} {name}", expected, types_text(found)))
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
    import pyarrow as pa

    columns = {}
    for feature, value, name in zip(read.features, history.values, history.columns, strict=True):
        column = table[value].combine_chunks()
        if column.null_count == len(column) and name in history.whole.schema.names:
            # The engine has a type of its own for nulls.
            column = pa.nulls(len(column), history.whole.schema.field(name).type)
        where = f"Feature {feature.name} of {history.what}"
        columns[feature.name] = converted(column, feature.dtype, where=where)
    return columns
