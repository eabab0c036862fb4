"""One row of one view as bytes, and back.

All numbers are little-endian::

    version     1   of this layout
    definition  8   the view's definition hash: the row is read by it, never by the view of today
    flags       1   bit 0: the row has a created time
    event       8   microseconds since 1970; the fold compares it, then created
    created     8   likewise; the event time again where the row has none
    write       8   when the row was written
    nulls       n   one bit per column of the view, in its order
    fixed           INT32, INT64, FLOAT, DOUBLE, BOOL, UNIX_TIMESTAMP (microseconds); 0 for null
    lengths     4   of each variable column
    variable        STRING as UTF-8, BYTES as they are, all else as Feast's serialized ``Value``

Everything but the last part is one :class:`struct.Struct`, so that a row is read by one call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import repeat
from operator import index
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import from_us, to_us
from tallystick.errors import DamagedError, DataError, Problem
from tallystick.view import ViewSpec

if TYPE_CHECKING:
    from feast.protos.feast.types.Value_pb2 import Value

VERSION: Final = 1
HAS_CREATED: Final = 1
"""Flag of a row whose source has a created time."""

FIXED: Final = {
    "INT32": "i",
    "INT64": "q",
    "FLOAT": "f",
    "DOUBLE": "d",
    "BOOL": "?",
    "UNIX_TIMESTAMP": "q",
}
"""Feast value type → its format in the struct."""

PROTO_FIELD: Final = {
    "INT32": "int32_val",
    "INT64": "int64_val",
    "FLOAT": "float_val",
    "DOUBLE": "double_val",
    "BOOL": "bool_val",
    "UNIX_TIMESTAMP": "unix_timestamp_val",
    "STRING": "string_val",
    "BYTES": "bytes_val",
}
"""Feast value type → the field of a ``Value`` that carries it; of types that are stored as such."""

_HEADER: Final = "<B8sBqqq"
_HEADER_FIELDS: Final = 7
_PROTO_NULL_TIME: Final = -(2**63)
_SECOND_US: Final = 1_000_000
_ORDER: Final = struct.Struct("<qq")
_ORDER_AT: Final = 10


HEAD_BYTES: Final = 9
"""Bytes at a row's start that say how to read it: version and definition."""


def head_of(definition: str) -> bytes:
    """The first bytes of every row that is written under the definition of that hash."""
    return bytes((VERSION,)) + bytes.fromhex(definition)


def definition_of(row: bytes) -> str:
    """Hash of the definition under which a row was written, from its first bytes.

    Raises:
        DamagedError: The bytes are no row, or of another version.
    """
    if len(row) < HEAD_BYTES or row[0] != VERSION:
        raise _damaged(f"a row of version {VERSION}", f"bytes that start with {row[:1]!r}")
    return row[1:HEAD_BYTES].hex()


