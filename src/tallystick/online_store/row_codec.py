"""The codec of packed rows: columns of values ↔ rows of one definition of a view.

Many rows are written and read as NumPy columns; a few rows are read with ``struct``, which is ten
times as fast for one. Both come from the same :class:`tallystick.online_store.row_layout.Layout`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.row_layout import (
    CREATED,
    HEAD,
    INT32,
    LONG,
    LONG_INTEGERS,
    NO_CREATED,
    NULLS,
    OFFSET_BYTES,
    SHORT_MAX,
    STARTS,
    TAG,
    VALUES,
    VIEW_TAG,
    WRITE,
    WRITE_SHIFT,
    Layout,
    Times,
    times_of_row,
    view_tag,
)
from tallystick.online_store.value_codec import damaged, is_null, value_codec

if TYPE_CHECKING:
    from tallystick.online_store.entity_value import RowBatch

_WRITE_AT: Final = np.array([starts.write for starts in STARTS])
_VALUES_AT: Final = np.array([starts.values for starts in STARTS])
"""Flags → where a row's write time and its values begin."""
_MASKS: Final = np.array([0, 2**32 - 1, 2**48 - 1, -1])
"""Index in OFFSET_BYTES → the bits of eight bytes that are the offset."""
_CREATED_MASKS: Final = _MASKS[np.arange(256) & CREATED]
_WRITE_MASKS: Final = _MASKS[(np.arange(256) & WRITE) >> WRITE_SHIFT]
_READ_AS: Final = {
    "INT32": "i8",
    "INT64": "i8",
    "FLOAT": "f8",
    "DOUBLE": "f8",
    "BOOL": "?",
    "UNIX_TIMESTAMP": "i8",
}
"""Feast value type → type of its NumPy column; widening a float32 changes nothing."""


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class Decoded:
    """Rows of one definition as columns of the same length.

    A column is a list, or for many rows an array of int64, float64 or bool without null.

    Attributes:
        event_us: Event time in microseconds.
        created_us: Created time, None for a row without.
        write_us: Time at which the row was written online.
        values: Column → values; None for null.
    """

    event_us: Any
    created_us: Any
    write_us: Any
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """Values of a column in stored form.

    Attributes:
        values: Array of numbers, or list of bytes; 0 or empty for null.
        is_null: Array with True for each null; None if there is none.
    """

    values: Any
    is_null: Any = None


