"""Single values of each Feast type: as Python, as Feast and as a row has them.

A *stored* value is what a row's struct takes: a number for a type of fixed width, bytes for all
others. Neither half of a conversion ever changes a value, but for a DOUBLE that is rounded where a
FLOAT is declared: what does not fit is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from operator import index
from typing import Any, Final

from tallystick.clock import SECOND_US, from_us, to_us
from tallystick.errors import DamagedError, Problem

FIXED: Final = {
    "INT32": "i",
    "INT64": "q",
    "FLOAT": "f",
    "DOUBLE": "d",
    "BOOL": "?",
    "UNIX_TIMESTAMP": "q",
}
"""Feast value type → its format in a struct, for the types of fixed width."""

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
_ARRAY_OF: Final = {
    f"{scalar}_LIST": scalar for scalar in ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOL")
}
"""Lists that are stored as the numbers themselves, one after the other."""

FIRST_US: Final = to_us(datetime.min.replace(tzinfo=UTC))
LAST_US: Final = to_us(datetime.max.replace(tzinfo=UTC))
"""The first and last time that Python has, in microseconds."""
_PROTO_NULL_TIME: Final = -(2**63)


@dataclass(frozen=True, slots=True)
class CellType:
    """How values of one Feast type go into a row and come out.

    Attributes:
        dtype: Feast value type.
        code: Format in a struct, None for bytes of any length.
        from_python: Python value → stored; TypeError, ValueError or OverflowError if it does not
            fit.
        to_python: Stored → Python value; None where they are the same.
        from_proto: Feast's ``Value`` → stored; errors likewise.
        to_proto: Stored → Feast's ``Value``.
        needs_feast: Whether :attr:`to_python` imports Feast.
    """

    dtype: str
    code: str | None
    from_python: Callable[[Any], Any]
    to_python: Callable[[Any], Any] | None
    from_proto: Callable[[Any], Any]
    to_proto: Callable[[Any], Any]
    needs_feast: bool = False


@cache
def cell_type(dtype: str) -> CellType:
    """The conversions of a Feast value type; any that is not known here is held as Feast has it."""
    if dtype in _ARRAY_OF:
        return _array_type(dtype)
    if dtype not in PROTO_FIELD:
        return _proto_type(dtype)
    return CellType(
        dtype=dtype,
        code=FIXED.get(dtype),
        from_python=_FROM_PYTHON[dtype],
        to_python=_TO_PYTHON.get(dtype),
        from_proto=_field_reader(dtype),
        to_proto=_field_writer(dtype),
    )


def is_null(value: Any) -> bool:
    """Whether a ``Value`` of Feast is null; a time has a number that means it."""
    field = value.WhichOneof("val")
    if field is None or field == "null_val":
        return True
    return bool(field == "unix_timestamp_val" and value.unix_timestamp_val == _PROTO_NULL_TIME)


def damaged(expected: str, got: str) -> DamagedError:
    """The error for bytes in Redis that are no row, or not the one they should be."""
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


def _exactly(number: int, code: str) -> float:
    """A whole number as a float of a struct's format, which may not have room for it."""
    (rounded,) = struct.unpack(f"<{code}", struct.pack(f"<{code}", number))
    if rounded != number:
        raise ValueError(f"{number} is no {code}")
    return float(rounded)


def _told(time_us: int) -> int:
    """A time that can be read again: of the years 1 to 9999."""
    if not FIRST_US <= time_us <= LAST_US:
        raise OverflowError(f"{time_us} µs")
    return time_us


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
}


_TAKEN_FOR: Final = {
    "INT32": ("int32_val", "int64_val"),
    "INT64": ("int64_val", "int32_val"),
    "FLOAT": ("float_val", "double_val", "int32_val", "int64_val"),
    "DOUBLE": ("double_val", "float_val", "int32_val", "int64_val"),
}
"""Feast value type → fields of numbers that are taken for it: as the declared type, if they fit."""


def _field_reader(dtype: str) -> Callable[[Any], Any]:
    field = PROTO_FIELD[dtype]
    taken = _TAKEN_FOR.get(dtype, (field,))

    def read(value: Any) -> Any:
        found = value.WhichOneof("val")
        if found not in taken:
            raise TypeError(field)
        content = getattr(value, found)
        if dtype == "UNIX_TIMESTAMP":
            return _told(content * SECOND_US)
        if dtype in {"FLOAT", "DOUBLE"} and isinstance(content, int):
            return _exactly(content, FIXED[dtype])
        return content.encode() if dtype == "STRING" else content

    return read


def _field_writer(dtype: str) -> Callable[[Any], Any]:
    field = PROTO_FIELD[dtype]

    def write(content: Any) -> Any:
        from feast.protos.feast.types.Value_pb2 import Value

        if dtype == "UNIX_TIMESTAMP":
            content //= SECOND_US
        elif dtype == "STRING":
            content = content.decode()
        return Value(**{field: content})

    return write


def _array_type(dtype: str) -> CellType:
    """A list of numbers, stored as they are; a list has no null members in Feast."""
    scalar = _ARRAY_OF[dtype]
    convert, code = _FROM_PYTHON[scalar], FIXED[scalar]
    width = struct.calcsize(f"<{code}")
    field = f"{dtype.lower()}_val"

    def packed(values: Sequence[Any]) -> bytes:
        try:
            return struct.pack(f"<{len(values)}{code}", *values)
        except struct.error as error:
            raise ValueError(str(error)) from error

    def from_python(value: Any) -> bytes:
        if isinstance(value, str | bytes | dict):
            raise TypeError(type(value).__name__)
        return packed([convert(member) for member in value])

    def to_python(content: bytes) -> list[Any]:
        if len(content) % width:
            raise ValueError(f"{len(content)} bytes")
        return list(struct.unpack(f"<{len(content) // width}{code}", content))

    def from_proto(value: Any) -> bytes:
        if value.WhichOneof("val") != field:
            raise TypeError(field)
        return packed(getattr(value, field).val)

    def to_proto(content: bytes) -> Any:
        from feast.protos.feast.types.Value_pb2 import Value

        value = Value()
        members = getattr(value, field)
        members.val.extend(to_python(content))
        members.SetInParent()
        return value

    return CellType(dtype, None, from_python, to_python, from_proto, to_proto)


def _proto_type(dtype: str) -> CellType:
    """A type that is held as Feast's serialized ``Value``."""

    def from_python(value: Any) -> bytes:
        from feast.type_map import python_values_to_proto_values
        from feast.value_type import ValueType

        return _serialized(python_values_to_proto_values([value], ValueType[dtype])[0])

    def to_python(content: bytes) -> Any:
        from feast.type_map import feast_value_type_to_python_type
        from feast.value_type import ValueType

        return feast_value_type_to_python_type(_parsed(content), ValueType[dtype])

    return CellType(dtype, None, from_python, to_python, _serialized, _parsed, needs_feast=True)


def _serialized(value: Any) -> bytes:
    return bytes(value.SerializeToString(deterministic=True))


def _parsed(content: bytes) -> Any:
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.message import DecodeError

    value = Value()
    try:
        value.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return value
