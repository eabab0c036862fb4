"""Columns of values in either form: a list with None for null, or an array without null."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def plain(column: Any) -> list[Any]:
    """A column as a list of Python values: a list as it is, NumPy, Arrow or a sequence as one."""
    if isinstance(column, list):
        return column
    if hasattr(column, "to_pylist"):
        return list(column.to_pylist())
    return list(column.tolist() if hasattr(column, "tolist") else column)


def joined(columns: Sequence[Any]) -> Any:
    """Columns one after the other: an array if all are, else a list.

    Args:
        columns: Lists or arrays, at least one.
    """
    if any(isinstance(column, list) for column in columns):
        values: list[Any] = []
        for column in columns:
            values += plain(column)
        return values
    import numpy as np

    return np.concatenate(columns)
