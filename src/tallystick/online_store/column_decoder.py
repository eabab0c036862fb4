"""Columns of many rows at once, as arrays, without a step for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from tallystick.online_store.entity_value_batch import Rows
from tallystick.online_store.row_codec import Decoded, RowCodec
from tallystick.online_store.row_layout import (
    CREATED,
    FAR_CREATED,
    FAR_WRITE,
    HEAD,
    LATER,
    LATER_WRITE,
    NEAR,
    NEAR_CREATED,
    NEAR_WRITE,
    NO_CREATED,
    NULLS,
    SAME_CREATED,
    VALUES,
    WRITE,
)
from tallystick.online_store.row_times import CREATED_BYTES, VALUES_AT
from tallystick.online_store.value_codec import damaged

_READ_AS: Final = {
    "INT32": np.dtype(np.int64),
    "INT64": np.dtype(np.int64),
    "FLOAT": np.dtype(np.float64),
    "DOUBLE": np.dtype(np.float64),
    "BOOL": np.dtype(np.bool_),
    "UNIX_TIMESTAMP": np.dtype(np.int64),
}
"""Feast value type → what its column becomes; a float32 is widened, which changes nothing."""

_VALUES_AT: Final = np.array(VALUES_AT)
_EVENT_AT: Final = HEAD + 1
_CREATED_AT: Final = _EVENT_AT + 8
_WRITE_AT: Final = _CREATED_AT + np.array(CREATED_BYTES)
_CREATED_MASKS: Final = np.array(
    [NEAR - 1 if flags & CREATED == NEAR_CREATED else 0 for flags in range(256)]
)
_WRITE_MASKS: Final = np.array(
    [{NEAR_WRITE: NEAR - 1, LATER_WRITE: LATER - 1}.get(flags & WRITE, 0) for flags in range(256)]
)
"""Flags → the bits of a time that is stored as a distance; none where it is not."""


class TableReader:
    """Reads rows of one definition whose values lie alike, none of them of variable width.

    Args:
        codec: The definition.
        flags: How the values lie.
        names: Columns wanted.

    Attributes:
        has_nulls: Whether some value of each row is null, though maybe none that is wanted.
    """

    def __init__(self, codec: RowCodec, flags: int, names: Sequence[str]) -> None:
        assert not codec.variable
        self.has_nulls = bool(flags & NULLS)
        self._dtype = np.dtype(codec.layout(flags & VALUES).values_dtype)
        self._columns: list[tuple[str, int, str, Any, Callable[[Any], Any] | None]] = [
            (
                name,
                place,
                f"c{place}",
                _READ_AS[codec.cells[place].dtype],
                codec.cells[place].to_python,
            )
            for name, place in ((name, codec.place(name)) for name in names)
        ]

    def read(self, rows: Rows) -> Decoded:
        """Unpack rows.

        Returns:
            Times as int64. A column in which no value is null is int64, float64 or bool; all others
            are lists of Python values, as are times.

        Raises:
            DamagedError: A row is cut or too long, or a value is not of its type.
        """
        offsets = _VALUES_AT[rows.flags]
        starts = rows.starts + offsets
        if not (offsets.all() and (rows.ends - starts == self._dtype.itemsize).all()):
            lengths = sorted(set((rows.ends - starts).tolist()))
            raise damaged(f"rows with values of {self._dtype.itemsize} bytes", f"{lengths} bytes")
        table = rows.fields(self._dtype, starts)
        nulls = table["nulls"] if self.has_nulls else None
        values: dict[str, Any] = {}
        for name, place, field, dtype, convert in self._columns:
            column: Any = table[field].astype(dtype)
            is_null = None if nulls is None else (nulls[:, place >> 3] >> (place & 7)) & 1
            if convert is not None:
                column = _converted(column, convert, is_null)
            elif is_null is not None and is_null.any():
                column = column.tolist()
                for row in is_null.nonzero()[0].tolist():
                    column[row] = None
            values[name] = column
        return Decoded(*_times(rows), values)


def _times(rows: Rows) -> tuple[Any, Any, Any]:
    """Event, created and write times; created as a list if some row has none."""
    kinds = set((rows.flags & (CREATED | WRITE)).tolist())
    event_us = rows.numbers(_EVENT_AT)
    created_us: Any = event_us
    created_kinds = {kind & CREATED for kind in kinds}
    if created_kinds != {SAME_CREATED}:
        stored = rows.numbers(_CREATED_AT)
        created_us = event_us + (stored & _CREATED_MASKS[rows.flags])
        if FAR_CREATED in created_kinds:
            created_us = np.where(rows.flags & CREATED == FAR_CREATED, stored, created_us)
        if NO_CREATED in created_kinds:
            has_none = (rows.flags & CREATED == NO_CREATED).tolist()
            created_us = [
                None if none else us for us, none in zip(created_us.tolist(), has_none, strict=True)
            ]
    stored = rows.numbers(_WRITE_AT[rows.flags])
    write_us = event_us + (stored & _WRITE_MASKS[rows.flags])
    if any(kind & WRITE == FAR_WRITE for kind in kinds):
        write_us = np.where(rows.flags & WRITE == FAR_WRITE, stored, write_us)
    return event_us, created_us, write_us


def _converted(column: Any, convert: Callable[[Any], Any], is_null: Any) -> list[Any]:
    nulls = [False] * len(column) if is_null is None else is_null.tolist()
    try:
        return [
            None if null else convert(value)
            for value, null in zip(column.tolist(), nulls, strict=True)
        ]
    except (ValueError, OverflowError) as error:
        raise damaged("values of the column's type", str(error)) from error
