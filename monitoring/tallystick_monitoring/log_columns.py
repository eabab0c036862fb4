"""Columns of the log and of findings as NumPy and Arrow arrays."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import HOUR_US, arrow_from_us, arrow_to_us

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]

NO_TIME: Final = np.iinfo(np.int64).min
"""The number for null in columns of microseconds."""


def microseconds(column: Any) -> Int64s:
    """An Arrow column of times as microseconds since 1970, :data:`NO_TIME` for null."""
    times = arrow_to_us(column).fill_null(NO_TIME)
    return np.asarray(times.to_numpy(zero_copy_only=False), dtype=np.int64)


def hours_of_times(column: Any) -> Int64s:
    """An Arrow column of times, none null, as hours since 1970."""
    return microseconds(column) // HOUR_US


def as_times(times_us: Int64s) -> pa.Array:
    """Microseconds since 1970 as an Arrow column of times, null for :data:`NO_TIME`."""
    return arrow_from_us(pa.array(times_us, mask=times_us == NO_TIME))


def is_true(column: Any) -> Bools:
    """An Arrow column of booleans as NumPy, false for null."""
    return np.asarray(column.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def is_value(column: Any, value: str) -> Bools:
    """Which rows of a column have this value."""
    return is_true(pc.equal(column, value))


def one_chunk(column: Any) -> pa.Array:
    """One array of a column that may come in chunks."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    return column


def texts(column: pa.Array) -> pa.Array:
    """Values as text. Null stays null."""
    kind = column.type
    if pa.types.is_string(kind):
        return column
    if pa.types.is_primitive(kind):
        return column.cast(pa.string())
    values = [None if value is None else repr(value) for value in column.to_pylist()]
    return pa.array(values, pa.string())


def with_columns(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """The table with columns replaced or added."""
    for name, column in columns.items():
        index = table.schema.get_field_index(name)
        if index < 0:
            table = table.append_column(name, column)
        else:
            table = table.set_column(index, table.schema.field(index), column)
    return table
