"""Writing an Arrow table into Redis column by column, without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tallystick.definitions.exact_cast import exact_column
from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.redis_connection import SyncClient
from tallystick.online_store.row_codec import RowCodec, StoredColumn
from tallystick.online_store.row_writer import WriteCounts, write_rows
from tallystick.online_store.value_codec import FIRST_US, LAST_US, ValueCodec

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.online_store.journal.write_journal import Journal

_ROWS_AT_ONCE: Final = 50_000


def write_table(
    client: SyncClient,
    project: str,
    spec: ViewSpec,
    table: pa.Table,
    *,
    write_us: int,
    key_ttl_s: int | None = None,
    journal: Journal | None = None,
) -> WriteCounts:
    """Write the rows of an Arrow table, in the table's order.

    Args:
        client: Redis.
        project: Feast project.
        spec: The view. The table has its key columns, its feature columns, its event column and, if
            the view has one, its created column; further columns are ignored.
        table: The rows. A null created time is taken as the event time.
        write_us: Write time of all rows, in microseconds.
        key_ttl_s: See :func:`tallystick.online_store.row_writer.write_rows`.
        journal: Where the write is recorded; None for nowhere.

    Raises:
        DataError: Columns are missing, or have values that do not fit their type; all are listed.
            Nothing is written.
        UnavailableError: Redis did not answer; writing the table again does no harm.
    """
    cast = _cast(spec, table)
    codec = RowCodec(spec)
    keys = EntityKeys(project, spec.join_keys)

    def rows() -> Iterator[tuple[bytes | None, bytes]]:
        for start in range(0, cast.num_rows, _ROWS_AT_ONCE):
            part = cast.slice(start, _ROWS_AT_ONCE).combine_chunks()
            names = [part.column(name).to_pylist() for name in spec.key_names]
            yield from zip(keys.of(names), packed_rows(codec, part, write_us), strict=True)

    if journal is None or not cast.num_rows:
        return write_rows(client, project, codec, rows(), key_ttl_s=key_ttl_s)
    from tallystick.online_store.journal.journal_entry import entry_of_table

    entry = entry_of_table(spec, cast, write_us=write_us)
    with journal.recording(client, project, codec, entry):
        return write_rows(client, project, codec, rows(), key_ttl_s=key_ttl_s)


def _cast(spec: ViewSpec, table: pa.Table) -> pa.Table:
    """The columns that are needed, each in the type that holds it exactly."""
    import pyarrow as pa

    moment = Column(name=spec.event_column, dtype="UNIX_TIMESTAMP")
    needed = {column.name: column for column in (*spec.join_keys, *spec.columns)}
    needed[spec.event_column] = moment
    if spec.created_column is not None:
        needed[spec.created_column] = Column(name=spec.created_column, dtype="UNIX_TIMESTAMP")
    problems = []
    arrays = {}
    for name, column in needed.items():
        if name == NO_ENTITY_KEY and name not in table.column_names:
            arrays[name] = pa.chunked_array([pa.repeat("", table.num_rows)])
            continue
        if name not in table.column_names:
            problems.append(Problem(f"column {name}", column.dtype, "absent"))
            continue
        array = table.column(name)
        try:
            arrays[name] = exact_column(array, column.dtype)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(Problem(f"column {name}", column.dtype, f"{array.type} ({error})"))
    problems += _unfit(spec, arrays)
    if not problems and arrays[spec.event_column].null_count:
        problems.append(Problem(f"column {spec.event_column}", "a time in each row", "nulls"))
    if problems:
        raise DataError(f"Rows of view {spec.name} cannot be stored.", problems)
    return pa.table(arrays)


def _unfit(spec: ViewSpec, arrays: Mapping[str, pa.ChunkedArray]) -> list[Problem]:
    """Values that have their column's type and yet cannot be stored as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    problems = []
    for column in spec.columns:
        array = arrays.get(column.name)
        if array is None or not len(array) or column.dtype != "UNIX_TIMESTAMP":
            continue
        span = pc.min_max(array.cast(pa.int64()))
        first, last = span["min"].as_py(), span["max"].as_py()
        if first is not None and not FIRST_US <= first <= last <= LAST_US:
            problems.append(
                Problem(f"column {column.name}", "times of the years 1 to 9999", "others")
            )
    return problems


def packed_rows(codec: RowCodec, table: pa.Table, write_us: int) -> list[bytes]:
    """Pack the rows of a table whose columns have their exact types."""
    spec = codec.spec
    event_us = _microseconds(table.column(spec.event_column))
    if spec.created_column is None:
        created = StoredColumn(event_us, np.ones(table.num_rows, np.bool_))
    else:
        times = table.column(spec.created_column)
        created = StoredColumn(_microseconds(times), _nulls(times))
    columns = []
    for column, cell in zip(spec.columns, codec.cells, strict=True):
        values = table.column(column.name)
        stored = (
            _contents(values, column, cell) if cell.code is None else _numbers(values, column.dtype)
        )
        columns.append(StoredColumn(stored, _nulls(values)))
    return codec.pack(columns, event_us=event_us, created=created, write_us=write_us)


def _nulls(values: pa.ChunkedArray) -> Any:
    """Which values are null; None if there is none."""
    return ~values.is_valid().to_numpy() if values.null_count else None


def _microseconds(times: pa.ChunkedArray) -> Any:
    import pyarrow as pa

    return times.cast(pa.int64()).fill_null(0).to_numpy()


def _numbers(values: pa.ChunkedArray, dtype: str) -> Any:
    if dtype == "UNIX_TIMESTAMP":
        return _microseconds(values)
    return values.fill_null(False if dtype == "BOOL" else 0).to_numpy()


def _contents(values: pa.ChunkedArray, column: Column, codec: ValueCodec) -> list[bytes]:
    """Bytes of a variable column; empty for null.

    Raises:
        DataError: A value cannot be stored, for example a list with a null among its members.
    """
    try:
        return [
            b"" if content is None else codec.from_python(content)
            for content in values.to_pylist(maps_as_pydicts="strict")
        ]
    except (TypeError, ValueError, OverflowError) as error:
        problem = Problem(f"column {column.name}", column.dtype, f"{values.type} ({error})")
        raise DataError("A column cannot be stored.", [problem]) from error
