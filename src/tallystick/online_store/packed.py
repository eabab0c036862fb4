"""Rows of one definition of a view, packed and unpacked as their layout says."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import add
from typing import TYPE_CHECKING, Any, Final

from tallystick.errors import DataError, Problem
from tallystick.online_store.cells import cell_type, damaged, is_null
from tallystick.online_store.layout import (
    CREATED,
    FAR_CREATED,
    FAR_WRITE,
    FLAGS_END,
    HEAD,
    INT32,
    LATER,
    LATER_WRITE,
    LONG,
    LONG_INTEGERS,
    NEAR,
    NEAR_CREATED,
    NEAR_WRITE,
    NO_CREATED,
    NULLS,
    SAME_CREATED,
    SHORT_MAX,
    TAG,
    VIEW_TAG,
    WRITE,
    Layout,
    view_tag,
)
from tallystick.view import ViewSpec

if TYPE_CHECKING:
    from feast.protos.feast.types.Value_pb2 import Value

_LOW: Final = (1 << 32) - 1
_LENGTH: Final = 1
_EVENT: Final = 2
"""Places of these fields in every layout."""
_NUMPY_FROM: Final = 16
"""Rows from which a NumPy view is quicker than one struct per row."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Rows of one definition, column by column; all lists have the same length.

    Attributes:
        event_us: Event time in microseconds.
        created_us: Created time, None where the row has none.
        write_us: Time at which the row was written online.
        values: Column → values; None for null.
    """

    event_us: list[int]
    created_us: list[int | None]
    write_us: list[int]
    values: dict[str, list[Any]]


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
        self.cells = tuple(cell_type(column.dtype) for column in spec.columns)
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
        flags = _time_flags(event_us, created_us, write_us)
        if any(stored[place] is not None and stored[place] not in INT32 for place in self.integers):
            flags |= LONG_INTEGERS
        if None in stored:
            flags |= NULLS
        layout = self.layout(flags)
        size = layout.struct.size - layout.head + sum(map(len, contents))
        if size > SHORT_MAX:
            layout = self.layout(flags | LONG)
            size = layout.struct.size - layout.head + sum(map(len, contents))
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
            *_times(layout.flags, event_us, created_us, write_us),
            *([bytes(nulls)] if flags & NULLS else []),
            *fixed,
            *map(len, contents),
        )
        return b"".join((whole, *contents))

    def decode(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Python values.

        Times are aware UTC datetimes, other types as Feast gives them.

        Args:
            rows: Packed rows, all with the same flags.
            names: Columns wanted; default all.

        Raises:
            DamagedError: A row is cut, too long, or of another definition or other flags.
        """
        return self._decoded(rows, names, protos=False)

    def decode_protos(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Feast's values; a null is an empty ``Value``.

        Raises:
            DamagedError: A row is cut, too long, or of another definition or other flags.
        """
        return self._decoded(rows, names, protos=True)

    def _decoded(
        self, rows: Sequence[bytes], names: Sequence[str] | None, *, protos: bool
    ) -> Decoded:
        wanted = self.spec.column_names if names is None else names
        if not rows:
            return Decoded([], [], [], {name: [] for name in wanted})
        head = rows[0][:HEAD]
        if not head.startswith(self.tag) or any(row[:HEAD] != head for row in rows):
            raise damaged(
                f"rows of view {self.name} and definition {self.spec.definition_hash}, all with "
                "the same flags",
                f"bytes that start with {sorted({row[:HEAD].hex() for row in rows})}",
            )
        return self.reader(head, wanted, protos=protos).read(rows)

    def reader(self, head: bytes, names: Sequence[str], *, protos: bool) -> RowReader:
        """What reads rows with this head; to be kept, since making it takes longer than reading.

        Args:
            head: First bytes of the rows: this definition's tag, and flags.
            names: Columns wanted.
            protos: Whether values are given as Feast's ``Value``.

        Raises:
            DamagedError: The head is cut, or there are no such flags.
        """
        if len(head) < HEAD:
            raise damaged("a whole row", f"{head!r}")
        return RowReader(self, self.layout(head[TAG]), names, protos=protos)


class RowReader:
    """Reads rows of one definition with the same flags.

    Args:
        codec: The definition.
        layout: Of rows with these flags.
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
        self._unpack = layout.struct.unpack_from
        self._places = layout.places
        self._fixed = not codec.variable
        self._variable = {place: layout.places[f"c{place}"] for place in codec.variable}
        self._protos = protos
        self._columns = [(name, codec.place(name)) for name in names]
        cells = [codec.cells[place] for _, place in self._columns]
        converters = [cell.to_proto if protos else cell.to_python for cell in cells]
        self._conversions = [
            (name, cell.dtype, convert)
            for name, cell, convert in zip(names, cells, converters, strict=True)
            if convert is not None
        ]

    def read(self, rows: Sequence[bytes]) -> Decoded:
        """Unpack rows, all of which start with this reader's head.

        Raises:
            DamagedError: A row is cut or too long, or a value is not of its type.
        """
        fields = self._fields(rows)
        contents = {} if self._fixed else self._contents(rows, fields)
        places = self._places
        values: dict[str, list[Any]] = {
            name: contents[place] if place in contents else list(fields[places[f"c{place}"]])
            for name, place in self._columns
        }
        if self.has_nulls:
            nulls = fields[places["nulls"]]
            for name, place in self._columns:
                byte, bit = place >> 3, 1 << (place & 7)
                values[name] = [
                    None if null[byte] & bit else value
                    for null, value in zip(nulls, values[name], strict=True)
                ]
        for name, dtype, convert in self._conversions:
            values[name] = self._converted(values[name], convert, dtype)
        event_us = list(fields[_EVENT])
        return Decoded(
            event_us, self._created(fields, event_us), self._written(fields, event_us), values
        )

    def _fields(self, rows: Sequence[bytes]) -> Sequence[Sequence[Any]]:
        """The fields of all rows, one sequence for each; the rows are as long as they say."""
        layout, size = self._layout, self._layout.struct.size
        if not self._fixed or len(rows) < _NUMPY_FROM:
            try:
                columns: Sequence[Sequence[Any]] = list(zip(*map(self._unpack, rows), strict=True))
            except struct.error as error:
                raise damaged("a whole row", str(error)) from error
        else:
            import numpy as np

            whole = b"".join(rows)
            if len(whole) != size * len(rows):
                raise damaged(f"rows of {size} bytes", f"{sorted(set(map(len, rows)))} bytes")
            table = np.frombuffer(whole, dtype=layout.dtype)
            columns = [table[name].tolist() for name in layout.places]
        lengths = list(map(len, rows))
        if [layout.head + length for length in columns[_LENGTH]] != lengths or (
            self._fixed and lengths[0] != size
        ):
            raise damaged(f"rows of view {self._name} as long as they say", f"{lengths} bytes")
        return columns

    def _contents(
        self, rows: Sequence[bytes], columns: Sequence[Sequence[int]]
    ) -> dict[int, list[Any]]:
        """Bytes of each variable column, which together end where the row ends."""
        ends: list[int] = list(repeat(self._layout.struct.size, len(rows)))
        contents: dict[int, list[Any]] = {}
        for place, field in self._variable.items():
            starts = ends
            ends = [start + length for start, length in zip(starts, columns[field], strict=True)]
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

    def _created(
        self, columns: Sequence[Sequence[int]], event_us: Sequence[int]
    ) -> list[int | None]:
        kind = self._layout.flags & CREATED
        if kind == NO_CREATED:
            return [None] * len(event_us)
        if kind == SAME_CREATED:
            return list(event_us)
        created = columns[self._places["created"]]
        return list(created) if kind == FAR_CREATED else list(map(add, event_us, created))

    def _written(self, columns: Sequence[Sequence[int]], event_us: Sequence[int]) -> list[int]:
        kind = self._layout.flags & WRITE
        if kind == FAR_WRITE:
            return list(columns[self._places["write"]])
        written = list(map(add, event_us, columns[self._places["write_low"]]))
        if kind == LATER_WRITE:
            high = columns[self._places["write_high"]]
            written = [low + (part << 32) for low, part in zip(written, high, strict=True)]
        return written


def _time_flags(event_us: int, created_us: int | None, write_us: int) -> int:
    if created_us is None:
        flags = NO_CREATED
    elif created_us == event_us:
        flags = SAME_CREATED
    else:
        flags = NEAR_CREATED if 0 < created_us - event_us < NEAR else FAR_CREATED
    after_us = write_us - event_us
    if 0 <= after_us < NEAR:
        return flags | NEAR_WRITE
    return flags | (LATER_WRITE if 0 <= after_us < LATER else FAR_WRITE)


def _times(flags: int, event_us: int, created_us: int | None, write_us: int) -> list[int]:
    times = [event_us]
    kind = flags & CREATED
    if kind == FAR_CREATED and created_us is not None:
        times.append(created_us)
    elif kind == NEAR_CREATED and created_us is not None:
        times.append(created_us - event_us)
    if flags & WRITE == FAR_WRITE:
        return [*times, write_us]
    after_us = write_us - event_us
    if flags & WRITE == NEAR_WRITE:
        return [*times, after_us]
    return [*times, after_us & _LOW, after_us >> 32]
