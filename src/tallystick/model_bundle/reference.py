"""Reference statistics of a training column, and the shares of new values in the same bins."""

from __future__ import annotations

from typing import Any

import numpy as np

from tallystick.definitions.contract import FeatureReference
from tallystick.definitions.feature_types import feature_type

BINS = 10
CATEGORIES_MAX = 50
Shares = np.ndarray[Any, np.dtype[np.float64]]


def feature_reference(column: Any, dtype: str) -> FeatureReference:
    """Summarise an Arrow column: deciles of a number, or the most frequent texts."""
    rows = len(column)
    null_share = column.null_count / rows if rows else 0.0
    if feature_type(dtype).is_number:
        numbers = _numbers(column)
        if not len(numbers):
            return FeatureReference(rows=rows, null_share=null_share)
        inner = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]))
        edges = tuple(float(edge) for edge in inner)
        return FeatureReference(
            rows=rows,
            null_share=null_share,
            edges=edges,
            shares=tuple(_histogram(numbers, edges)),
            mean=float(numbers.mean()),
            std=float(numbers.std()),
        )
    counts = column.drop_null().cast("string").value_counts().to_pylist()
    counts.sort(key=lambda item: (-item["counts"], item["values"]))
    categories = tuple(item["values"] for item in counts[:CATEGORIES_MAX])
    return FeatureReference(
        rows=rows,
        null_share=null_share,
        categories=categories,
        shares=tuple(_category_shares(column, categories)),
    )


def shares_now(column: Any, reference: FeatureReference) -> Shares:
    """Shares of an Arrow column's non-null values in the reference's bins or categories.

    Returns:
        Shares of shape (bins,), in the order of ``reference.shares``; zeros without values.
    """
    if reference.categories:
        return _category_shares(column, reference.categories)
    return _histogram(_numbers(column), reference.edges)


def _numbers(column: Any) -> Shares:
    """Finite values of an Arrow column as float64, without nulls."""
    import pyarrow as pa

    values = column.drop_null()
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.int8())
    numbers = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(numbers[np.isfinite(numbers)], dtype=np.float64)


def _histogram(numbers: Shares, edges: tuple[float, ...]) -> Shares:
    """Shares in the bins between the edges, each bin with its upper edge."""
    bins = np.searchsorted(np.array(edges), numbers, side="left")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return counts / max(len(numbers), 1)


def _category_shares(column: Any, categories: tuple[str, ...]) -> Shares:
    counts = dict.fromkeys(categories, 0)
    others = 0
    for item in column.drop_null().cast("string").value_counts().to_pylist():
        if item["values"] in counts:
            counts[item["values"]] += item["counts"]
        else:
            others += item["counts"]
    values = np.array([*counts.values(), others], dtype=np.float64)
    return values / max(float(values.sum()), 1.0)
