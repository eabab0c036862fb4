"""The one place that knows how the audit gives its findings."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa

from tallystick.repo import Repo
from tallystick_monitoring.parity import audit_log

SCHEMA: Final = pa.schema(
    [("prediction_id", pa.string()), ("feature", pa.string()), ("cause", pa.string())]
)


def found(repo: Repo, model: str, start: datetime, end: datetime) -> pa.Table:
    """Audit the requests of [start, end) of a model.

    Returns:
        One row per wrong value: ``prediction_id``, ``feature`` (``view__feature``), ``cause``.
    """
    parts = []
    for finding in audit_log(repo, model, start=start, end=end).findings:
        ids = finding.part.table["prediction_id"].take(pa.array(finding.rows))
        parts.append(
            pa.table(
                [
                    ids.combine_chunks(),
                    pa.array(np.array(finding.features, dtype=object)[finding.feature]),
                    pa.array(np.array(finding.causes, dtype=object)[finding.cause]),
                ],
                schema=SCHEMA,
            )
        )
    return pa.concat_tables(parts) if parts else SCHEMA.empty_table()
