"""Columns of values as JSON text, piece by piece, so that what repeats is written once."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from tallystick.clock import EPOCH, from_us, to_us

_SECOND_US: Final = 1_000_000
_MILLISECOND_US: Final = 1_000
_NUMPY_FROM: Final = 16
"""Times from which NumPy is quicker than one text after the other."""
_AS_UTC: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z


def numbers_json(values: Sequence[Any]) -> bytes:
    """Numbers, texts, truth values, times and nulls; and lists of them."""
    return orjson.dumps(values)


def floats_json(values: Sequence[float | None]) -> bytes:
    """Floats and nulls; those that are no numbers by their names, as protobuf's JSON has them.

    >>> floats_json([1.5, None, float("nan")])
    b'[1.5,null,"NaN"]'
    """
    try:
        if math.isfinite(sum(values)):  # type: ignore[arg-type]
            return orjson.dumps(values)
    except TypeError:  # there are nulls
        pass
    return orjson.dumps([_float(value) for value in values])


def float_lists_json(values: Sequence[Sequence[float] | None]) -> bytes:
    """Lists of floats and nulls."""
    return orjson.dumps(
        [None if value is None else [_float(member) for member in value] for value in values]
    )


def bytes_json(values: Sequence[bytes | None]) -> bytes:
    """Bytes as base64."""
    return orjson.dumps(
        [None if value is None else base64.b64encode(value).decode() for value in values]
    )


def seconds_json(values: Sequence[datetime | None]) -> bytes:
    """Times as whole seconds since 1970, as Feast has them."""
    return orjson.dumps([None if value is None else to_us(value) // _SECOND_US for value in values])


def moments_json(times_us: Sequence[int | None]) -> bytes:
    """Times as protobuf's JSON has them, with as many digits as it takes; 1970 for none.

    >>> moments_json([0, None, 1_500_000])
    b'["1970-01-01T00:00:00Z","1970-01-01T00:00:00Z","1970-01-01T00:00:01.500Z"]'
    """
    # orjson writes times as wanted, but for whole milliseconds, of which it has six digits.
    if len(times_us) < _NUMPY_FROM or None in times_us:
        if any(us and us % _MILLISECOND_US == 0 and us % _SECOND_US for us in times_us):
            return orjson.dumps(list(map(_moment, times_us)))
        return orjson.dumps([from_us(us) if us else EPOCH for us in times_us], option=_AS_UTC)
    import numpy as np

    times = np.array(times_us, dtype=np.int64)
    if ((times % _MILLISECOND_US == 0) & (times % _SECOND_US != 0)).any():
        return orjson.dumps(list(map(_moment, times_us)))
    return orjson.dumps(times.view("M8[us]"), option=_AS_UTC | orjson.OPT_SERIALIZE_NUMPY)


AS_SEEN: Final[dict[str, Callable[[Sequence[Any]], bytes]]] = {
    **dict.fromkeys(("INT32", "INT64", "BOOL", "STRING", "UNIX_TIMESTAMP"), numbers_json),
    **dict.fromkeys(("FLOAT", "DOUBLE"), floats_json),
    "BYTES": bytes_json,
}
"""Feast value type → how a column of it is written as the model saw it; times by ISO 8601."""

COLUMNS: Final[dict[str, Callable[[Sequence[Any]], bytes]]] = {
    "INT32": numbers_json,
    "INT64": numbers_json,
    "BOOL": numbers_json,
    "STRING": numbers_json,
    "FLOAT": floats_json,
    "DOUBLE": floats_json,
    "BYTES": bytes_json,
    "UNIX_TIMESTAMP": seconds_json,
    "INT32_LIST": numbers_json,
    "INT64_LIST": numbers_json,
    "BOOL_LIST": numbers_json,
    "FLOAT_LIST": float_lists_json,
    "DOUBLE_LIST": float_lists_json,
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
    rest = time_us % _SECOND_US
    if rest:
        text += f".{rest // 1000:03d}" if rest % _MILLISECOND_US == 0 else f".{rest:06d}"
    return f"{text}Z"
