"""The rows of an online write in the layout of the journal: by name and type, with all times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.exact_cast import exact_column, log_column, log_values
from tallystick.definitions.feature_types import arrow_type, feature_type
from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import times_of_row

if TYPE_CHECKING:
    import pyarrow as pa

EVENT: Final = "event_time"
CREATED: Final = "created_time"
WRITTEN: Final = "write_time"
TIMES: Final = (EVENT, CREATED, WRITTEN)
"""Columns of an entry besides keys and features, which have a colon in their names."""


def key_column(name: str) -> str:
    """The column of an entry that holds a key."""
    return f"key::{name}"


def feature_column(column: Column) -> str:
    """The column of an entry that holds a feature; its name contains the type."""
    return f"{column.name}:{column.dtype}"


def keys_of(spec: ViewSpec) -> tuple[Column, ...]:
    """The key columns that exist in data."""
    return tuple(key for key in spec.join_keys if key.name != NO_ENTITY_KEY)


def entry_of_table(spec: ViewSpec, table: pa.Table, *, write_us: int) -> pa.Table:
    """Rows of a table with a view's columns, as an entry has them.

    Args:
        spec: The view.
        table: Its keys, features, event time and, if the view has one, created time.
        write_us: Write time of all rows.
    """
    import pyarrow as pa

    moment = arrow_type("UNIX_TIMESTAMP")
    created = spec.created_column
    columns = {
        **{key_column(key.name): _key_column(table[key.name], key) for key in keys_of(spec)},
        **{feature_column(each): log_column(table[each.name], each.dtype) for each in spec.columns},
        EVENT: table[spec.event_column].cast(moment),
        CREATED: pa.nulls(table.num_rows, moment) if created is None else table[created],
        WRITTEN: pa.repeat(pa.scalar(write_us, moment), table.num_rows),
    }
    return pa.table(columns)


def entry_of_rows(
    codec: RowCodec, keys: Mapping[str, Sequence[Any]], rows: Sequence[bytes]
) -> pa.Table:
    """Packed rows, as an entry has them.

    Args:
        codec: What they were packed by.
        keys: Key column → a value per row; times in microseconds.
        rows: The rows, all with a value in each key.
    """
    import pyarrow as pa

    moment = arrow_type("UNIX_TIMESTAMP")
    spec = codec.spec
    values = codec.decode(rows).values
    times = [times_of_row(row) for row in rows]
    columns = {
        key_column(key.name): pa.array(keys[key.name], arrow_type(key.dtype))
        for key in keys_of(spec)
    }
    for each in spec.columns:
        column = log_values(values[each.name], each.dtype)
        columns[feature_column(each)] = pa.array(column, arrow_type(each.dtype))
    for index, name in enumerate(TIMES):
        columns[name] = pa.array([row_times[index] for row_times in times], moment)
    return pa.table(columns)


def _key_column(column: pa.ChunkedArray, key: Column) -> pa.ChunkedArray:
    """Keys as the online store tells them apart: times by whole seconds."""
    import pyarrow.compute as pc

    column = exact_column(column, key.dtype)
    if not feature_type(key.dtype).is_time:
        return column
    return pc.floor_temporal(column, unit="second")
