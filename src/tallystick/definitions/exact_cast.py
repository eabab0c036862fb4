"""The exact cast: a value or a column becomes one of its declared type, exactly or not at all.

Features, keys, times, labels, request fields and pushes all pass through it. Two things are not
kept: a float takes the nearest value of its declared width, and a time is cut to microseconds.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import utc
from tallystick.definitions.feature_types import (
    FeatureType,
    Kind,
    arrow_type,
    every_kind,
    feature_type,
)
from tallystick.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_FLOAT32: Final = struct.Struct("<f")
_CANONICAL_UUID: Final = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"


def exact_values(values: Sequence[Any], dtype: str) -> list[Any]:
    """Python values in a Feast type; None stays None.

    >>> exact_values([1, None, 2.5], "DOUBLE")
    [1.0, None, 2.5]
    >>> exact_values([0.1], "FLOAT")
    [0.10000000149011612]

    Raises:
        TypeError: A value is of another kind.
        ValueError: A number has a fraction where an integer is declared.
        OverflowError: A number is out of range.
    """
    own = feature_type(dtype)
    found = {*map(type, values)}
    if own.is_document or found <= _AS_THEY_ARE.get(dtype, _NOTHING):
        return list(values)
    if own.kind is Kind.INTEGER and found == {int}:
        low, high = own.limits
        if low <= min(values) and max(values) <= high:
            return list(values)
    cast = exact_value(dtype)
    return [None if value is None else cast(value) for value in values]


@cache
def exact_value(dtype: str) -> Callable[[Any], Any]:
    """The cast of one value that is not None; otherwise as :func:`exact_values`."""
    own = feature_type(dtype)
    return _VALUES[own.kind](own)


def _integer(low: int, high: int, value: Any) -> int:
    number = value if type(value) is int else int(value)
    if number != value:  # a fraction, or text
        raise ValueError(f"{value!r} is not a whole number")
    if not low <= number <= high:
        raise OverflowError(f"{number} is out of range")
    return number


def _double(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is not a number")
    return float(value)


def _float(value: Any) -> float:
    (number,) = _FLOAT32.unpack(_FLOAT32.pack(_double(value)))
    return float(number)


def _bool(value: Any) -> bool:
    if value not in (0, 1):
        raise TypeError(f"{value!r} is neither true nor false")
    return bool(value)


def _time(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is not a datetime")
    return utc(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _uuid(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(_CANONICAL_UUID, value):
        return value
    return str(value if isinstance(value, uuid.UUID) else uuid.UUID(_text(value)))


def _decimal(value: Any) -> str:
    if not isinstance(value, Decimal):
        try:
            Decimal(_text(value))
        except ArithmeticError as error:
            raise ValueError(f"{value!r} is not a decimal") from error
    return str(value)


def _bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{value!r} is not bytes")
    return bytes(value)


def _list(own: FeatureType) -> Callable[[Any], Any]:
    assert own.member is not None
    member = exact_value(own.member.name)

    def cast(value: Any) -> list[Any]:
        if isinstance(value, str | bytes | dict):
            raise TypeError(f"{value!r} is not a list")
        return [None if each is None else member(each) for each in value]

    return cast


def _set(own: FeatureType) -> Callable[[Any], Any]:
    cast = _list(own)
    return lambda value: set_members(cast(value))


def set_members(members: Sequence[Any]) -> list[Any]:
    """The members of a set in their one order, each once; null and NaN come last.

    >>> set_members([3, None, 1, 3])
    [1, 3, None]
    """
    known = sorted({each for each in members if each is not None and each == each})  # noqa: PLR0124
    strange = [each for each in members if each is not None and each != each]  # noqa: PLR0124
    return known + strange[:1] + ([None] if None in members else [])


_VALUES: Final[Mapping[Kind, Callable[[FeatureType], Callable[[Any], Any]]]] = every_kind(
    {
        Kind.INTEGER: lambda own: partial(_integer, *own.limits),
        Kind.FLOAT: lambda own: _float if own.name == "FLOAT" else _double,
        Kind.BOOL: lambda _: _bool,
        Kind.TIME: lambda _: _time,
        Kind.TEXT: lambda _: _text,
        Kind.UUID: lambda _: _uuid,
        Kind.DECIMAL: lambda _: _decimal,
        Kind.BYTES: lambda _: _bytes,
        Kind.LIST: _list,
        Kind.SET: _set,
        Kind.DOCUMENT: lambda _: lambda value: value,
    }
)
_NOTHING: Final[frozenset[type]] = frozenset()
_AS_THEY_ARE: Final = {
    "DOUBLE": frozenset({float, type(None)}),
    "STRING": frozenset({str, type(None)}),
    "BOOL": frozenset({bool, type(None)}),
}
"""Types whose values need no cast, if they are of these classes."""


def json_text(value: Any) -> str | None:
    """The canonical JSON text of a document: sorted keys, null members left out.

    A struct of history names every member and a map of the online store only those it has, hence
    the null members. Text that is JSON is made canonical, other text is a JSON string.

    >>> json_text({"b": None, "a": 1}), json_text('{"b": 2, "a": 1}'), json_text(None)
    ('{"a":1}', '{"a":1,"b":2}', None)
    """
    import orjson

    if value is None:
        return None
    value = _without_nulls(_parsed(value))
    return orjson.dumps(value, default=str, option=orjson.OPT_SORT_KEYS).decode()


def _parsed(value: Any) -> Any:
    """What a text that is JSON says; anything else as it is."""
    import orjson

    if isinstance(value, str):
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(value)
    return value


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _without_nulls(member)
            for name, member in value.items()
            if member is not None
        }
    if isinstance(value, list | tuple):
        return [_without_nulls(member) for member in value]
    return value


ACCEPTED: Final[Mapping[Kind, frozenset[str]]] = every_kind(
    {
        Kind.INTEGER: frozenset({"integer", "bool", "float"}),
        Kind.FLOAT: frozenset({"integer", "float", "decimal", "bool"}),
        Kind.BOOL: frozenset({"bool"}),
        Kind.TIME: frozenset({"time"}),
        Kind.TEXT: frozenset({"text", "decimal"}),
        Kind.UUID: frozenset({"text", "uuid"}),
        Kind.DECIMAL: frozenset({"text", "decimal"}),
        Kind.BYTES: frozenset({"bytes"}),
        Kind.LIST: frozenset(),  # by their members
        Kind.SET: frozenset(),
        Kind.DOCUMENT: frozenset(),  # any
    }
)
"""Kind → families of columns that can hold its values."""


def family(kind: pa.DataType) -> str:
    """What sort of values an Arrow type holds; ``list of X`` for lists."""
    import pyarrow as pa
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return family(kind.value_type)
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return f"list of {family(kind.value_type)}"
    tests = {
        "null": pt.is_null,
        "bool": pt.is_boolean,
        "integer": pt.is_integer,
        "float": pt.is_floating,
        "decimal": pt.is_decimal,
        "text": lambda each: (
            pt.is_string(each) or pt.is_large_string(each) or pt.is_string_view(each)
        ),
        "uuid": lambda each: each == pa.uuid(),
        "bytes": lambda each: (
            pt.is_binary(each)
            or pt.is_large_binary(each)
            or pt.is_fixed_size_binary(each)
            or pt.is_binary_view(each)
        ),
        "time": lambda each: pt.is_timestamp(each) or pt.is_date(each),
    }
    return next((name for name, test in tests.items() if test(kind)), str(kind))


def fits(dtype: str, found: pa.DataType) -> bool:
    """Whether a column of an Arrow type can hold values of a Feast type."""
    own, have = feature_type(dtype), family(found)
    if own.is_document or have == "null":
        return True
    if own.member is not None and have.startswith("list of "):
        own, have = own.member, have.removeprefix("list of ")
    return have == "null" or have in ACCEPTED[own.kind]


def exact_column(column: Any, dtype: str) -> Any:
    """An Arrow column in the type that holds a Feast type exactly; a document stays as it is.

    Raises:
        ArrowInvalid: A value does not fit.
        ArrowNotImplementedError: The column holds something else.
    """
    own = feature_type(dtype)
    if own.is_document:
        return column
    leaf = own.member or own
    if leaf.kind is Kind.UUID or own.kind is Kind.SET:
        return _cast_by_value(column, own, leaf)
    return cast_column(column, arrow_type(dtype))


def cast_column(column: Any, kind: pa.DataType) -> Any:
    """An Arrow column in another Arrow type: integers exactly, floats nearest, times cut.

    Raises:
        ArrowInvalid: A value does not fit.
        ArrowNotImplementedError: The column holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type == kind:
        return column
    cast = column.cast(kind, safe=family(kind).endswith("integer"))
    if pa.types.is_float32(kind) and pa.types.is_float64(column.type):
        same = pc.equal(pc.is_inf(column), pc.is_inf(cast))
        if not pc.all(same, min_count=0).as_py():
            raise pa.ArrowInvalid("a number is beyond float32")
    return cast


