"""The model matrix: named feature columns in the contract's order, as the estimator takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import SECOND_US, arrow_to_us, to_us
from tallystick.definitions.columns import plain
from tallystick.definitions.contract import FeatureSpec, ModelInputs
from tallystick.definitions.feature_types import FEATURE_TYPES, Kind

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PLAIN = {list, tuple, np.ndarray}
_TIMES = {name for name, own in FEATURE_TYPES.items() if own.is_time}
_TEXTS = {name for name, own in FEATURE_TYPES.items() if own.kind is Kind.TEXT}


def feature_matrix(
    inputs: ModelInputs, columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
) -> np.ndarray[Any, np.dtype[np.float64]] | pd.DataFrame:
    """Lay out features for the estimator.

    Args:
        inputs: What the model takes, in its order.
        columns: ``view__feature`` → one value per row: plain values with None for null, NumPy
            without null, or Arrow.

    Returns:
        A float64 array of shape (rows, features) with NaN for null; or, where ``inputs.frame``, a
        DataFrame of float64 and text columns. Booleans are 0 and 1, times are seconds since 1970.
    """
    if not inputs.frame:
        given = [columns[name] for name in inputs.feature_names]
        if {*map(type, given)} <= _PLAIN:
            return _matrix_of_plain(inputs, given)
        matrix = np.empty((len(given[0]), len(given)), dtype=np.float64)
        for position, feature in enumerate(inputs.features):
            matrix[:, position] = _numbers(given[position], feature)
        return matrix
    import pandas as pd

    return pd.DataFrame(
        {
            feature.name: (
                pd.Series(plain(columns[feature.name]), dtype=object)
                if feature.dtype in _TEXTS
                else _numbers(columns[feature.name], feature)
            )
            for feature in inputs.features
        }
    )


def _matrix_of_plain(
    inputs: ModelInputs, columns: Sequence[Any]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The array from plain values by one call; it takes None for NaN."""
    given = [
        _seconds(column) if feature.dtype in _TIMES else column
        for feature, column in zip(inputs.features, columns, strict=True)
    ]
    if given and len(given[0]) == 1:
        return np.array([[column[0] for column in given]], dtype=np.float64)
    transposed = np.array(given, dtype=np.float64).reshape(len(given), -1)
    return np.ascontiguousarray(transposed.T)


def _seconds(column: Sequence[Any]) -> list[float | None]:
    return [None if value is None else to_us(value) / SECOND_US for value in column]


def _numbers(column: Any, feature: FeatureSpec) -> Any:
    if not hasattr(column, "to_pylist"):
        plain_numbers = _seconds(column) if feature.dtype in _TIMES else column
        return np.array(plain_numbers, dtype=np.float64)
    import pyarrow as pa

    if feature.dtype in _TIMES:
        whole = arrow_to_us(column).to_numpy(zero_copy_only=False)
        return whole.astype(np.float64) / SECOND_US
    # Not safe: an integer beyond 2^53 goes to the nearest double, as it does from plain values.
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
