"""What was compared, hour by hour: the counts that a report is made of, beside the findings.

One row per contract, hour and thing counted:

==============  ======================  ============  ==========================================
``kind``        ``name``                ``bucket``    ``count``
==============  ======================  ============  ==========================================
``rows``                                              predictions, ``mark`` is a hash of their ids
``age``         view                    age bucket    requests that were served a row of that age
``unstamped``   view                                  rows from a store that does not say when they
                                                      were written
``field``       ``field=view__feature``               requests in which both were there
``unequal``     ``field=view__feature``               those of them in which they differ
==============  ======================  ============  ==========================================

Ages are counted by the logarithm, in buckets of 5%: what is added up later is right within 2.5%.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallystick.definitions.contract import ModelContract
from tallystick.point_in_time.feature_status import Status
from tallystick.prediction_log.log_reader import LogPart
from tallystick_monitoring.equality import same_bits
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Bools,
    Int64s,
    hours_of_times,
    is_value,
    microseconds,
    one_chunk,
)

_WIDTH: Final = log(1.05)


def schema() -> pa.Schema:
    """The schema of the counts."""
    return pa.schema(
        [
            pa.field("contract", pa.string()),
            pa.field("hour", pa.int64()),
            pa.field("kind", pa.string()),
            pa.field("name", pa.string()),
            pa.field("bucket", pa.int32()),
            pa.field("count", pa.int64()),
            pa.field("mark", pa.int64()),
        ]
    )


def counts(
    contract_hash: str,
    hours: Any,
    rows: Any,
    *,
    kind: str,
    name: str = "",
    buckets: Any = 0,
    marks: Any = 0,
) -> pa.Table:
    """The counts of one thing, ``rows`` in each of some hours."""
    none = np.zeros(len(hours), dtype=np.int64)
    columns = {
        "contract": pa.repeat(contract_hash, len(hours)),
        "hour": hours,
        "kind": pa.repeat(kind, len(hours)),
        "name": pa.repeat(name, len(hours)),
        "bucket": none + buckets,
        "count": rows,
        "mark": none + marks,
    }
    return pa.table(columns).cast(schema())


def counted(part: LogPart) -> pa.Table:
    """Count a part of the log, but for its rows: ``rows``."""
    hours = hours_of_times(part.table["request_time"])
    tables = [schema().empty_table()]
    for kind, name, rows, buckets in _things(part):
        # Hours since 1970 and buckets are small: one number tells both.
        pairs, found = np.unique(hours[rows] * 65_536 + buckets, return_counts=True)
        hash_, of_pairs = part.contract.contract_hash, pairs // 65_536
        tables.append(counts(hash_, of_pairs, found, kind=kind, name=name, buckets=pairs % 65_536))
    return pa.concat_tables(tables)


def _things(part: LogPart) -> Iterator[tuple[str, str, Bools, Int64s | int]]:
    """Kind, name, rows and their buckets of what is counted."""
    log = part.table
    request_us = microseconds(log["request_time"])
    for use in part.contract.views:
        event_us = microseconds(log[f"view.{use.name}.event_time"])
        write_us = microseconds(log[f"view.{use.name}.write_time"])
        present = is_value(log[f"view.{use.name}.status"], Status.PRESENT)
        served = present & (event_us != NO_TIME)
        yield "age", use.name, served, age_buckets(request_us[served] - event_us[served])
        unstamped = ((event_us != NO_TIME) | present) & (write_us == NO_TIME)
        yield "unstamped", use.name, unstamped, 0
    for field, feature in request_features(part.contract):
        ours, theirs = one_chunk(log[f"request.{field}"]), one_chunk(log[f"feature.{feature}"])
        both = ~(ours.is_null().to_numpy(False) | theirs.is_null().to_numpy(False))
        same = same_bits(ours, theirs) if ours.type == theirs.type else _same_numbers(ours, theirs)
        yield "field", f"{field}={feature}", both, 0
        yield "unequal", f"{field}={feature}", both & ~same, 0


def request_features(contract: ModelContract) -> Iterator[tuple[str, str]]:
    """Request fields that are features as well, with the feature."""
    for field in contract.request_fields:
        for use in contract.views:
            if field.name in use.columns:
                yield field.name, f"{use.name}__{field.name}"


def _same_numbers(ours: pa.Array, theirs: pa.Array) -> Any:
    """Whether values of two types are one."""
    pairs = zip(ours.to_pylist(), theirs.to_pylist(), strict=True)
    return np.array([one == other for one, other in pairs], dtype=np.bool_)


def age_buckets(ages_us: Int64s) -> Int64s:
    """Bucket of each age in microseconds. What is from the future counts as new."""
    seconds = np.maximum(ages_us, 0) / 1_000_000
    return np.floor(np.log1p(seconds) / _WIDTH).astype(np.int64)


def age_of(bucket: float) -> float:
    """The age in seconds in the middle of a bucket."""
    return float(np.expm1((bucket + 0.5) * _WIDTH))
