"""The one place that knows how the audit gives its findings."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import numpy as np
import pyarrow as pa

from tallystick.errors import DamagedError
from tallystick.prediction_log.compaction import forget_file
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.manifest import read_manifests
from tallystick.prediction_log.sink import Sink
from tallystick.prediction_log.streams import PREDICTIONS
from tallystick.repo import Repo
from tallystick_monitoring.parity import audit_log

SCHEMA: Final = pa.schema(
    [("prediction_id", pa.string()), ("feature", pa.string()), ("cause", pa.string())]
)


def found(repo: Repo, model: str, start: datetime, end: datetime) -> pa.Table:
    """Audit the requests of [start, end) of a model under the knowledge clock.

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


def found_by_event_time(repo: Repo, model: str, start: datetime, end: datetime) -> pa.Table | None:
    """The same under the event clock; None as long as the audit has no such clock."""
    del repo, model, start, end
    return None


def found_damage(repo: Repo, model: str, start: datetime, end: datetime) -> tuple[int, pa.Table]:
    """Audit a damaged log.

    A damaged file is an error that names it; it is taken out, as the error says.

    Returns:
        How many predictions are said to be lost to damage, and what :func:`found` gives of the
        others.
    """
    sink = Sink.of(repo.state_dir)
    forgotten = 0
    while True:
        try:
            findings = found(repo, model, start, end)
        except DamagedError as error:
            manifests = read_manifests(sink, PREDICTIONS.name).values()
            named = [
                file.path
                for manifest in manifests
                for file in manifest.files
                if sink.text(file.path) in str(error)
            ]
            if not named:
                raise
            forgotten += sum(forget_file(repo.state_dir, path) for path in named)
        else:
            return ledger_of(repo.state_dir, PREDICTIONS).lost + forgotten, findings
