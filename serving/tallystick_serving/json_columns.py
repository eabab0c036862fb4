"""Columns of values as JSON has them, be they lists or arrays."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any, Final

import orjson

from tallystick.clock import EPOCH, SECOND_US, from_us, to_us
from tallystick.definitions.columns import plain
from tallystick.definitions.feature_types import Kind, every_kind, feature_type

_MILLISECOND_US: Final = 1_000
_AS_UTC: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z

ToJson = Callable[[Any], Any]


@cache
def json_column(dtype: str) -> ToJson:
    """What makes a column of a Feast value type one that orjson writes as the model saw it."""
    own = feature_type(dtype)
    return _COLUMNS[own.kind] if own.member is None else _lists(_COLUMNS[own.member.kind])


@cache
def feast_json_column(dtype: str) -> ToJson | None:
    """As :func:`json_column`, in Feast's form; None for types that Feast itself has to write."""
    own = feature_type(dtype)
    if own.kind is Kind.SET or own.is_document:
        return None
    leaf = own.member or own
    write = _seconds if leaf.is_time else _COLUMNS[leaf.kind]
    return write if own.member is None else _lists(write)


def _as_they_are(values: Any) -> Any:
    return values


def floats(values: Any) -> Any:
    """Floats and nulls; those that are not numbers by their names, as protobuf's JSON has them.

    >>> floats([1.5, None, float("nan")])
    [1.5, None, 'NaN']
    """
    if not isinstance(values, list):
        if math.isfinite(values.dot(values)):  # quick; large numbers are looked at below
            return values
    else:
        try:
            if math.isfinite(sum(values)):
                return values
        except TypeError:  # there are nulls
            pass
    return _members(plain(values))


def _seconds(values: list[datetime | None]) -> list[Any]:
    return [None if value is None else to_us(value) // SECOND_US for value in values]


def _lists(write: ToJson) -> ToJson:
    return lambda values: [None if value is None else write(list(value)) for value in values]


def _member(value: Any) -> Any:
    """A value of any kind as JSON has it: bytes as base64, NaN and infinity by their names."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, list | set | tuple):
        return _members(value)
    if isinstance(value, dict):
        return {str(key): _member(member) for key, member in value.items()}
    return value if isinstance(value, str | int | float | datetime | None) else str(value)


def _members(values: Iterable[Any]) -> list[Any]:
    return [*map(_member, values)]


_COLUMNS: Final[Mapping[Kind, ToJson]] = every_kind(
    {
        Kind.INTEGER: _as_they_are,
        Kind.FLOAT: floats,
        Kind.BOOL: _as_they_are,
        Kind.TIME: _as_they_are,
        Kind.TEXT: _as_they_are,
        Kind.UUID: _as_they_are,
        Kind.DECIMAL: _as_they_are,
        Kind.BYTES: _members,
        Kind.LIST: _members,
        Kind.SET: _members,
        Kind.DOCUMENT: _members,
    }
)


def moments(times_us: Any) -> bytes:
    """Times as protobuf's JSON has them, with as many digits as it takes; 1970 for none.

    >>> moments([0, None, 1_500_000])
    b'["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:01.500Z"]'
    """
    # orjson writes times as required, except whole milliseconds, to which it gives six digits.
    if isinstance(times_us, list):
        if any(us and us % _MILLISECOND_US == 0 and us % SECOND_US for us in times_us):
            return orjson.dumps(list(map(_moment, times_us)))
        return orjson.dumps([from_us(us) if us else EPOCH for us in times_us], option=_AS_UTC)
    if ((times_us % _MILLISECOND_US == 0) & (times_us % SECOND_US != 0)).any():
        return orjson.dumps(list(map(_moment, times_us.tolist())))
    return orjson.dumps(times_us.view("M8[us]"), option=_AS_UTC | orjson.OPT_SERIALIZE_NUMPY)


def _moment(time_us: int | None) -> str:
    time_us = time_us or 0
    text = from_us(time_us).replace(tzinfo=None).isoformat(timespec="seconds")
    rest = time_us % SECOND_US
    if rest:
        text += f".{rest // 1000:03d}" if rest % _MILLISECOND_US == 0 else f".{rest:06d}"
    return f"{text}Z"
