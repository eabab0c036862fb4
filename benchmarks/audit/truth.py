"""Which values are wrong and why, from two replays side by side, and how much of it was found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.audit.replay import Cell, Fault, Key, keys_of

from tallystick.definitions.contract import ModelContract


def wrong_values(
    contract: ModelContract,
    right: pa.Table,
    served: pa.Table,
    *,
    faults: Sequence[Fault],
    edited: Iterable[Cell] = (),
) -> dict[Cell, str]:
    """The values that faults made wrong, with the cause that was injected.

    Stored values are wrong where they differ from those of a clean replay. A computed value is
    wrong where its function was edited; a wrong input counts where it is wrong, and once.

    Args:
        contract: The champion's.
        right: Log of a clean replay over history as it is now, ordered by prediction id.
        served: Log of the replay with faults, in the same order.
        faults: What was injected; no two of them have a key of one view in common.
        edited: Computed values that an edited function made otherwise.

    Raises:
        AssertionError: A value differs that no fault was to change.
    """
    if not right["prediction_id"].equals(served["prediction_id"]):
        raise AssertionError("the replays are not of the same requests")
    ids = served["prediction_id"].to_pylist()
    wrong: dict[Cell, str] = dict.fromkeys(edited, "transform")
    for use in contract.views:
        owners: dict[Key, Fault] = {
            key: fault for fault in faults if fault.view == use.name for key in fault.keys
        }
        keys = keys_of(served, use.name, prefix="entity.")
        for column in use.columns:
            name = f"{use.name}__{column}"
            for row in differing(right[f"feature.{name}"], served[f"feature.{name}"]).tolist():
                if keys[row] not in owners:
                    raise AssertionError(
                        f"{name} of {keys[row]} differs, and no fault was to change it"
                    )
                wrong[ids[row], name] = owners[keys[row]].cause_at(right, served, row)
    return wrong


def differing(one: pa.ChunkedArray, other: pa.ChunkedArray) -> Any:
    """Rows in which two columns of one type differ in null or in bits."""
    both = pc.and_(one.is_valid(), other.is_valid()).to_numpy()
    alone = pc.xor(one.is_valid(), other.is_valid()).to_numpy()
    if pa.types.is_floating(one.type):
        bits = np.dtype(f"u{one.type.bit_width // 8}")
        left, right = (
            np.ascontiguousarray(column.fill_null(0.0).to_numpy()).view(bits)
            for column in (one, other)
        )
        unequal = left != right
    else:
        unequal = pc.not_equal(one, other).fill_null(False).to_numpy()
    return np.flatnonzero(alone | (both & unequal))


@dataclass(frozen=True)
class Score:
    """How much of what was injected was found, in values, by cause.

    Attributes:
        injected: Values made wrong.
        found: Values that the audit gave the cause.
        right: Those of them that were made wrong by it.
        unexplained: Values made wrong that the audit could not explain.
    """

    injected: Counter[str]
    found: Counter[str]
    right: Counter[str]
    unexplained: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.injected + other.injected,
            self.found + other.found,
            self.right + other.right,
            self.unexplained + other.unexplained,
        )

    def precision(self, cause: str) -> float | None:
        """Share of what was given the cause that is right; None where nothing was given it."""
        return self.right[cause] / self.found[cause] if self.found[cause] else None

    def recall(self, cause: str) -> float | None:
        """Share of what was injected that was found; None where nothing was injected."""
        return self.right[cause] / self.injected[cause] if self.injected[cause] else None

    @property
    def unexplained_share(self) -> float:
        """Share of what was injected that the audit could not explain."""
        return self.unexplained / max(1, self.injected.total())


NOTHING = Score(Counter(), Counter(), Counter())


def scored(truth: Mapping[Cell, str], findings: pa.Table) -> Score:
    """Compare what the audit found with what was injected."""
    cells = zip(findings["prediction_id"].to_pylist(), findings["feature"].to_pylist(), strict=True)
    causes = findings["cause"].to_pylist()
    right: Counter[str] = Counter()
    unexplained = 0
    for cell, cause in zip(cells, causes, strict=True):
        if truth.get(cell) == cause:
            right[cause] += 1
        elif cause == "unexplained" and cell in truth:
            unexplained += 1
    return Score(Counter(truth.values()), Counter(causes), right, unexplained)