def order_of(row: bytes) -> tuple[int, int]:
    """What the fold compares: event time and created time, in microseconds."""
    event_us, created_us = _ORDER.unpack_from(row, _ORDER_AT)
    return event_us, created_us


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

    Attributes:
        spec: The definition.
        definition: Its hash, eight bytes.
        fixed: Columns of fixed width.
        variable: Columns of variable width.
        null_bits: Column → its byte among the nulls, and its bit there.
        null_bytes: Number of bytes of the nulls.
        layout: Everything but the variable columns' bytes.
    """

    def __init__(self, spec: ViewSpec) -> None:
        self.spec = spec
        self.definition = bytes.fromhex(spec.definition_hash)
        self.fixed = tuple(column for column in spec.columns if column.dtype in FIXED)
        self.variable = tuple(column for column in spec.columns if column.dtype not in FIXED)
        self.null_bits = {
            column.name: (place >> 3, 1 << (place & 7)) for place, column in enumerate(spec.columns)
        }
        self.null_bytes = (len(spec.columns) + 7) // 8
        formats = "".join(FIXED[column.dtype] for column in self.fixed)
        self.layout = struct.Struct(
            f"{_HEADER}{self.null_bytes}s{formats}{'I' * len(self.variable)}"
        )
        self._place = {
            column.name: _HEADER_FIELDS + place
            for place, column in enumerate((*self.fixed, *self.variable))
        }
        self._dtypes = {column.name: column.dtype for column in spec.columns}

    def encode(
        self, values: Mapping[str, Any], *, event_us: int, created_us: int | None, write_us: int
    ) -> bytes:
        """Pack a row of Python values; a column that is not given is null.

        Raises:
            DataError: A value does not fit its type; every such column is listed.
        """
        head = self._head(event_us=event_us, created_us=created_us, write_us=write_us)
        return self._pack(values, _FROM_PYTHON, _python_to_proto, head)

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
        present = {
            name: value
            for name, value in values.items()
            if name in self._dtypes and not _is_null(value, self._dtypes[name])
        }
        head = self._head(event_us=event_us, created_us=created_us, write_us=write_us)
        return self._pack(present, _FROM_PROTO, _serialized, head)

    def _head(self, *, event_us: int, created_us: int | None, write_us: int) -> tuple[Any, ...]:
        """The header's fields before the nulls."""
        return (
            VERSION,
            self.definition,
            0 if created_us is None else HAS_CREATED,
            event_us,
            event_us if created_us is None else created_us,
            write_us,
        )

    def _pack(
        self,
        values: Mapping[str, Any],
        converters: Mapping[str, Callable[[Any], Any]],
        otherwise: Callable[[Any, str], bytes],
        head: tuple[Any, ...],
    ) -> bytes:
        nulls = bytearray(self.null_bytes)
        raw: dict[str, Any] = {}
        problems = []
        for column in self.spec.columns:
            name, dtype = column.name, column.dtype
            value = values.get(name)
            if value is None:
                byte, bit = self.null_bits[name]
                nulls[byte] |= bit
                raw[name] = 0 if dtype in FIXED else b""
                continue
            convert = converters.get(dtype)
            try:
                stored = otherwise(value, dtype) if convert is None else convert(value)
                if dtype in FIXED:
                    struct.pack("<" + FIXED[dtype], stored)
                raw[name] = stored
            except (TypeError, ValueError, OverflowError, struct.error):
                problems.append(Problem(f"column {name}", dtype, repr(value)))
        if problems:
            raise DataError(f"A row of view {self.spec.name} cannot be stored.", problems)
        tails = [raw[column.name] for column in self.variable]
        whole = self.layout.pack(
            *head,
            bytes(nulls),
            *(raw[column.name] for column in self.fixed),
            *map(len, tails),
        )
        return b"".join((whole, *tails))

    def decode(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Python values.

        Times are aware UTC datetimes, other types as Feast gives them.

        Args:
            rows: Packed rows.
            names: Columns wanted; default all.

        Raises:
            DamagedError: A row is cut, too long, or of another definition.
        """
        return self._unpack(rows, names, _TO_PYTHON, _proto_to_python)

    def decode_protos(self, rows: Sequence[bytes], names: Sequence[str] | None = None) -> Decoded:
        """Unpack rows of this definition to Feast's values; a null is an empty ``Value``.

        Raises:
            DamagedError: A row is cut, too long, or of another definition.
        """
        from feast.protos.feast.types.Value_pb2 import Value

        makers: dict[str, Callable[[Any], Any]] = {
            dtype: _proto_maker(Value, dtype) for dtype in PROTO_FIELD
        }
        decoded = self._unpack(rows, names, makers, _parsed)
        for values in decoded.values.values():
            values[:] = [Value() if value is None else value for value in values]
        return decoded

    def _unpack(
        self,
        rows: Sequence[bytes],
        names: Sequence[str] | None,
        converters: Mapping[str, Callable[[Any], Any]],
        otherwise: Callable[[Any, str], Any],
    ) -> Decoded:
        wanted = self.spec.column_names if names is None else names
        if not rows:
            return Decoded([], [], [], {name: [] for name in wanted})
        try:
            fields = list(zip(*map(self.layout.unpack_from, rows), strict=True))
        except struct.error as error:
            raise _damaged(f"rows of view {self.spec.name}", str(error)) from error
        tails = self._tails(rows, fields, set(wanted))
        _, _, flags, event_us, created_us, write_us, nulls = fields[:_HEADER_FIELDS]
        some_null = any(map(any, nulls))
        values = {}
        for name in wanted:
            dtype = self._dtypes[name]
            column: Sequence[Any] = tails[name] if name in tails else fields[self._place[name]]
            byte, bit = self.null_bits[name]
            if some_null:
                column = [
                    None if null[byte] & bit else value
                    for null, value in zip(nulls, column, strict=True)
                ]
            values[name] = _converted(column, dtype, converters, otherwise)
        return Decoded(
            list(event_us),
            [
                created if flag & HAS_CREATED else None
                for flag, created in zip(flags, created_us, strict=True)
            ],
            list(write_us),
            values,
        )

    def _tails(
        self, rows: Sequence[bytes], fields: Sequence[Sequence[Any]], wanted: set[str]
    ) -> dict[str, list[bytes]]:
        """Check header and length of every row; cut out the variable columns that are wanted."""
        if set(fields[0]) != {VERSION} or set(fields[1]) != {self.definition}:
            raise _damaged(
                f"rows of version {VERSION} and definition {self.definition.hex()}",
                f"versions {sorted(set(fields[0]))}, "
                f"definitions {sorted(found.hex() for found in set(fields[1]))}",
            )
        ends: list[int] = list(repeat(self.layout.size, len(rows)))
        tails = {}
        for column in self.variable:
            lengths = fields[self._place[column.name]]
            starts = ends
            ends = [start + length for start, length in zip(starts, lengths, strict=True)]
            if column.name in wanted:
                tails[column.name] = [
                    row[start:end] for row, start, end in zip(rows, starts, ends, strict=True)
                ]
        if ends != list(map(len, rows)):
            raise _damaged(
                f"rows of view {self.spec.name} of {ends} bytes", f"{list(map(len, rows))} bytes"
            )
        return tails


def _converted(
    column: Sequence[Any],
    dtype: str,
    converters: Mapping[str, Callable[[Any], Any]],
    otherwise: Callable[[Any, str], Any],
) -> list[Any]:
    if dtype in converters:
        convert = converters[dtype]
    elif dtype in FIXED:
        return list(column)
    else:

        def convert(value: Any) -> Any:
            return otherwise(value, dtype)

    try:
        return [None if value is None else convert(value) for value in column]
    except (ValueError, OverflowError) as error:
        raise _damaged(f"values of type {dtype}", str(error)) from error


def _damaged(expected: str, got: str) -> DamagedError:
    return DamagedError(
        "A row in Redis cannot be read.",
        [Problem("row", expected, got)],
        hint="Delete the rows that another program wrote, and materialize the view again.",
    )


def _boolean(value: Any) -> bool:
    if value in (0, 1):
        return bool(value)
    raise TypeError(type(value).__name__)


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(type(value).__name__)
    return float(value)


def _moment(value: Any) -> int:
    if not isinstance(value, datetime):
        raise TypeError(type(value).__name__)
    return to_us(value)


def _text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value.encode()


def _binary(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(type(value).__name__)
    return bytes(value)


_FROM_PYTHON: Final[dict[str, Callable[[Any], Any]]] = {
    "INT32": index,
    "INT64": index,
    "FLOAT": _number,
    "DOUBLE": _number,
    "BOOL": _boolean,
    "UNIX_TIMESTAMP": _moment,
    "STRING": _text,
    "BYTES": _binary,
}
_TO_PYTHON: Final[dict[str, Callable[[Any], Any]]] = {
    "UNIX_TIMESTAMP": from_us,
    "STRING": bytes.decode,
    "BYTES": bytes,
}


def _field_reader(dtype: str) -> Callable[[Any], Any]:
    field = PROTO_FIELD[dtype]

    def read(value: Any) -> Any:
        if value.WhichOneof("val") != field:
            raise TypeError(field)
        content = getattr(value, field)
        if dtype == "UNIX_TIMESTAMP":
            return content * _SECOND_US
        return content.encode() if dtype == "STRING" else content

    return read


def _proto_maker(value_class: Any, dtype: str) -> Callable[[Any], Any]:
    field = PROTO_FIELD[dtype]

    def make(content: Any) -> Any:
        if dtype == "UNIX_TIMESTAMP":
            content //= _SECOND_US
        elif dtype == "STRING":
            content = content.decode()
        return value_class(**{field: content})

    return make


_FROM_PROTO: Final = {dtype: _field_reader(dtype) for dtype in PROTO_FIELD}


def _is_null(value: Any, dtype: str) -> bool:
    field = value.WhichOneof("val")
    if field is None or field == "null_val":
        return True
    return bool(dtype == "UNIX_TIMESTAMP" and value.unix_timestamp_val == _PROTO_NULL_TIME)


def _serialized(value: Any, dtype: str) -> bytes:
    del dtype
    return bytes(value.SerializeToString(deterministic=True))


def _parsed(content: bytes, dtype: str) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError

    value = Value()
    try:
        value.ParseFromString(content)
    except DecodeError as error:
        raise _damaged(f"a serialized {dtype}", str(error)) from error
    return value


def _python_to_proto(value: Any, dtype: str) -> bytes:
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    return _serialized(python_values_to_proto_values([value], ValueType[dtype])[0], dtype)


def _proto_to_python(content: bytes, dtype: str) -> Any:
    from feast.type_map import feast_value_type_to_python_type
    from feast.value_type import ValueType

    return feast_value_type_to_python_type(_parsed(content, dtype), ValueType[dtype])
