"""Rows of one definition of a view, packed and unpacked as their layout says."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.row_layout import (
    FAR_WRITE,
    FLAGS_END,
    HEAD,
    INT32,
    LONG,
    LONG_INTEGERS,
    NULLS,
    SHORT_MAX,
    TAG,
    VALUES,
    VIEW_TAG,
    WRITE,
    Layout,
    view_tag,
)
from tallystick.online_store.row_times import (
    VALUES_AT,
    head_bytes,
    time_fields,
    time_flags,
    times_of,
    times_of_row,
)
from tallystick.online_store.value_codec import damaged, is_null, value_codec

if TYPE_CHECKING:
    from feast.protos.feast.types.Value_pb2 import Value

_NUMPY_FROM: Final = 16
"""Rows from which a NumPy view is quicker than one struct per row."""


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class Decoded:
    """Rows of one definition, column by column; all columns have the same length.

    A column is a list; of many rows it may be an array of int64, float64 or bool without null.

    Attributes:
        event_us: Event time in microseconds.
        created_us: Created time, None where the row has none.
        write_us: Time at which the row was written online.
        values: Column → values; None for null.
    """

    event_us: Any
    created_us: Any
    write_us: Any
    values: dict[str, Any]


class RowCodec:
    """Packs and unpacks the rows of one definition of a view.

    Args:
        spec: The definition.
        name: The view's name online, where it is not that of the definition.

    Attributes:
        spec: The definition.
        name: The view's name online.
        view: Tag of the view.
        tag: The first bytes of its rows: tags of view and definition.
        cells: How each column is stored, in the view's order.
        variable: Places of the columns of variable width.
        integers: Places of the INT64 columns.
        null_bytes: Number of bytes of the nulls, where there are any.
    """

    def __init__(self, spec: ViewSpec, name: str | None = None) -> None:
        self.spec = spec
        self.name = spec.name if name is None else name
        self.view = view_tag(self.name, spec.key_names)
        self.tag = self.view + bytes.fromhex(spec.definition_hash)[: TAG - VIEW_TAG]
        self.cells = tuple(value_codec(column.dtype) for column in spec.columns)
        self.variable = [place for place, cell in enumerate(self.cells) if cell.code is None]
        self.integers = [
            place for place, cell in enumerate(self.cells) if cell.dtype in {"INT32", "INT64"}
        ]
        self.null_bytes = (len(spec.columns) + 7) // 8
        self._places = {column.name: place for place, column in enumerate(spec.columns)}
        self._layouts: dict[int, Layout] = {}

    def layout(self, flags: int) -> Layout:
        """The layout of rows with these flags.

        Raises:
            DamagedError: There are no such flags.
        """
        found = self._layouts.get(flags)
        if found is None:
            if flags >= FLAGS_END or flags & WRITE > FAR_WRITE:
                raise damaged("flags of a row", f"{flags:#x}")
            found = self._layouts[flags] = Layout(self.cells, flags)
        return found

    def place(self, name: str) -> int:
        """The place of a column in the view's order."""
        return self._places[name]

    def needs_feast(self, names: Sequence[str]) -> bool:
        """Whether these columns cannot be decoded without importing Feast."""
        return any(self.cells[self._places[name]].needs_feast for name in names)

    def encode(
        self, values: Mapping[str, Any], *, event_us: int, created_us: int | None, write_us: int
    ) -> bytes:
        """Pack a row of Python values; a column that is not given is null.

        Raises:
            DataError: A value does not fit its type; every such column is listed.
        """
        stored = self._stored(values, [cell.from_python for cell in self.cells])
        return self._packed(stored, event_us, created_us, write_us)

    def encode_protos(
        self,
        values: Mapping[str, Value],
        *,
        event_us: int,
        created_us: int | None,
        write_us: int,
    ) -> bytes:
        """Pack a row of Feast's values; a column that is not given is null.

        Raises:
            DataError: A value does not fit its type; every such column is listed.
        """
        present = {name: value for name, value in values.items() if not is_null(value)}
        stored = self._stored(present, [cell.from_proto for cell in self.cells])
        return self._packed(stored, event_us, created_us, write_us)

    def _stored(
        self, values: Mapping[str, Any], converters: Sequence[Callable[[Any], Any]]
    ) -> list[Any]:
        """Stored form of each column, None for null."""
        stored: list[Any] = []
        problems = []
        for column, cell, convert in zip(self.spec.columns, self.cells, converters, strict=True):
            value = values.get(column.name)
            if value is None:
                stored.append(None)
                continue
            try:
                content = convert(value)
                if cell.code is not None:
                    struct.pack("<" + cell.code, content)
                stored.append(content)
            except (TypeError, ValueError, OverflowError, struct.error):
                problems.append(Problem(f"column {column.name}", column.dtype, repr(value)))
        if problems:
            raise DataError(f"A row of view {self.spec.name} cannot be stored.", problems)
        return stored

    def _packed(
        self, stored: Sequence[Any], event_us: int, created_us: int | None, write_us: int
    ) -> bytes:
        contents = [stored[place] or b"" for place in self.variable]
        flags = time_flags(event_us, created_us, write_us)
        if any(stored[place] is not None and stored[place] not in INT32 for place in self.integers):
            flags |= LONG_INTEGERS
        if None in stored:
            flags |= NULLS
        layout = self.layout(flags)
        size = layout.struct.size - head_bytes(layout.flags) + sum(map(len, contents))
        if size > SHORT_MAX:
            layout = self.layout(flags | LONG)
            size = layout.struct.size - head_bytes(layout.flags) + sum(map(len, contents))
        nulls = bytearray(self.null_bytes)
        for place, value in enumerate(stored):
            if value is None:
                nulls[place >> 3] |= 1 << (place & 7)
        fixed = [
            0 if value is None else value
            for value, cell in zip(stored, self.cells, strict=True)
            if cell.code is not None
        ]
        whole = layout.struct.pack(
            self.tag + bytes((layout.flags,)),
            size,
            *time_fields(layout.flags, event_us, created_us, write_us),
            *([bytes(nulls)] if flags & NULLS else []),
            *fixed,
            *map(len, contents),
        )
        return b"".join((whole, *contents))

    def decode(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Python values.

        Times are aware UTC datetimes, other types as Feast gives them.

        Args:
            rows: Packed rows, whose values lie alike.
            names: Columns wanted; default all.

        Raises:
            DamagedError: A row is cut, too long, or of another definition, or lies otherwise.
        """
        return self._decoded(rows, names, protos=False)

    def decode_protos(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Feast's values; a null is an empty ``Value``.

        Raises:
            DamagedError: A row is cut, too long, or of another definition, or lies otherwise.
        """
        return self._decoded(rows, names, protos=True)

    def _decoded(
        self, rows: Sequence[bytes], names: Sequence[str] | None, *, protos: bool
    ) -> Decoded:
        wanted = self.spec.column_names if names is None else names
        if not rows:
            return Decoded([], [], [], {name: [] for name in wanted})
        kinds = {row[:TAG] + bytes((row[TAG] & VALUES,)) for row in rows if len(row) > TAG}
        if len(kinds) != 1 or min(map(len, rows)) <= TAG or not rows[0].startswith(self.tag):
            raise damaged(
                f"rows of view {self.name} and definition {self.spec.definition_hash}, all with "
                "values of the same widths",
                f"bytes that start with {sorted({row[:HEAD].hex() for row in rows})}",
            )
        return self.reader(rows[0][TAG] & VALUES, wanted, protos=protos).read(rows)

    def reader(self, flags: int, names: Sequence[str], *, protos: bool) -> RowReader:
        """What reads rows of this definition; to be kept, as making it takes longer than reading.

        Args:
            flags: How their values lie: the part :data:`tallystick.online_store.row_layout.VALUES`.
            names: Columns wanted.
            protos: Whether values are given as Feast's ``Value``.
        """
        return RowReader(self, self.layout(flags & VALUES), names, protos=protos)


class RowReader:
    """Reads rows of one definition whose values lie alike; their times may lie differently.

    Args:
        codec: The definition.
        layout: Of any of the rows.
        names: Columns wanted.
        protos: Whether values are given as Feast's ``Value``.

    Attributes:
        has_nulls: Whether some value of each row is null, though maybe none that is wanted.
    """

    def __init__(
        self, codec: RowCodec, layout: Layout, names: Sequence[str], *, protos: bool
    ) -> None:
        self.has_nulls = bool(layout.flags & NULLS)
        self._name = codec.name
        self._layout = layout
        self._unpack = layout.values.unpack_from
        self._places = layout.places
        self._fixed = not codec.variable
        self._variable = {place: layout.places[f"c{place}"] for place in codec.variable}
        self._protos = protos
        self._columns = [
            (name, place, layout.places[f"c{place}"])
            for name, place in ((name, codec.place(name)) for name in names)
        ]
        cells = [codec.cells[place] for _, place, _ in self._columns]
        converters = [cell.to_proto if protos else cell.to_python for cell in cells]
        self._conversions = [
            (name, cell.dtype, convert)
            for name, cell, convert in zip(names, cells, converters, strict=True)
            if convert is not None
        ]
        self._is_plain = self._fixed and not self.has_nulls and not self._conversions

    def read(self, rows: Sequence[bytes]) -> Decoded:
        """Unpack rows, all of which start with this reader's head.

        Raises:
            DamagedError: A row is cut or too long, or a value is not of its type.
        """
        if self._is_plain and len(rows) == 1:
            return self._read_one(rows[0])
        starts = [VALUES_AT[row[TAG]] for row in rows]
        fields, ends = self._fields(rows, starts)
        contents = self._contents(rows, fields, ends)
        times = times_of(rows)
        values: dict[str, list[Any]] = {
            name: contents[place] if place in contents else list(fields[field])
            for name, place, field in self._columns
        }
        if self.has_nulls:
            nulls = fields[self._places["nulls"]]
            for name, place, _ in self._columns:
                byte, bit = place >> 3, 1 << (place & 7)
                values[name] = [
                    None if null[byte] & bit else value
                    for null, value in zip(nulls, values[name], strict=True)
                ]
        for name, dtype, convert in self._conversions:
            values[name] = self._converted(values[name], convert, dtype)
        return Decoded(*times, values)

    def _read_one(self, row: bytes) -> Decoded:
        """The same for one row, which is what most requests ask for."""
        start = VALUES_AT[row[TAG]]
        if not start or start + self._layout.values.size != len(row):
            raise damaged("a whole row", f"{len(row)} bytes with flags {row[TAG]:#x}")
        fields = self._unpack(row, start)
        event_us, created_us, write_us = times_of_row(row)
        values = {name: [fields[field]] for name, _, field in self._columns}
        return Decoded([event_us], [created_us], [write_us], values)

    def _fields(
        self, rows: Sequence[bytes], starts: Sequence[int]
    ) -> tuple[Sequence[Sequence[Any]], list[int]]:
        """The fields of all rows' values, one sequence for each, and where they end."""
        if 0 in starts:
            raise damaged("flags of a row", f"{sorted({row[TAG] for row in rows})}")
        layout = self._layout
        ends = [start + layout.values.size for start in starts]
        is_numeric = self._fixed and layout.values.size > 0
        if is_numeric and len(rows) >= _NUMPY_FROM and ends == list(map(len, rows)):
            import numpy as np

            blocks = b"".join([row[start:] for row, start in zip(rows, starts, strict=True)])
            table = np.frombuffer(blocks, dtype=layout.values_dtype)
            return [table[name].tolist() for name in layout.places], ends
        try:
            return list(zip(*map(self._unpack, rows, starts), strict=True)), ends
        except struct.error as error:
            raise damaged("a whole row", str(error)) from error

    def _contents(
        self, rows: Sequence[bytes], fields: Sequence[Sequence[int]], ends: list[int]
    ) -> dict[int, list[Any]]:
        """Bytes of each variable column, which together end where the row ends."""
        contents: dict[int, list[Any]] = {}
        for place, field in self._variable.items():
            starts = ends
            ends = [start + length for start, length in zip(starts, fields[field], strict=True)]
            contents[place] = [
                row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)
            ]
        if ends != list(map(len, rows)):
            raise damaged(
                f"rows of view {self._name} of {ends} bytes", f"{list(map(len, rows))} bytes"
            )
        return contents

    def _converted(
        self, column: Sequence[Any], convert: Callable[[Any], Any], dtype: str
    ) -> list[Any]:
        try:
            if self._protos:
                from feast.protos.feast.types.Value_pb2 import Value

                return [Value() if value is None else convert(value) for value in column]
            return [None if value is None else convert(value) for value in column]
        except (ValueError, OverflowError) as error:
            raise damaged(f"values of type {dtype}", str(error)) from error
