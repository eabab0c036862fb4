"""Rows of a Feast file source that holds requests or labels: all at once, or a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.clock import arrow_from_us, to_us
from tallystick.definitions.exact_cast import exact_column, fits
from tallystick.errors import DataError, Problem
from tallystick.offline_store.duckdb_connection import EngineLimits, connect, query_table
from tallystick.offline_store.sources.file_source import open_source
from tallystick.offline_store.sources.pruning import Bounds, bounds_sql, have_no_nulls, pruned
from tallystick.offline_store.sources.source_files import FileGroup, SourceFiles
from tallystick.offline_store.sql_dialect import DUCKDB
from tallystick.point_in_time.rule import POSITION, quoted

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.feature_view import Column

Between = tuple[str, datetime, datetime]
"""A time column, under its name in the result, and the first and last time [first, last) of it."""


@dataclass(frozen=True)
class SourceRows:
    """Columns of a source under other names, with times in UTC at microseconds.

    Attributes:
        files: The source.
        columns: Name in the result → name in the source.
        what: What the source is, and where, for messages.
        config: Limits of the engine that reads it.
    """

    files: SourceFiles
    columns: dict[str, str]
    what: str
    config: EngineLimits

    def table(self, *, between: Between | None = None) -> pa.Table:
        """All rows, in the source's order.

        Raises:
            DataError: The source cannot be read.
        """
        return self._with_times(query_table(self.config, self._sql(between), what=self.what))

    def batches(self, *, rows_max: int, between: Between | None = None) -> Iterator[pa.Table]:
        """All rows, in the source's order, in tables of at most ``rows_max`` rows.

        Raises:
            DataError: The source cannot be read.
        """
        import duckdb
        import pyarrow as pa

        try:
            with closing(connect(self.config)) as connection:
                for batch in connection.sql(self._sql(between)).to_arrow_reader(rows_max):
                    # The engine rounds the number of rows up to its own unit.
                    for first in range(0, batch.num_rows, rows_max):
                        rows = batch.slice(first, rows_max)
                        yield self._with_times(pa.Table.from_batches([rows]))
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise DataError(f"Cannot read {self.what}: {error}") from error

    def nulls(self, name: str) -> int:
        """Number of rows without a value in a column of the result.

        Raises:
            DataError: The source cannot be read.
        """
        if have_no_nulls(self.files, [self.columns[name]]):
            return 0
        column = self.columns[name]
        rows = " UNION ALL ".join(
            group.select({"value": group.expressions[column]}) for group in self.files.groups
        )
        sql = f"SELECT count(*) - count(value) FROM ({rows}) AS source"
        return int(query_table(self.config, sql, what=self.what)[0][0].as_py())

    def type_of(self, name: str) -> pa.DataType:
        """The source's type of a column of the result."""
        return self.files.schema.field(self.columns[name]).type

    def empty(self) -> pa.Table:
        """The result without its rows."""
        sql = f"{self._sql(None)} LIMIT 0"
        return self._with_times(query_table(self.config, sql, what=self.what))

    def _sql(self, between: Between | None) -> str:
        """The query for the rows, in the source's order.

        One group of files is not sorted, because DuckDB keeps the order of files.
        """
        files, bounds, condition = self.files, {}, "true"
        if between is not None and self._is_time(between[0]):
            name, start, end = between
            bounds = {self.columns[name]: Bounds(to_us(start), to_us(end) - 1)}
            files = pruned(files, bounds)
            # By the column itself the engine can leave out row groups, but not for all times.
            condition = f"{quoted(name)} BETWEEN {to_us(start)} AND {to_us(end) - 1}"

        def selected(group: FileGroup) -> str:
            columns = {}
            for name, column in self.columns.items():
                value, found = group.column(column)
                columns[quoted(name)] = (
                    DUCKDB.time_us_sql(value, found)
                    if self._is_time(name)
                    else DUCKDB.widened_sql(value, found, self.type_of(name))
                )
            return group.select(columns, bounds_sql(bounds, group))

        rows = " UNION ALL ".join(map(selected, files.groups))
        order = f" ORDER BY {POSITION}" if len(files.groups) > 1 else ""
        names = ", ".join(map(quoted, self.columns))
        return f"SELECT {names} FROM ({rows}) AS source WHERE {condition}{order}"

    def _is_time(self, name: str) -> bool:
        import pyarrow as pa

        return bool(pa.types.is_timestamp(self.type_of(name)))

    def _with_times(self, found: pa.Table) -> pa.Table:
        """Times that the engine gave as integers, as times."""
        for index, name in enumerate(self.columns):
            if self._is_time(name):
                found = found.set_column(index, name, arrow_from_us(found[name]))
        return found


def source_rows(repo: Repo, source: object, *, what: str, columns: dict[str, str]) -> SourceRows:
    """Open a Feast file source of requests or labels.

    Args:
        repo: Relative paths are resolved against its folder.
        source: Feast ``FileSource``.
        what: What the source is, for messages.
        columns: Name in the result → name in the source.

    Raises:
        DataError: The source cannot be read or lacks columns. All missing ones are listed.
    """
    from tallystick.offline_store.duckdb_store import offline_config

    path = str(getattr(source, "path", ""))
    what = f"{what} ({path if '://' in path else repo.path / path})"
    try:
        files = open_source(source, repo.path)
    except DataError as error:
        raise DataError(f"{what} cannot be read: {error.what}", hint=error.hint) from error
    names = files.schema.names
    missing = [name for name in columns.values() if name not in names]
    if missing:
        raise DataError(
            f"{what} lacks columns.",
            [Problem(f"column {name}", "present", "absent") for name in missing],
            hint=f"It has: {', '.join(sorted(names))}",
        )
    if problems := files.unshared(columns.values()):
        raise DataError(
            f"{what} has files that do not fit together.",
            problems,
            hint="Write these columns in one type.",
        )
    return SourceRows(files, columns, what, offline_config(repo))


def read_source(repo: Repo, source: object, *, what: str, columns: dict[str, str]) -> pa.Table:
    """All rows of a source, as :func:`source_rows` and :meth:`SourceRows.table` say."""
    return source_rows(repo, source, what=what, columns=columns).table()


def cast_columns(table: pa.Table, columns: Iterable[Column]) -> tuple[pa.Table, list[Problem]]:
    """Some columns in their declared types, exactly, and a problem for each that does not fit."""
    import pyarrow as pa

    problems = []
    for column in columns:
        found = table[column.name]
        got = str(found.type)
        if fits(column.dtype, found.type):
            try:
                cast = exact_column(found, column.dtype)
            except pa.ArrowInvalid as error:
                got = f"{got} ({str(error).splitlines()[0]})"
            else:
                index = table.schema.get_field_index(column.name)
                table = table.set_column(index, column.name, cast)
                continue
        problems.append(Problem(f"column {column.name}", column.dtype, got))
    return table, problems
