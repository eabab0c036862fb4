"""The exact cast: a value or a column becomes one of its declared type, exactly or not at all.

Features, keys, times, labels, request fields and pushes all pass through it. Two things change:
a float takes the nearest value of its declared width, and a time is cut to microseconds.
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
from numbers import Integral
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
_CLASSES: Final = {"DOUBLE": float, "STRING": str, "BOOL": bool}


def are_exact(values: Sequence[Any], own: FeatureType) -> bool:
    """Whether values need no cast, None aside; quick, and false where it takes a closer look."""
    classes = {*map(type, values)}
    if own.kind is Kind.INTEGER:
        low, high = own.limits
        return classes == {int} and low <= min(values) and max(values) <= high
    return classes <= {_CLASSES.get(own.name), type(None)}


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
    if are_exact(values, feature_type(dtype)):
        return list(values)
    cast = exact_value(dtype)
    return [None if value is None else cast(value) for value in values]


@cache
def exact_value(dtype: str) -> Callable[[Any], Any]:
    """The cast of one value that is not None; otherwise as :func:`exact_values`."""
    own = feature_type(dtype)
    return _VALUES[own.kind](own)


def _instance(classes: Any, convert: Callable[[Any], Any], value: Any) -> Any:
    if not isinstance(value, classes):
        raise TypeError(f"{value!r} is a {type(value).__name__}")
    return convert(value)


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


def _text(value: Any) -> str:
    """Text, or a whole number as text, since files often hold identifiers as numbers."""
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    return str(_instance(str, str, value))


def _uuid(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(_CANONICAL_UUID, value):
        return value
    try:
        return str(value if isinstance(value, uuid.UUID) else _instance(str, uuid.UUID, value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a UUID") from error


def _decimal(value: Any) -> str:
    try:
        _instance((str, Decimal), Decimal, value)
    except ArithmeticError as error:
        raise ValueError(f"{value!r} is not a decimal") from error
    return str(value)


def _list(own: FeatureType) -> Callable[[Any], Any]:
    assert own.member is not None
    member = exact_value(own.member.name)

    def cast(value: Any) -> list[Any]:
        if isinstance(value, str | bytes | dict):
            raise TypeError(f"{value!r} is not a list")
        members = [None if each is None else member(each) for each in value]
        return set_members(members) if own.kind is Kind.SET else members

    return cast


def set_members(members: Sequence[Any]) -> list[Any]:
    """The members of a set in their one order, each once; NaN and null come last.

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
        Kind.TIME: lambda _: partial(_instance, datetime, utc),
        Kind.TEXT: lambda _: _text,
        Kind.UUID: lambda _: _uuid,
        Kind.DECIMAL: lambda _: _decimal,
        Kind.BYTES: lambda _: partial(_instance, (bytes, bytearray, memoryview), bytes),
        Kind.LIST: _list,
        Kind.SET: _list,
        Kind.DOCUMENT: lambda _: lambda value: value,
    }
)


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
        members = value.items()
        return {str(name): _without_nulls(each) for name, each in members if each is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list | tuple) else value


def log_values(values: Sequence[Any], dtype: str) -> Sequence[Any]:
    """Python values as Arrow takes them for the log and the journal: documents are JSON text."""
    if not feature_type(dtype).is_document:
        return values
    if dtype == "JSON_LIST":  # texts in history, and online what they say
        values = [[*map(_parsed, each)] if isinstance(each, list) else each for each in values]
    return [json_text(value) for value in values]


_FAMILIES: Final = {
    "integer": re.compile(r"u?int\d+"),
    "float": re.compile("halffloat|float|double"),
    "decimal": re.compile(r"decimal\d+\(.*"),
    "bool": re.compile("bool"),
    "text": re.compile("(large_)?string(_view)?"),
    "uuid": re.compile(r"extension<arrow\.uuid>"),
    "bytes": re.compile(r"(large_|fixed_size_)?binary(_view|\[.*)?"),
    "time": re.compile(r"(timestamp|date32|date64)\[.*"),
}
"""Family of values → the names of Arrow's types of it."""

ACCEPTED: Final[Mapping[Kind, set[str]]] = every_kind(
    {
        Kind.INTEGER: {"integer", "bool", "float", "decimal"},
        Kind.FLOAT: {"integer", "float", "decimal", "bool"},
        Kind.BOOL: {"bool"},
        Kind.TIME: {"time"},
        Kind.TEXT: {"text", "decimal", "integer"},
        Kind.UUID: {"text", "uuid"},
        Kind.DECIMAL: {"text", "decimal"},
        Kind.BYTES: {"bytes"},
        Kind.LIST: set(),  # by their members
        Kind.SET: set(),
        Kind.DOCUMENT: set(),  # any
    }
)
"""Kind → families of columns that can hold its values."""


def family(kind: pa.DataType) -> str:
    """What sort of values an Arrow type holds; ``list of X`` for lists."""
    name = str(kind)
    if name.startswith("dictionary<"):
        return family(kind.value_type)
    if name.startswith(("list<", "large_list<", "fixed_size_list<")):
        return f"list of {family(kind.value_type)}"
    return next((each for each, names in _FAMILIES.items() if names.fullmatch(name)), name)


def fits(dtype: str, found: pa.DataType) -> bool:
    """Whether a column of an Arrow type can hold values of a Feast type."""
    own, have = feature_type(dtype), family(found)
    if own.member is not None and have.startswith("list of "):
        own, have = own.member, have.removeprefix("list of ")
    return own.is_document or have == "null" or have in ACCEPTED[own.kind]


def exact_column(column: Any, dtype: str) -> Any:
    """An Arrow column in the type that holds a Feast type exactly; a document stays as it is.

    Raises:
        ArrowInvalid: A value does not fit.
        ArrowNotImplementedError: The column holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    own = feature_type(dtype)
    if own.is_document:
        return column
    target, is_uuid = arrow_type(dtype), Kind.UUID in {own.kind, (own.member or own).kind}
    if not is_uuid:
        column = cast_column(column, target)
    elif column.type == pa.string():
        canonical = pc.match_substring_regex(column, _CANONICAL_UUID)
        is_uuid = not pc.all(canonical, min_count=0).as_py()
    if not is_uuid and own.kind is not Kind.SET:
        return column
    try:
        cast = pa.array(exact_values(column.to_pylist(), dtype), target)
    except (TypeError, ValueError) as error:
        raise pa.ArrowInvalid(str(error)) from error
    return pa.chunked_array([cast]) if isinstance(column, pa.ChunkedArray) else cast


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
    if pa.types.is_float16(column.type) and family(kind) == "integer":
        column = column.cast(pa.float32())
    if pa.types.is_decimal(column.type) and family(kind) == "float":
        # The cast of a decimal to a float is not the nearest one.
        column = column.cast(pa.string())
    cast = column.cast(kind, safe=family(kind).endswith("integer"))
    if pa.types.is_float32(kind) and pa.types.is_float64(column.type):
        same = pc.equal(pc.is_inf(column), pc.is_inf(cast))
        if not pc.all(same, min_count=0).as_py():
            raise pa.ArrowInvalid("a number is beyond float32")
    return cast


def converted(column: Any, to: str | pa.DataType, *, where: str) -> Any:
    """An Arrow column in a Feast type or an Arrow type; nested values of a source stay as they are.

    Raises:
        DataError: A value of the column, which is called ``where``, does not fit.
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
