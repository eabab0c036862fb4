"""Rows of a Feast file source that holds requests or labels: all at once, or a batch at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import UNIT_US, to_us
from tallystick.definitions.exact_cast import exact_column, fits
from tallystick.errors import DataError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.feature_view import Column

_INT64_MAX: Final = (1 << 63) - 1

Between = tuple[str, datetime, datetime]
"""A time column, under its name in the result, and the first and last time [first, last) of it."""


@dataclass(frozen=True)
class SourceRows:
    """Columns of a source under other names; times in UTC at microseconds.

    Attributes:
        dataset: The files, as a ``pyarrow.dataset.Dataset``.
        columns: Name in the result → name in the source.
        what: What the source is, and where, for messages.
    """

    dataset: Any
    columns: dict[str, str]
    what: str

    def table(self, *, between: Between | None = None) -> pa.Table:
        """All rows, in the source's order.

        Raises:
            DataError: The source cannot be read.
        """
        with self._reading():
            table = self.dataset.to_table(**self._selection(between))
        return self._named(table, between)

    def batches(self, *, rows_max: int, between: Between | None = None) -> Iterator[pa.Table]:
        """All rows, in the source's order, in tables of at most ``rows_max`` rows.

        Raises:
            DataError: The source cannot be read.
        """
        import pyarrow as pa
        import pyarrow.dataset as ds

        # Without reading ahead, which would hold more batches in memory.
        reading_little_ahead = {
            "batch_size": rows_max,
            "batch_readahead": 1,
            "fragment_readahead": 1,
            "fragment_scan_options": ds.ParquetFragmentScanOptions(
                use_buffered_stream=True, pre_buffer=False
            ),
        }
        with self._reading():
            for batch in self.dataset.to_batches(
                **self._selection(between), **reading_little_ahead
            ):
                yield self._named(pa.Table.from_batches([batch]), between)

    def nulls(self, name: str) -> int:
        """Number of rows without a value in a column of the result.

        Raises:
            DataError: The source cannot be read.
        """
        import pyarrow.compute as pc

        with self._reading():
            return int(self.dataset.count_rows(filter=pc.field(self.columns[name]).is_null()))

    def type_of(self, name: str) -> pa.DataType:
        """The source's type of a column of the result."""
        return self.dataset.schema.field(self.columns[name]).type

    def empty(self) -> pa.Table:
        """The result without its rows."""
        return self._named(self.dataset.schema.empty_table(), None)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.what} cannot be read: {error}") from error

    def _selection(self, between: Between | None) -> dict[str, Any]:
        return {
            "columns": sorted(set(self.columns.values())),
            "filter": None if between is None else self._about(*between),
        }

    def _about(self, name: str, start: datetime, end: datetime) -> Any:
        """A filter for [start, end) in the column's own type, which lets a unit more through."""
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = self.type_of(name)
        if not pa.types.is_timestamp(kind):
            return None
        column = pc.field(self.columns[name])
        condition = None
        for sign, time_us in ((1, to_us(start)), (-1, to_us(end))):
            time = time_us * 1_000 if kind.unit == "ns" else time_us // UNIT_US[kind.unit]
            if abs(time) > _INT64_MAX:
                continue
            bound = pa.scalar(time, kind)
            half = column >= bound if sign == 1 else column <= bound
            condition = half if condition is None else condition & half
        return condition

    def _named(self, table: pa.Table, between: Between | None) -> pa.Table:
        """A table under the result's names, cut to the requested times."""
        import pyarrow as pa
        import pyarrow.compute as pc

        table = table.select(list(self.columns.values())).rename_columns(list(self.columns))
        moment = pa.timestamp("us", tz="UTC")
        for position, field in enumerate(table.schema):
            if pa.types.is_timestamp(field.type):
                column = table[position].cast(pa.timestamp("us", tz=field.type.tz), safe=False)
                table = table.set_column(position, field.name, column.cast(moment))
        if between is None or not pa.types.is_timestamp(table.schema.field(between[0]).type):
            return table
        name, start, end = between
        times = table[name]
        return table.filter(
            pc.and_(
                pc.greater_equal(times, pa.scalar(to_us(start), moment)),
                pc.less(times, pa.scalar(to_us(end), moment)),
            )
        )


def source_rows(repo: Repo, source: object, *, what: str, columns: dict[str, str]) -> SourceRows:
    """Open a Feast file source of requests or labels.

    Args:
        repo: Relative paths are resolved against its folder.
        source: Feast ``FileSource``.
        what: What the source is, for messages.
        columns: Name in the result → name in the source.

    Raises:
        DataError: The source cannot be read or lacks a column; all missing ones are listed.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    path = str(getattr(source, "path", ""))
    location = path if "://" in path else str(repo.path / path)
    what = f"{what} ({location})"
    try:
        dataset = ds.dataset(location)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{what} cannot be read: {error}") from error
    names = set(dataset.schema.names)
    missing = [name for name in columns.values() if name not in names]
    if missing:
        raise DataError(
            f"{what} lacks columns.",
            [Problem(f"column {name}", "present", "absent") for name in missing],
            hint=f"It has: {', '.join(sorted(names))}",
        )
    return SourceRows(dataset, columns, what)


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
