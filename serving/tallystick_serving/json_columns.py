"""Columns of values as JSON has them, be they lists or arrays."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from tallystick.clock import EPOCH, SECOND_US, from_us, to_us
from tallystick.definitions.columns import plain

_MILLISECOND_US: Final = 1_000
_AS_UTC: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def as_they_are(values: Any) -> Any:
    """Numbers, texts, truth values, times and nulls; and lists of them."""
    return values


def floats(values: Any) -> Any:
    """Floats and nulls; those that are no numbers by their names, as protobuf's JSON has them.

    >>> floats([1.5, None, float("nan")])
    [1.5, None, 'NaN']
    """
    if not isinstance(values, list):
        if abs(values).max(initial=0.0) < math.inf:  # false for NaN as well
            return values
    else:
        try:
            if math.isfinite(sum(values)):
                return values
        except TypeError:  # there are nulls
            pass
    return [_float(value) for value in plain(values)]


def float_lists(values: list[Sequence[float] | None]) -> list[Any]:
    """Lists of floats and nulls."""
    return [None if value is None else [_float(member) for member in value] for value in values]


def base64_texts(values: list[bytes | None]) -> list[Any]:
    """Bytes as base64."""
    return [None if value is None else base64.b64encode(value).decode() for value in values]


def seconds(values: list[datetime | None]) -> list[Any]:
    """Times as whole seconds since 1970, as Feast has them."""
    return [None if value is None else to_us(value) // SECOND_US for value in values]


def moments(times_us: Any) -> bytes:
    """Times as protobuf's JSON has them, with as many digits as it takes; 1970 for none.

    >>> moments([0, None, 1_500_000])
    b'["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:01.500Z"]'
    """
    # orjson writes times as wanted, but for whole milliseconds, of which it has six digits.
    if isinstance(times_us, list):
        if any(us and us % _MILLISECOND_US == 0 and us % SECOND_US for us in times_us):
            return orjson.dumps(list(map(_moment, times_us)))
        return orjson.dumps([from_us(us) if us else EPOCH for us in times_us], option=_AS_UTC)
    if ((times_us % _MILLISECOND_US == 0) & (times_us % SECOND_US != 0)).any():
        return orjson.dumps(list(map(_moment, times_us.tolist())))
    return orjson.dumps(times_us.view("M8[us]"), option=_AS_UTC | orjson.OPT_SERIALIZE_NUMPY)


NUMBERS: Final = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"})
"""Feast value types whose values are written without quotes or brackets."""

AS_SEEN: Final[dict[str, Callable[[Any], Any]]] = {
    **dict.fromkeys(("INT32", "INT64", "BOOL", "STRING", "UNIX_TIMESTAMP"), as_they_are),
    **dict.fromkeys(("FLOAT", "DOUBLE"), floats),
    "BYTES": base64_texts,
}
"""Feast value type → how a column of it is written as the model saw it; times by ISO 8601."""

COLUMNS: Final[dict[str, Callable[[Any], Any]]] = {
    "INT32": as_they_are,
    "INT64": as_they_are,
    "BOOL": as_they_are,
    "STRING": as_they_are,
    "FLOAT": floats,
    "DOUBLE": floats,
    "BYTES": base64_texts,
    "UNIX_TIMESTAMP": seconds,
    "INT32_LIST": as_they_are,
    "INT64_LIST": as_they_are,
    "BOOL_LIST": as_they_are,
    "FLOAT_LIST": float_lists,
    "DOUBLE_LIST": float_lists,
}
"""Feast value type → how a column of it is written for Feast; the types that need
nothing of Feast."""


def _float(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _moment(time_us: int | None) -> str:
    time_us = time_us or 0
    text = from_us(time_us).replace(tzinfo=None).isoformat(timespec="seconds")
    rest = time_us % SECOND_US
    if rest:
        text += f".{rest // 1000:03d}" if rest % _MILLISECOND_US == 0 else f".{rest:06d}"
    return f"{text}Z"
