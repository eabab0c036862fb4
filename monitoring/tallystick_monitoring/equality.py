"""Whether two columns hold the same values: bit for bit, or after a cast."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick_monitoring.log_columns import Bools


def same_bits(served: pa.Array, expected: pa.Array) -> Bools:
    """Compare two Arrow columns of one type bit for bit.

    Null equals null only. A NaN equals a NaN, whatever its payload. 0.0 and -0.0 differ.

    Returns:
        Whether the values are the same, of shape (rows,).
    """
    served_null, expected_null = _nulls(served), _nulls(expected)
    kind = served.type
    if pa.types.is_list(kind) or pa.types.is_nested(kind):
        pairs = zip(served.to_pylist(), expected.to_pylist(), strict=True)
        equal = np.array([repr(one) == repr(other) for one, other in pairs], dtype=np.bool_)
    elif pa.types.is_floating(kind):
        equal = _same_floats(served, expected)
    else:
        equal = pc.equal(served, expected).fill_null(False).to_numpy(zero_copy_only=False)
    either_null = served_null | expected_null
    return np.asarray(np.where(either_null, served_null & expected_null, equal), dtype=np.bool_)


def equal_after_cast(served: Any, expected: Any) -> bool:
    """Whether two unequal plain values are one value, but for type, precision or what null is.

    >>> equal_after_cast(0.10000000149011612, 0.1)
    True
    >>> equal_after_cast(0, None)
    True
    >>> equal_after_cast(0.5, 0.25)
    False
    """
    if expected is None or served is None:
        return _stands_for_null(served if expected is None else expected)
    if isinstance(served, list) and isinstance(expected, list):
        return len(served) == len(expected) and all(
            repr(one) == repr(other) or equal_after_cast(one, other)
            for one, other in zip(served, expected, strict=True)
        )
    if isinstance(served, datetime) and isinstance(expected, datetime):
        return served.replace(microsecond=0) == expected.replace(microsecond=0)
    if isinstance(served, str) and isinstance(expected, str) and served.strip() == expected.strip():
        return True
    return _equal_numbers(_number(served), _number(expected))


def _nulls(column: pa.Array) -> Bools:
    return np.asarray(column.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _same_floats(served: pa.Array, expected: pa.Array) -> Bools:
    one = served.fill_null(0.0).to_numpy(zero_copy_only=False)
    other = expected.fill_null(0.0).to_numpy(zero_copy_only=False)
    bits = np.dtype(f"u{one.dtype.itemsize}")
    both_nan = np.isnan(one) & np.isnan(other)
    return np.asarray((one.view(bits) == other.view(bits)) | both_nan, dtype=np.bool_)


def _stands_for_null(value: Any) -> bool:
    """Whether a value is what null becomes where a type has no null."""
    return (isinstance(value, float) and math.isnan(value)) or value in (0, "", b"", [])


def _number(value: Any) -> float | int | None:
    if isinstance(value, (bool, int, float)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _equal_numbers(served: float | None, expected: float | None) -> bool:
    if served is None or expected is None:
        return False
    if math.isnan(served) or math.isnan(expected):
        return math.isnan(served) and math.isnan(expected)
    if float(served) == float(expected):
        return True
    if math.isinf(served) or math.isinf(expected):
        return False
    with np.errstate(over="ignore"):
        if np.float32(served) == np.float32(expected):
            return True
    # A cast to an integer cuts the fraction off, so only a whole number can come of it.
    return served == math.trunc(expected)
