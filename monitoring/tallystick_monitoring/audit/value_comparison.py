"""Comparison of served with expected values, for one part of the log.

Stored features are recomputed by the point-in-time rule, once for all requests of the part, and
compared bit for bit. On-demand features are recomputed from the *logged* inputs with the contract's
frozen functions, so that a wrong input is counted once, where it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
        expected: The stored features of its requests, with times, row by row.
        equal: ``view__feature`` of stored features → whether served and expected are the same bits,
            of shape (requests,).
        computed: On-demand features from the logged inputs; None where there are none, or where
            their functions cannot be had.
        computed_equal: As ``equal``, of on-demand features.
    """

    part: LogPart
    expected: pa.Table
    equal: Mapping[str, Bools]
    computed: pa.Table | None
    computed_equal: Mapping[str, Bools]

    def all_equal(self) -> Bools:
        """Whether every value of a request is the expected one."""
        whole = np.ones(self.part.table.num_rows, dtype=np.bool_)
        for column in (*self.equal.values(), *self.computed_equal.values()):
            whole &= column
        return whole


def compared(
    repo: Repo, part: LogPart, transforms: Transforms | None, *, clock: VisibilityClock
) -> ComparedPart:
    """Compare every value of a part of the log.

    Raises:
        DataError: A source is not as declared, or the clock asks for a time that it does not have.
        DefinitionError: A frozen function fails.
    """
    contract, log = part.contract, part.table
    expected = expected_values(repo, contract, log, clock=clock, with_times=True)
    types = contract.stored_columns
    equal = {
        name: same_bits(one_chunk(log[f"feature.{name}"]), one_chunk(expected[name]))
        for name in types
    }
    computed, computed_equal = None, {}
    if transforms is not None and contract.transforms:
        computed = recomputed(contract, transforms, log)
        computed_equal = {
            name: same_bits(one_chunk(log[f"feature.{name}"]), one_chunk(computed[name]))
            for name in contract.value_columns
            if name not in types
        }
    return ComparedPart(
        part=part, expected=expected, equal=equal, computed=computed, computed_equal=computed_equal
    )


def wrong_values(use: ViewUse, equal: Mapping[str, Bools]) -> Iterator[tuple[str, Int64s]]:
    """Features of a view (``view__feature``) with the rows in which they differ, if any."""
    for column in use.columns:
        rows = np.flatnonzero(~equal[f"{use.name}__{column}"])
        if len(rows):
            yield f"{use.name}__{column}", rows


def expected_times(expected: pa.Table, use: ViewUse) -> tuple[Int64s, Int64s]:
    """Event and created time of the expected rows of a view; created is never absent with event."""
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
