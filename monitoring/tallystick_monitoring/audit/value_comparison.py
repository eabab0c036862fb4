"""Comparison of served with expected values, for one part of the log.

Stored features are recomputed by the point-in-time rule, once for all requests of the part, and
compared bit for bit. On-demand features are recomputed from the *logged* inputs with the contract's
frozen functions, so that a wrong input is counted once, where it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_types import arrow_type
from tallystick.offline_store.sql_dialect import key_type
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import LogPart
from tallystick.retrieval.expected_values import expected_values, recomputed
from tallystick_monitoring.audit.findings import ENTITY
from tallystick_monitoring.equality import same_bits
from tallystick_monitoring.log_columns import NO_TIME, Bools, Int64s, microseconds, one_chunk


@dataclass(frozen=True)
class ComparedPart:
    """A part of the log, and what should have been served.

    Attributes:
        part: The part.
        expected: All values, ``view__feature``, row by row: the stored ones with times, and the
            on-demand ones from the logged inputs.
        equal: ``view__feature`` → whether served and expected are the same bits, of shape
            (requests,).
    """

    part: LogPart
    expected: pa.Table
    equal: Mapping[str, Bools]

    def wrong(self, view: str, columns: Iterable[str]) -> dict[str, Int64s]:
        """Values of a view (``view__feature``) → the rows in which they differ, if any."""
        rows = {
            f"{view}__{column}": np.flatnonzero(~self.equal[f"{view}__{column}"])
            for column in columns
        }
        return {name: found for name, found in rows.items() if len(found)}


def compared(
    repo: Repo, part: LogPart, transforms: Transforms | None, *, clock: VisibilityClock
) -> ComparedPart:
    """Compare every value of a part of the log. The functions are those of its contract, if any.

    Raises:
        DataError: A source is not as declared, or the clock asks for a time that it does not have.
        DefinitionError: A frozen function fails.
    """
    contract, log = part.contract, part.table
    expected = expected_values(repo, contract, log, clock=clock, with_times=True)
    if transforms is not None:
        computed = recomputed(contract, transforms, log)
        for name in contract.value_columns:
            if name not in contract.stored_columns:
                expected = expected.append_column(name, computed[name])
    equal = {
        name: same_bits(one_chunk(log[f"feature.{name}"]), one_chunk(expected[name]))
        for name in contract.value_columns
    }
    return ComparedPart(part=part, expected=expected, equal=equal)


def expected_times(expected: pa.Table, use: ViewUse) -> tuple[Int64s, Int64s]:
    """Event and created time of the expected rows of a view. Each event has a created time."""
    event_us = microseconds(expected[f"{use.name}__event_time"])
    created_us = microseconds(expected[f"{use.name}__created_time"])
    return event_us, np.where(created_us == NO_TIME, event_us, created_us)


def key_columns(table: pa.Table, use: ViewUse) -> dict[str, Any]:
    """A view's keys, as history has them, from a table that has ``entity.<key>``."""
    columns = {}
    keys = [key for key in use.spec.join_keys if key.name in use.key_map]
    for index, key in enumerate(keys):
        column = table[ENTITY + use.key_map[key.name]].cast(arrow_type(key.dtype))
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        columns[f"key_{index}"] = column.cast(key_type(key.dtype))
    return columns or {"key_0": pa.array(np.zeros(table.num_rows, dtype=np.int32))}