class RowCodec:
    """Packs and unpacks the rows of one definition of a view.

    Args:
        spec: The definition.
        name: The view's name online, where it differs from that of the definition.

    Attributes:
        spec: The definition.
        name: The view's name online.
        view: Tag of the view.
        tag: Tags of view and definition: the first bytes of its rows.
        cells: Codec of each column, in the view's order.
        is_fixed: Whether no column has a variable width.
    """

    def __init__(self, spec: ViewSpec, name: str | None = None) -> None:
        self.spec = spec
        self.name = spec.name if name is None else name
        self.view = view_tag(self.name, spec.key_names)
        self.tag = self.view + bytes.fromhex(spec.definition_hash)[: TAG - VIEW_TAG]
        self.cells = tuple(value_codec(column.dtype) for column in spec.columns)
        self.is_fixed = all(cell.code is not None for cell in self.cells)
        self._indices = {column.name: index for index, column in enumerate(spec.columns)}
        self._layouts: dict[int, Layout] = {}

    def layout(self, flags: int) -> Layout:
        """The layout of rows with these flags."""
        layout = self._layouts.get(flags)
        if layout is None:
            layout = self._layouts[flags] = Layout(self.cells, flags)
        return layout

    def index(self, name: str) -> int:
        """The index of a column in the view's order."""
        return self._indices[name]

    def encode(
        self,
        rows: Sequence[Mapping[str, Any]],
        times: Sequence[Times],
        *,
        protos: bool = False,
    ) -> list[bytes]:
        """Pack rows of Python values or of Feast's; a column that a row lacks is null.

        Args:
            rows: Column → value, for each row.
            times: Times of each row.
            protos: Whether values are Feast's ``Value``.

        Raises:
            DataError: A value does not fit its type; all such columns are listed.
        """
        columns, problems = [], []
        for column, cell in zip(self.spec.columns, self.cells, strict=True):
            convert = cell.from_proto if protos else cell.from_python
            stored: list[Any] = []
            value: Any = None
            try:
                for row in rows:
                    value = row.get(column.name)
                    if value is None or (protos and is_null(value)):
                        stored.append(None)
                        continue
                    content = convert(value)
                    if cell.code is not None:
                        struct.pack("<" + cell.code, content)
                    stored.append(content)
            except (TypeError, ValueError, OverflowError, struct.error):
                problems.append(Problem(f"column {column.name}", column.dtype, repr(value)))
                continue
            columns.append(_stored_column(stored, cell.code))
        if problems:
            raise DataError(f"A row of view {self.spec.name} cannot be stored.", problems)
        event_us, created_us, write_us = zip(*times, strict=True)
        return self.pack(
            columns,
            event_us=np.array(event_us, np.int64),
            created=_stored_column(created_us, "q"),
            write_us=np.array(write_us, np.int64),
        )

    def pack(
        self,
        columns: Sequence[StoredColumn],
        *,
        event_us: Any,
        created: StoredColumn,
        write_us: Any,
    ) -> list[bytes]:
        """Pack rows, one after the other.

        Args:
            columns: Columns in the view's order.
            event_us: Array of event times.
            created: Created times.
            write_us: Array of write times, or one for all rows.
        """
        count = len(event_us)
        with np.errstate(over="ignore"):  # offsets are modulo 2**64
            created_offset = (created.values - event_us).view(np.uint64)
            write_offset = (np.asarray(write_us, np.int64) - event_us).view(np.uint64)
        flags = _offset_code(created_offset, created.values >= event_us)
        if created.is_null is not None:
            flags[created.is_null] = NO_CREATED
        flags |= _offset_code(write_offset, write_us >= event_us) << WRITE_SHIFT
        nulls = np.zeros((count, (len(columns) + 7) // 8), "u1")
        lengths = np.zeros(count, np.int64)
        fields: dict[str, Any] = {
            "length": lengths,
            "event": event_us,
            "created": _bytes_of(created_offset),
            "write": _bytes_of(write_offset),
            "nulls": nulls,
        }
        for index, (column, cell) in enumerate(zip(columns, self.cells, strict=True)):
            values = column.values
            if column.is_null is not None:
                nulls[column.is_null, index >> 3] |= 1 << (index & 7)
            if cell.code is None:
                values = np.fromiter(map(len, values), np.int64, count)
                lengths += values
            elif cell.dtype in {"INT32", "INT64"}:
                flags[(values < INT32[0]) | (values > INT32[-1])] |= LONG_INTEGERS
            fields[f"c{index}"] = values
        flags[nulls.any(axis=1)] |= NULLS
        for value in np.unique(flags).tolist():
            is_long = lengths + self._body_bytes(value) > SHORT_MAX
            flags[(flags == value) & is_long] |= LONG
        contents = [
            column.values
            for column, cell in zip(columns, self.cells, strict=True)
            if cell.code is None
        ]
        rows: list[bytes] = [b""] * count
        for value in np.unique(flags).tolist():
            indices = np.flatnonzero(flags == value)
            heads = self._heads(value, fields, indices)
            for head, index in zip(heads, indices.tolist(), strict=True):
                rows[index] = b"".join((head, *(content[index] for content in contents)))
        return rows

    def _heads(self, flags: int, fields: Mapping[str, Any], indices: Any) -> list[bytes]:
        """All but the variable columns of the rows at some indices, which have these flags."""
        heads: Any = np.zeros(len(indices), self.layout(flags).dtype)
        heads["tag"] = np.frombuffer(self.tag, "u1")
        heads["flags"] = flags
        for name in heads.dtype.names[2:]:
            values, shape = fields[name][indices], heads.dtype[name].shape
            heads[name] = values[:, : shape[0]] if shape else values
        heads["length"] += self._body_bytes(flags)
        whole, size = heads.tobytes(), heads.itemsize
        return [whole[start : start + size] for start in range(0, len(whole), size)]

    def _body_bytes(self, flags: int) -> int:
        """Bytes after the length of a row with these flags, without its variable columns."""
        starts = STARTS[flags]
        return starts.values - starts.event + self.layout(flags).values.size

    def decode(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Python values.

        Args:
            rows: Packed rows.
            names: Requested columns; all by default.

        Raises:
            DamagedError: A row is cut, too long or of another definition.
        """
        requested = self.spec.column_names if names is None else names
        if any(len(row) <= HEAD or not row.startswith(self.tag) for row in rows):
            raise damaged(
                f"rows of view {self.name} and definition {self.spec.definition_hash}",
                f"bytes that start with {sorted({row[:HEAD].hex() for row in rows})}",
            )
        parts = {
            kind: self.reader(kind, requested, protos=False)
            for kind in {row[TAG] & VALUES for row in rows}
        }
        decoded = [parts[row[TAG] & VALUES].read([row]) for row in rows]
        return Decoded(
            event_us=[one.event_us[0] for one in decoded],
            created_us=[one.created_us[0] for one in decoded],
            write_us=[one.write_us[0] for one in decoded],
            values={name: [one.values[name][0] for one in decoded] for name in requested},
        )

    def reader(self, flags: int, names: Sequence[str], *, protos: bool) -> RowReader:
        """A reader of rows of this definition; keep it, as it takes longer to make than to use.

        Args:
            flags: Flags of the rows; only :data:`VALUES` count.
            names: Requested columns.
            protos: Whether values are given as Feast's ``Value``.
        """
        return RowReader(self, self.layout(flags & VALUES), names, protos=protos)


def _stored_column(values: Sequence[Any], code: str | None) -> StoredColumn:
    """A column from a list with None for null."""
    is_null = np.array([value is None for value in values], np.bool_) if None in values else None
    if code is None:
        return StoredColumn([value or b"" for value in values], is_null)
    dtype = np.dtype(code)
    return StoredColumn(np.array([0 if v is None else v for v in values], dtype), is_null)


def _offset_code(offset: Any, is_later: Any) -> Any:
    """The index in :data:`OFFSET_BYTES` of the bytes that each offset takes.

    Only eight bytes are read modulo 2**64, so a time before the event time takes them in any case.
    """
    widths = [~is_later | ((offset >> np.uint64(8 * width)) > 0) for width in OFFSET_BYTES[:-1]]
    return sum(width.astype(np.int64) for width in widths)


def _bytes_of(offset: Any) -> Any:
    return offset.astype("<u8").view("u1").reshape(len(offset), 8)


def _python_null() -> None:
    return None


def _proto_null() -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value()


@dataclass(frozen=True, slots=True)
class _ColumnReader:
    """How one requested column is read."""

    name: str
    index: int
    position: int
    dtype: str
    convert: Callable[[Any], Any] | None

    def converted(self, values: Sequence[Any], null: Callable[[], Any]) -> list[Any]:
        convert = self.convert
        assert convert is not None
        try:
            return [null() if value is None else convert(value) for value in values]
        except (ValueError, OverflowError) as error:
            raise damaged(f"values of type {self.dtype}", str(error)) from error


class RowReader:
    """Reads rows of one definition with the same flags of values; flags of times may differ.

    Args:
        codec: The definition.
        layout: The layout of any of the rows.
        names: Requested columns.
        protos: Whether values are given as Feast's ``Value``.

    Attributes:
        has_nulls: Whether each row has a null, though maybe not in a requested column.
    """

    def __init__(
        self, codec: RowCodec, layout: Layout, names: Sequence[str], *, protos: bool
    ) -> None:
        self.has_nulls = bool(layout.flags & NULLS)
        self._name = codec.name
        self._layout = layout
        self._unpack = layout.values.unpack_from
        self._variable = [
            (index, layout.positions[f"c{index}"])
            for index, cell in enumerate(codec.cells)
            if cell.code is None
        ]
        self._columns = []
        for name in names:
            index = codec.index(name)
            cell = codec.cells[index]
            self._columns.append(
                _ColumnReader(
                    name=name,
                    index=index,
                    position=layout.positions[f"c{index}"],
                    dtype=cell.dtype,
                    convert=cell.to_proto if protos else cell.to_python,
                )
            )
        self._null = _proto_null if protos else _python_null
        converts = any(column.convert is not None for column in self._columns)
        is_whole = codec.is_fixed and not self.has_nulls
        self._read_row: Callable[[bytes], Sequence[Any]] = self._fields if is_whole else self._row
        self._is_plain = is_whole and not converts

    def read(self, rows: Sequence[bytes]) -> Decoded:
        """Unpack rows with this reader's tag.

        Raises:
            DamagedError: A row is cut or too long, or a value is not of its type.
        """
        if self._is_plain and len(rows) == 1:  # what most requests need
            row = rows[0]
            fields = self._fields(row)
            event_us, created_us, write_us = times_of_row(row)
            values = {column.name: [fields[column.position]] for column in self._columns}
            return Decoded([event_us], [created_us], [write_us], values)
        unpacked = list(zip(*map(self._read_row, rows), strict=True))
        columns: dict[str, Any] = {}
        for column in self._columns:
            found = unpacked[column.position]
            columns[column.name] = (
                list(found) if column.convert is None else column.converted(found, self._null)
            )
        times = [list(column) for column in zip(*map(times_of_row, rows), strict=True)]
        return Decoded(times[0], times[1], times[2], columns)

    def _fields(self, row: bytes) -> tuple[Any, ...]:
        """The fields of a row without variable columns."""
        start = STARTS[row[TAG]].values
        if start + self._layout.values.size != len(row):
            raise damaged("a whole row", f"{len(row)} bytes with flags {row[TAG]:#x}")
        return self._unpack(row, start)

    def _row(self, row: bytes) -> Sequence[Any]:
        """The fields of any row, with None for null and the bytes of variable columns."""
        if self._variable:
            start = STARTS[row[TAG]].values
            try:
                fields = list(self._unpack(row, start))
            except struct.error as error:
                raise damaged("a whole row", str(error)) from error
            end = start + self._layout.values.size
            for _, position in self._variable:
                start, end = end, end + fields[position]
                fields[position] = row[start:end]
            if end != len(row):
                raise damaged(f"a row of view {self._name} of {end} bytes", f"{len(row)} bytes")
        else:
            fields = list(self._fields(row))
        if self.has_nulls:
            nulls = fields[0]
            for column in self._columns:
                if nulls[column.index >> 3] & (1 << (column.index & 7)):
                    fields[column.position] = None
        return fields

    def read_batch(self, rows: RowBatch) -> Decoded:
        """Unpack many rows without variable columns to arrays, without a step for each row.

        Raises:
            DamagedError: A row is cut or too long, or a value is not of its type.
        """
        dtype = np.dtype(self._layout.values_dtype)
        starts = rows.starts + _VALUES_AT[rows.flags]
        if (starts + dtype.itemsize != rows.ends).any():
            sizes = sorted(set((rows.ends - rows.starts).tolist()))
            raise damaged(f"whole rows of view {self._name}", f"rows of {sizes} bytes")
        fields = rows.fields(dtype, starts)
        values: dict[str, Any] = {}
        for column in self._columns:
            array: Any = fields[f"c{column.index}"].astype(_READ_AS[column.dtype])
            if self.has_nulls:
                bits = fields["nulls"][:, column.index >> 3] & (1 << (column.index & 7))
                if bits.any():
                    array = array.tolist()
                    for row in bits.nonzero()[0].tolist():
                        array[row] = None
            if column.convert is not None:
                listed = array if isinstance(array, list) else array.tolist()
                array = column.converted(listed, self._null)
            values[column.name] = array
        return Decoded(*_batch_times(rows), values)


def _batch_times(rows: RowBatch) -> tuple[Any, Any, Any]:
    """Event, created and write times; created as a list if a row has none."""
    event_us = rows.numbers(STARTS[0].event)  # the same for all rows that are not LONG
    write_us = event_us + (rows.numbers(_WRITE_AT[rows.flags]) & _WRITE_MASKS[rows.flags])
    created_us: Any = event_us
    if (rows.flags & CREATED).any():
        created_us = event_us + (rows.numbers(STARTS[0].created) & _CREATED_MASKS[rows.flags])
    has_none = rows.flags & NO_CREATED
    if has_none.any():
        created_us = [
            None if none else us
            for us, none in zip(created_us.tolist(), has_none.tolist(), strict=True)
        ]
    return event_us, created_us, write_us