def converted(column: Any, to: str | pa.DataType, *, where: str) -> Any:
    """A column that a person knows, in another type; nested values of a source stay as they are.

    Args:
        column: An Arrow column.
        to: Name of a Feast type, as for :func:`exact_column`, or an Arrow type.
        where: The column, for people.

    Raises:
        DataError: A value does not fit.
    """
    import pyarrow as pa

    kind = arrow_type(to) if isinstance(to, str) else to
    try:
        return exact_column(column, to) if isinstance(to, str) else cast_column(column, to)
    except pa.ArrowNotImplementedError:
        if pa.types.is_nested(kind):
            return column
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} has a value that is not {kind}: {error}") from error


def _cast_by_value(column: Any, own: FeatureType, leaf: FeatureType) -> Any:
    """UUIDs in canonical form, sets in their one order."""
    import pyarrow as pa
    import pyarrow.compute as pc

    target = arrow_type(own.name)
    if own.kind is Kind.UUID and column.type == target:
        canonical = pc.match_substring_regex(column, _CANONICAL_UUID)
        if pc.all(canonical, min_count=0).as_py():
            return column
    try:
        values = column.to_pylist()
        if leaf.kind is not Kind.UUID:
            values = cast_column(column, target).to_pylist()
        cast = pa.array(exact_values(values, own.name), target)
    except (TypeError, ValueError) as error:
        raise pa.ArrowInvalid(str(error)) from error
    return pa.chunked_array([cast]) if isinstance(column, pa.ChunkedArray) else cast


def log_column(column: Any, dtype: str) -> Any:
    """An Arrow column as the log and the journal hold it: documents are JSON text.

    Raises:
        ArrowInvalid: A value does not fit.
    """
    import pyarrow as pa

    if not feature_type(dtype).is_document:
        return exact_column(column, dtype)
    values = column.to_pylist(maps_as_pydicts="strict")
    return pa.chunked_array([pa.array(log_values(values, dtype), pa.string())])


def log_values(values: Sequence[Any], dtype: str) -> Sequence[Any]:
    """Python values as Arrow takes them for the log and the journal: documents are JSON text."""
    if not feature_type(dtype).is_document:
        return values
    if dtype == "JSON_LIST":  # texts in history, and online what they say
        values = [
            list(map(_parsed, value)) if isinstance(value, list) else value for value in values
        ]
    return [json_text(value) for value in values]
