"""Ensembles of small trees, evaluated for all trees at once by a few numpy calls.

The method is that of Lucchese et al., "QuickScorer: a fast algorithm to rank documents with
additive ensembles of regression trees" (SIGIR 2015). Bits stand for the leaves of a tree, from left
to right. A split that sends a row to the right rules out the leaves of its left branch, whether the
row gets there or not; the first leaf that no split rules out is where the row ends. The position
of a value among all thresholds of its feature says which splits send it to the right, so that the
remaining leaves of every tree are looked up in one table.

Sums are made in scikit-learn's order and with its logistic function, so that the probabilities of
boosting are the same to the last bit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from tallystick.model_bundle.compiled import CompiledFormError, Floats, first_line

FORMAT = 1
"""Version of the bytes."""

LEAVES_MAX = 64
"""Leaves of a tree for which there are bits."""

COST_MAX = 256
"""Features times bytes of a mask up to which this is quicker than walking the trees (measured)."""

TABLE_BYTES_MAX = 32 << 20

CHUNK_BYTES = 1 << 20
"""Masks that are looked up at once, so that they stay in the processor's cache."""

ROWS_MAX = 4096
"""Rows whose table positions are computed at once."""

ROWS_FEW = 8
"""Rows up to which one comparison with every threshold is quicker than a search by feature."""

Table = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tree:
    """One tree; everything is by node, the root first.

    Attributes:
        left: Node for rows that are not past the threshold; -1 at a leaf.
        right: Node for the others.
        feature: Feature that is compared.
        threshold: What it is compared with: not past it goes left.
        null_left: Whether null goes left.
        value: What a leaf adds.
    """

    left: Table
    right: Table
    feature: Table
    threshold: Floats
    null_left: Table
    value: Floats


@dataclass(frozen=True)
class _Split:
    feature: int
    threshold: float
    tree: int
    left_leaves: int
    null_left: bool


