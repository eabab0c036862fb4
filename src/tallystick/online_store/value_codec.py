"""The codec of single values: Python value or Feast's ``Value`` ↔ what a packed row stores.

A *stored* value is what a row's struct takes: a number for a type of fixed width, bytes for all
others. Neither direction ever changes a value, except that a DOUBLE is rounded where a FLOAT is
declared: what does not fit is refused.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, NamedTuple

import msgspec

from tallystick.clock import SECOND_US, from_us, to_us
from tallystick.definitions.exact_cast import exact_value, set_members
from tallystick.definitions.feature_types import FeatureType, Kind, every_kind, feature_type
from tallystick.errors import DamagedError, Problem

FIRST_US: Final = to_us(datetime.min.replace(tzinfo=UTC))
LAST_US: Final = to_us(datetime.max.replace(tzinfo=UTC))
"""The first and last time that Python has, in microseconds."""
_NULL_SECONDS: Final = -(2**63)
"""What Feast writes for a null time."""

Convert = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class ValueCodec:
    """How values of one Feast type are stored in a row.

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
    from_python: Convert
    to_python: Convert | None
    from_proto: Convert
    to_proto: Convert
    needs_feast: bool = False

    def read_proto(self, value: Any) -> Any:
        """Feast's ``Value``, which is not null, as a Python value."""
        stored = self.from_proto(value)
        return stored if self.to_python is None else self.to_python(stored)


@cache
def value_codec(dtype: str) -> ValueCodec:
    """The codec of a Feast value type.

    Raises:
        DefinitionError: The type is not supported.
    """
    own = feature_type(dtype)
    return _CODECS[own.kind](own)


def is_null(value: Any) -> bool:
    """Whether a ``Value`` of Feast is null; one number of a time means it."""
    field = value.WhichOneof("val")
    if field is None or field == "null_val":
        return True
    return bool(field == "unix_timestamp_val" and value.unix_timestamp_val == _NULL_SECONDS)


def damaged(expected: str, got: str) -> DamagedError:
    """The error for bytes in Redis that are not a row, or not the expected one."""
    return DamagedError(
        "A row in Redis cannot be read.",
        [Problem("row", expected, got)],
        hint="Delete the rows that another program wrote, and materialize the view again.",
    )


class _Conversions(NamedTuple):
    """Between a value in Python, what is stored, and what a field of a proto holds; None: equal."""

    from_python: Convert
    to_python: Convert | None = None
    from_field: Convert | None = None
    to_field: Convert | None = None


def _conversions(own: FeatureType) -> _Conversions:
    exact = exact_value(own.name)

    def encoded(value: Any) -> bytes:
        return bytes(exact(value).encode())

    def float_of_field(content: float) -> float:
        """A proto's integer must be exact as a float; a double may be rounded."""
        if isinstance(content, int) and exact(content) != content:
            raise ValueError(f"{content} is not a {own.name}")
        return content

    match own.kind:
        case Kind.TIME:
            return _Conversions(
                lambda value: to_us(exact(value)), from_us, _us_of_seconds, SECOND_US.__rfloordiv__
            )
        case Kind.TEXT:
            return _Conversions(_encoded, bytes.decode, str.encode, bytes.decode)
        case Kind.UUID | Kind.DECIMAL:
            return _Conversions(encoded, bytes.decode, encoded, bytes.decode)
        case Kind.FLOAT:
            return _Conversions(exact, from_field=float_of_field)
        case _:
            return _Conversions(exact)


def _encoded(value: Any) -> bytes:
    """Quicker than the exact cast, for what is written most."""
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value.encode()


def _us_of_seconds(seconds: int) -> int:
    if not FIRST_US <= seconds * SECOND_US <= LAST_US:
        raise OverflowError(f"{seconds} s is beyond the years 1 to 9999")
    return seconds * SECOND_US


_INTEGERS: Final = ("int32_val", "int64_val")
_TAKEN_FOR: Final[Mapping[str, Sequence[str]]] = {
    "INT32": _INTEGERS,
    "INT64": _INTEGERS,
    "FLOAT": ("float_val", "double_val", *_INTEGERS),
    "DOUBLE": ("double_val", "float_val", *_INTEGERS),
    "UUID": ("uuid_val", "string_val"),
    "TIME_UUID": ("time_uuid_val", "string_val"),
    "DECIMAL": ("decimal_val", "string_val"),
}
"""Feast value type → fields that are taken for it, if their content fits; of others its own."""


