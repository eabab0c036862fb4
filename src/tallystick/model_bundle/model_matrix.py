"""The model matrix: named feature columns in the contract's order, as the estimator takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import SECOND_US, to_us
from tallystick.definitions.columns import plain
from tallystick.definitions.contract import FeatureSpec, ModelInputs

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_PLAIN = {list, tuple, np.ndarray}


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
        if {type(columns[feature.name]) for feature in inputs.features} <= _PLAIN:
            return _matrix_of_plain(inputs, columns)
        rows = len(columns[inputs.features[0].name]) if inputs.features else 0
        matrix = np.empty((rows, len(inputs.features)), dtype=np.float64)
        for position, feature in enumerate(inputs.features):
            matrix[:, position] = _numbers(columns[feature.name], feature)
        return matrix
    import pandas as pd

    return pd.DataFrame(
        {
            feature.name: (
                pd.Series(plain(columns[feature.name]), dtype=object)
                if feature.dtype == "STRING"
                else _numbers(columns[feature.name], feature)
            )
            for feature in inputs.features
        }
    )


def _matrix_of_plain(
    inputs: ModelInputs, columns: Mapping[str, Sequence[Any] | pa.ChunkedArray]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The array from plain values by one call; it takes None for NaN."""
    given = [
        _seconds(columns[feature.name])
        if feature.dtype == "UNIX_TIMESTAMP"
        else columns[feature.name]
        for feature in inputs.features
    ]
    if given and len(given[0]) == 1:
        return np.array([[column[0] for column in given]], dtype=np.float64)
    transposed = np.array(given, dtype=np.float64).reshape(len(given), -1)
    return np.ascontiguousarray(transposed.T)


def _seconds(column: Sequence[Any] | pa.ChunkedArray) -> list[float | None]:
    return [None if value is None else to_us(value) / SECOND_US for value in column]


def _numbers(column: Sequence[Any] | pa.ChunkedArray, feature: FeatureSpec) -> Any:
    if hasattr(column, "to_pylist"):
        return _numbers_of_arrow(column, feature)
    if feature.dtype == "UNIX_TIMESTAMP":
        column = _seconds(column)
    return np.array(column, dtype=np.float64)


def _numbers_of_arrow(column: Any, feature: FeatureSpec) -> Any:
    import pyarrow as pa

    if feature.dtype == "UNIX_TIMESTAMP":
        whole = column.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
        return whole.to_numpy(zero_copy_only=False).astype(np.float64) / SECOND_US
    # Not safe: an integer beyond 2^53 goes to the nearest double, as it does from plain values.
    numbers = column.cast(pa.int8() if feature.dtype == "BOOL" else column.type)
    return numbers.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
