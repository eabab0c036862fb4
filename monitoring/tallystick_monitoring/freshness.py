"""Age of served values against training, from the log alone: cheap enough for every hour."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import SECOND_US
from tallystick.definitions.contract import ModelContract
from tallystick.point_in_time.feature_status import Status
from tallystick.records.record_store import ViewFreshness
from tallystick_monitoring.log_columns import NO_TIME, is_value, microseconds

REQUESTS_MIN = 10
"""Requests below which a view is not called stale."""

MATERIALIZED_EVERY_S = 3_600.0
"""Age that the way online may add to a value: views are materialized hourly at least."""

ABSENT_MORE_MIN = 0.1
"""By how much more values must be absent than in training to matter."""


def freshness(contract: ModelContract, tables: Sequence[pa.Table]) -> dict[str, ViewFreshness]:
    """How old each view's values were at request time, and how often there was none.

    A view is stale when the median age is more than the 99th percentile of training and one
    materialization interval, or when far more values are absent than in training: by
    :data:`ABSENT_MORE_MIN`, and by four standard errors. A view whose
    values never changed in training has no usual age: it only gets older.

    Args:
        contract: What training saw.
        tables: Parts of the log.

    Returns:
        Name of the view → what was found, for the views that the log has.
    """
    answer = {}
    for view, trained in contract.reference.views.items():
        status, event = f"view.{view}.status", f"view.{view}.event_time"
        columns = ["request_time", status, event]
        having = [table.select(columns) for table in tables if status in table.column_names]
        if not having:
            continue
        table = pa.concat_tables(having)
        # Requests under a contract without the view have no status of it.
        table = table.filter(pc.is_valid(table[status]))
        if not table.num_rows:
            continue
        present = is_value(table[status], Status.PRESENT)
        event_us = microseconds(table[event])[present]
        request_us = microseconds(table["request_time"])[present]
        ages_s = (request_us - np.where(event_us == NO_TIME, 0, event_us)) / SECOND_US
        median = float(np.median(ages_s)) if len(ages_s) else None
        limit = None if trained.age_s_p99 is None else trained.age_s_p99 + MATERIALIZED_EVERY_S
        requests = len(present)
        absent = 1.0 - len(ages_s) / requests
        too_old = median is not None and limit is not None and median > limit
        answer[view] = ViewFreshness(
            requests=requests,
            absent_share=absent,
            absent_share_reference=trained.absent_share,
            age_s_p50=median,
            age_s_limit=limit,
            stale=requests >= REQUESTS_MIN
            and (too_old or _absent_too_often(absent, trained.absent_share, requests)),
        )
    return answer


def _absent_too_often(share: float, reference: float, requests: int) -> bool:
    usual = max(reference, 1.0 / requests)
    error = sqrt(usual * max(1.0 - usual, 0.0) / requests)
    return share - reference > max(ABSENT_MORE_MIN, 4.0 * error)