class LeafMasks:
    """An ensemble of trees as tables of leaves that are ruled out.

    Args:
        arrays: The tables, as :meth:`of` and :meth:`from_bytes` give them.
    """

    def __init__(self, arrays: Mapping[str, Table]) -> None:
        # Comes with scikit-learn, which uses it too.
        from scipy.special import expit

        self._logistic = expit
        self._arrays = dict(arrays)
        self.features = int(arrays["features"])
        self._used = arrays["used"]
        self._thresholds = arrays["thresholds"]
        self._first_threshold = arrays["first_threshold"]
        self._masks = arrays["masks"]
        self._first_mask = arrays["first_mask"]
        self._values = arrays["values"].ravel()
        self._base = float(arrays["base"])
        self._averages = bool(arrays["averages"])
        trees, leaves = arrays["values"].shape
        self._first_value = np.arange(trees) * leaves
        counts = np.diff(self._first_threshold, append=len(self._thresholds))
        self._of_threshold = np.repeat(self._used, counts)
        # The last mask of a feature is that of null.
        self._null_mask = self._first_mask + counts + 1
        self._sorted = np.split(self._thresholds, self._first_threshold[1:])
        self._one = self._masks.dtype.type(1)
        per_row = len(self._used) * trees * self._masks.itemsize
        self._chunk = max(1, CHUNK_BYTES // per_row)

    @classmethod
    def of(cls, trees: Sequence[Tree], *, features: int, base: float, averages: bool) -> LeafMasks:
        """Make the tables.

        Args:
            trees: The trees.
            features: Features of a row.
            base: What is added before any tree.
            averages: Whether the mean of the trees is a probability; else their sum is a logit.

        Raises:
            CompiledFormError: The tables would be too large; walk the trees instead.
        """
        splits, values = _splits(trees)
        if not splits:
            raise CompiledFormError("no tree has a split")
        if max(len(tree) for tree in values) > LEAVES_MAX:
            raise CompiledFormError(f"a tree has more than {LEAVES_MAX} leaves")
        if any(np.isnan(split.threshold) for split in splits):
            raise CompiledFormError("a threshold is NaN")
        leaves = max(len(tree) for tree in values)
        dtype = np.dtype(f"u{next(size for size in (1, 2, 4, 8) if leaves <= 8 * size)}")
        used = sorted({split.feature for split in splits})
        cuts = {(split.feature, split.threshold) for split in splits}
        size = (len(cuts) + 2 * len(used)) * len(trees) * dtype.itemsize
        if len(used) * dtype.itemsize > COST_MAX or size > TABLE_BYTES_MAX:
            raise CompiledFormError("the tables would be too large")
        thresholds: list[float] = []
        masks: list[Table] = []
        first_threshold, first_mask = [], []
        for feature in used:
            first_threshold.append(len(thresholds))
            first_mask.append(len(masks))
            own = [split for split in splits if split.feature == feature]
            found, rows = _ruled_out(own, trees=len(trees), dtype=dtype)
            thresholds += found
            masks += rows
        return cls(
            {
                "format": np.array(FORMAT),
                "features": np.array(features),
                "used": np.array(used, dtype=np.intp),
                "thresholds": np.array(thresholds),
                "first_threshold": np.array(first_threshold, dtype=np.intp),
                "masks": np.array(masks, dtype=dtype),
                "first_mask": np.array(first_mask, dtype=np.intp),
                "values": np.array([tree + [0.0] * (leaves - len(tree)) for tree in values]),
                "base": np.array(base),
                "averages": np.array(averages),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> LeafMasks:
        """Load the tables from the bytes of :meth:`to_bytes`.

        Raises:
            CompiledFormError: The bytes are not tables of this version.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            found = int(arrays["format"])
            masks = cls(arrays)
        except Exception as error:
            # Any exception: numpy's reader raises whatever the bytes lead to.
            raise CompiledFormError(f"its tables cannot be read: {first_line(error)}") from error
        if found != FORMAT:
            raise CompiledFormError(f"its tables are of format {found}, not {FORMAT}")
        return masks

    def to_bytes(self) -> bytes:
        """The tables as bytes."""
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **self._arrays)
        return file.getvalue()

    def thresholds(self) -> dict[int, Floats]:
        """Feature → its thresholds in all trees."""
        return dict(zip(self._used.tolist(), self._sorted, strict=True))

    def predict(self, matrix: Floats) -> Floats:
        """Probability of 1 in each row, of shape (rows,).

        Args:
            matrix: Float64 of shape (rows, features).
        """
        starts = range(0, len(matrix), ROWS_MAX)
        sums = _joined([self._sums(matrix[at : at + ROWS_MAX]) for at in starts])
        found: Floats = sums / len(self._first_value) if self._averages else self._logistic(sums)
        return found

    def _sums(self, matrix: Floats) -> Floats:
        positions = self._positions(matrix)
        starts = range(0, len(matrix), self._chunk)
        return _joined([self._sums_at(positions[at : at + self._chunk]) for at in starts])

    def _sums_at(self, positions: Table) -> Floats:
        left = np.bitwise_and.reduce(self._masks.take(positions, axis=0), axis=1)
        # Where the lowest bit is: keep it alone, turn the zeros below it into ones, count them.
        left &= ~left + self._one
        left -= self._one
        terms = np.empty((len(positions), len(self._first_value) + 1))
        terms[:, 0] = self._base
        self._values.take(np.bitwise_count(left) + self._first_value, out=terms[:, 1:], mode="clip")
        # One after the other, as scikit-learn adds them; a sum would take them in pairs.
        sums: Floats = np.add.accumulate(terms, axis=1)[:, -1]
        return sums

    def _positions(self, matrix: Floats) -> Table:
        """Row of the table for each row and each feature that is used."""
        values = matrix.take(self._used, axis=1)
        if len(matrix) <= ROWS_FEW:
            past = self._thresholds < matrix.take(self._of_threshold, axis=1)
            positions = np.add.reduceat(past, self._first_threshold, axis=1, dtype=np.intp)
        else:
            positions = np.empty(values.shape, dtype=np.intp)
            columns = np.ascontiguousarray(values.T)
            for position, thresholds in enumerate(self._sorted):
                positions[:, position] = thresholds.searchsorted(columns[position])
        positions += self._first_mask
        np.copyto(positions, self._null_mask, where=np.isnan(values))
        return positions


def _joined(parts: Sequence[Floats]) -> Floats:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _splits(trees: Sequence[Tree]) -> tuple[list[_Split], list[list[float]]]:
    """Every split with the leaves of its left branch as bits; and the leaves of each tree in order.

    A tree with more leaves than bits contributes none of its splits.
    """
    splits: list[_Split] = []
    values: list[list[float]] = []
    for number, tree in enumerate(trees):
        leaves: list[float] = []
        # First seen, then left branch done: by a list, since a tree may be as deep as it is large.
        waiting = [(0, -1)]
        while waiting:
            node, first_leaf = waiting.pop()
            if tree.left[node] < 0:
                leaves.append(float(tree.value[node]))
            elif first_leaf < 0:
                waiting += [(node, len(leaves)), (int(tree.left[node]), -1)]
            else:
                splits.append(
                    _Split(
                        feature=int(tree.feature[node]),
                        threshold=float(tree.threshold[node]),
                        tree=number,
                        left_leaves=(1 << len(leaves)) - (1 << first_leaf),
                        null_left=bool(tree.null_left[node]),
                    )
                )
                waiting.append((int(tree.right[node]), -1))
        values.append(leaves)
    return splits, values


def _ruled_out(
    splits: Sequence[_Split], *, trees: int, dtype: np.dtype[Any]
) -> tuple[list[float], list[Table]]:
    """The thresholds of a feature, ascending, and the leaves that remain past each.

    The first mask is that of values below every threshold, the last one that of null.
    """
    every = ~dtype.type(0)
    left = np.full(trees, every)
    null = left.copy()
    thresholds: list[float] = []
    masks = [left.copy()]
    ordered = sorted(splits, key=lambda split: split.threshold)
    for threshold, group in groupby(ordered, key=lambda split: split.threshold):
        for split in group:
            remaining = every ^ dtype.type(split.left_leaves)
            left[split.tree] &= remaining
            if not split.null_left:
                null[split.tree] &= remaining
        thresholds.append(threshold)
        masks.append(left.copy())
    return thresholds, [*masks, null]
