"""Values of a request, from JSON to the types that the contract declares; exactly or not at all."""

from __future__ import annotations

import base64
import binascii
import math
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from tallystick.clock import utc
from tallystick.definitions.feature_types import feature_type
from tallystick.definitions.feature_view import Column
from tallystick.errors import ContractError, Problem

_FLOAT32: Final = struct.Struct("<f")


@dataclass(frozen=True, slots=True)
class ValueType:
    """How a value of one column is taken from JSON.

    Attributes:
        convert: JSON value → value of the declared type; ValueError if it is something else.
        expected: What has to be sent, in words.
        convert_all: The same for many values at once, or None if they have to be looked at one by
            one: a quick way for what is mostly right.
    """

    convert: Callable[[Any], Any]
    expected: str
    convert_all: Callable[[list[Any]], list[Any] | None] = lambda _: None


def value_type(column: Column) -> ValueType:
    """How values of ``column`` are read.

    Raises:
        ContractError: A column of this type cannot be sent as JSON.
    """
    dtype = column.dtype
    if dtype in _SCALARS:
        return _SCALARS[dtype]
    inner = dtype.removesuffix("_LIST")
    if inner != dtype and inner in _SCALARS:
        scalar = _SCALARS[inner]
        return ValueType(partial(_list_of, scalar.convert), f"a list, each {scalar.expected}")
    raise ContractError(
        "A model takes something that a request cannot carry.",
        [Problem(column.name, "a scalar or a list of scalars", dtype)],
    )


def moment(value: Any) -> datetime:
    """An ISO 8601 text with its zone as a time in UTC, in microseconds.

    Raises:
        ValueError: It is something else; also without a zone, which would have to be guessed.
    """
    if type(value) is not str:
        raise ValueError
    read = datetime.fromisoformat(value)
    if read.tzinfo is None:
        raise ValueError
    try:
        return utc(read)
    except OverflowError as error:
        raise ValueError from error


def _integer(value: Any, low: int, high: int) -> int:
    # Not isinstance: a bool is an int, and true is no key.
    if type(value) is not int or not low <= value <= high:
        raise ValueError
    return value


def _all_of(kind: type, values: list[Any]) -> list[Any] | None:
    return values if {*map(type, values)} == {kind} else None


def _all_integers(low: int, high: int, values: list[Any]) -> list[Any] | None:
    within = _all_of(int, values) is not None and low <= min(values) and max(values) <= high
    return values if within else None


def _all_doubles(values: list[Any]) -> list[Any] | None:
    return values if _all_of(float, values) is not None and math.isfinite(sum(values)) else None


def _double(value: Any) -> float:
    if type(value) is float:
        number = value
    elif type(value) is int:
        number = float(value)
    else:
        raise ValueError
    if not math.isfinite(number):
        raise ValueError
    return number


def _float32(value: Any) -> float:
    """The nearest float32, as the model saw it in training."""
    try:
        return float(_FLOAT32.unpack(_FLOAT32.pack(_double(value)))[0])
    except OverflowError as error:
        raise ValueError from error


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError
    return value


def _uuid(value: Any) -> str:
    return str(uuid.UUID(_text(value)))


def _binary(value: Any) -> bytes:
    try:
        return base64.b64decode(_text(value), validate=True)
    except binascii.Error as error:
        raise ValueError from error


def _list_of(convert: Callable[[Any], Any], value: Any) -> list[Any]:
    if type(value) is not list:
        raise ValueError
    return [convert(item) for item in value]


def _integers(dtype: str) -> ValueType:
    low, high = feature_type(dtype).limits
    return ValueType(
        partial(_integer, low=low, high=high),
        f"{dtype}: an integer from {low} to {high}",
        partial(_all_integers, low, high),
    )


_SCALARS: Final = {
    "INT32": _integers("INT32"),
    "INT64": _integers("INT64"),
    "DOUBLE": ValueType(_double, "DOUBLE: a finite number", _all_doubles),
    "FLOAT": ValueType(_float32, "FLOAT: a finite number within float32"),
    "BOOL": ValueType(_boolean, "BOOL: true or false", partial(_all_of, bool)),
    "STRING": ValueType(_text, "STRING: a text", partial(_all_of, str)),
    "UUID": ValueType(_uuid, "UUID: a text like 01890a5d-ac96-774b-bcce-b302099a8057"),
    "BYTES": ValueType(_binary, "BYTES: a text in base64"),
    "UNIX_TIMESTAMP": ValueType(
        moment, "UNIX_TIMESTAMP: an ISO 8601 time with its zone, like 2013-07-01T12:00:00Z"
    ),
}