def _scalar(own: FeatureType) -> ValueCodec:
    from_python, to_python, from_field, to_field = _conversions(own)
    field = own.proto_field
    taken = _TAKEN_FOR.get(own.name, (field,))

    def from_proto(value: Any) -> Any:
        found = value.WhichOneof("val")
        if found not in taken:
            raise TypeError(field)
        content = getattr(value, found)
        return content if from_field is None else from_field(content)

    def to_proto(content: Any) -> Any:
        return _proto()(**{field: content if to_field is None else to_field(content)})

    return ValueCodec(own.name, own.struct_code, from_python, to_python, from_proto, to_proto)


def _collection(own: FeatureType) -> ValueCodec:
    """Members one after the other; Feast has no null among them."""
    assert own.member is not None
    member, field = own.member, own.proto_field
    from_python, to_python, from_field, to_field = _conversions(member)
    if member.kind is Kind.FLOAT:
        from_field = None  # these members cannot be integers
    code = member.struct_code
    pack, unpack = _array_packing(code) if code else _bytes_packing()

    def packed_set(members: Sequence[Any]) -> Any:
        return pack(set_members(members))

    stored = packed_set if own.kind is Kind.SET else pack

    def from_values(value: Any) -> Any:
        if isinstance(value, str | bytes | dict):
            raise TypeError(type(value).__name__)
        return stored([from_python(each) for each in value])

    def to_values(content: bytes) -> list[Any]:
        members = unpack(content)
        return list(members) if to_python is None else [to_python(each) for each in members]

    def from_proto(value: Any) -> Any:
        if value.WhichOneof("val") != field:
            raise TypeError(field)
        return stored(_mapped(from_field, getattr(value, field).val))

    def to_proto(content: bytes) -> Any:
        value = _proto()()
        members = getattr(value, field)
        members.val.extend(_mapped(to_field, unpack(content)))
        members.SetInParent()
        return value

    return ValueCodec(own.name, None, from_values, to_values, from_proto, to_proto)


def _mapped(convert: Convert | None, values: Sequence[Any]) -> Sequence[Any]:
    return values if convert is None else [convert(each) for each in values]


def _array_packing(code: str) -> tuple[Convert, Convert]:
    """Members of a fixed width as bytes, and back."""
    width = struct.calcsize(f"<{code}")

    def packed(values: Sequence[Any]) -> bytes:
        try:
            return struct.pack(f"<{len(values)}{code}", *values)
        except struct.error as error:
            raise ValueError(str(error)) from error

    def unpacked(content: bytes) -> Sequence[Any]:
        if len(content) % width:
            raise ValueError(f"{len(content)} bytes")
        return struct.unpack(f"<{len(content) // width}{code}", content)

    return packed, unpacked


def _bytes_packing() -> tuple[Convert, Convert]:
    """Members of any length in MessagePack, and back."""
    decoder = msgspec.msgpack.Decoder(list[bytes])

    def unpacked(content: bytes) -> Sequence[bytes]:
        try:
            return decoder.decode(content)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error

    return lambda members: msgspec.msgpack.encode(list(members)), unpacked


def _document(own: FeatureType) -> ValueCodec:
    """A type that is stored as Feast's serialized ``Value``."""

    def from_python(value: Any) -> bytes:
        from feast.type_map import python_values_to_proto_values
        from feast.value_type import ValueType

        if isinstance(value, str) and own.name != "JSON":
            value = json.loads(value)
        return _serialized(python_values_to_proto_values([value], ValueType[own.name])[0])

    def to_python(content: bytes) -> Any:
        from feast.type_map import feast_value_type_to_python_type
        from feast.value_type import ValueType

        return feast_value_type_to_python_type(_parsed(content), ValueType[own.name])

    return ValueCodec(
        own.name, None, from_python, to_python, _serialized, _parsed, needs_feast=True
    )


def _serialized(value: Any) -> bytes:
    return bytes(value.SerializeToString(deterministic=True))


def _parsed(content: bytes) -> Any:
    from google.protobuf.message import DecodeError

    value = _proto()()
    try:
        value.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    return value


@cache
def _proto() -> Any:
    from feast.protos.feast.types.Value_pb2 import Value

    return Value


_CODECS: Final[Mapping[Kind, Callable[[FeatureType], ValueCodec]]] = every_kind(
    {
        Kind.INTEGER: _scalar,
        Kind.FLOAT: _scalar,
        Kind.BOOL: _scalar,
        Kind.TIME: _scalar,
        Kind.TEXT: _scalar,
        Kind.UUID: _scalar,
        Kind.DECIMAL: _scalar,
        Kind.BYTES: _scalar,
        Kind.LIST: _collection,
        Kind.SET: _collection,
        Kind.DOCUMENT: _document,
    }
)
