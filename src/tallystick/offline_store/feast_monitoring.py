"""Feast's monitoring of an offline store: profiles of features, and the files that hold them.

Feast computes the profiles (``feast monitor``) over rows that are read here. They are written to
Parquet files beside the repo, under Feast's names, each replaced in one step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.monitoring.metrics_calculator import MetricsCalculator
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    MONITORING_PARQUET_FILES,
    monitoring_parquet_meta,
    normalize_monitoring_row,
)

from tallystick.clock import from_us
from tallystick.errors import DataError
from tallystick.offline_store.duckdb_connection import EngineLimits, query_table
from tallystick.offline_store.pull import Pull, pull_all, rows_sql
from tallystick.offline_store.sources.file_source import SourceFiles, open_source
from tallystick.offline_store.sources.parquet_writer import write_file
from tallystick.storage.locks import writer_lock

_TIMES: Final = frozenset({"computed_at", "max_event_timestamp", "started_at", "completed_at"})


def feature_metrics(
    source: DataSource,
    features: Sequence[tuple[str, str]],
    *,
    event: str,
    start: datetime | None,
    end: datetime | None,
    bins: int,
    top: int,
    config: EngineLimits | None,
    repo_path: Path | str | None,
) -> list[dict[str, Any]]:
    """Metrics of features among a source's rows with an event time in [start, end].

    Args:
        source: A Feast ``FileSource``.
        features: Name, and ``numeric`` or ``categorical``; others, and those that the source lacks,
            are left out.
        event: Column of the event time.
        start: None for an open bound.
        end: None for an open bound.
        bins: Bins of a number's histogram.
        top: Values of a category that are counted one by one.
        config: Limits of the engine.
        repo_path: Folder from which a relative path is taken.

    Returns:
        One mapping per feature, as Feast's monitoring has them. Numbers that are not finite count
        as rows, and in nothing else.
    """
    names = open_source(source, repo_path).schema.names
    mapped = {new: old for old, new in (source.field_mapping or {}).items()}
    chosen = [
        (name, kind, mapped.get(name, name))
        for name, kind in features
        if mapped.get(name, name) in names and kind in {"numeric", "categorical"}
    ]
    pull = Pull(
        keys=(),
        features=tuple(dict.fromkeys(column for _, _, column in chosen)),
        event=event,
        created=None,
        start=start,
        end=end,
    )
    rows = pull_all(source, pull, config=config, repo_path=repo_path)
    calculator = MetricsCalculator(histogram_bins=bins, top_n=top)
    metrics = []
    for name, kind, column in chosen:
        values = rows[column]
        if kind == "categorical":
            metric = calculator.compute_categorical(values.combine_chunks())
        else:
            numbers = values.cast(pa.float64(), safe=False)
            metric = calculator.compute_numeric(
                pc.if_else(pc.is_finite(numbers), numbers, None).combine_chunks()
            )
            rate = values.null_count / len(values) if len(values) else 0.0
            metric |= {"null_count": values.null_count, "null_rate": rate}
        metrics.append({"feature_name": name, **metric})
    return metrics


def latest_event(
    source: DataSource, event: str, *, config: EngineLimits | None, repo_path: Path | str | None
) -> datetime | None:
    """The last event time of a source; None where it has no rows, or no file yet."""
    try:
        files: SourceFiles = open_source(source, repo_path)
    except DataError:
        return None
    pull = Pull(keys=(), features=(), event=event, created=None, start=None, end=None)
    sql = f"SELECT max(event_us) AS last FROM ({rows_sql(files, pull)}) AS pulled"
    last = query_table(config, sql, what=f"the source {files.label}")["last"][0].as_py()
    return None if last is None else from_us(last)


class MetricFiles:
    """The files of Feast's monitoring metrics.

    Args:
        repo_path: The repo's folder.
    """

    def __init__(self, repo_path: Path | str | None) -> None:
        self._folder = Path(repo_path or ".") / MONITORING_DIR

    def ensure(self) -> None:
        """Make the files that are not there yet."""
        for kind in MONITORING_PARQUET_FILES:
            name, columns, _ = monitoring_parquet_meta(kind)
            with writer_lock(self._folder / name):
                if not (self._folder / name).exists():
                    write_file(pa.table({column: [] for column in columns}), self._folder / name)

    def save(self, kind: str, metrics: Sequence[Mapping[str, Any]]) -> None:
        """Add metrics; those with the same key are replaced.

        Args:
            kind: ``feature``, ``feature_view``, ``feature_service`` or ``job``.
            metrics: By Feast's columns.
        """
        name, columns, key = monitoring_parquet_meta(kind)
        with writer_lock(self._folder / name):
            rows = {_key(row, key): row for row in self._read(name)}
            for metric in metrics:
                row = {column: _stored(column, metric.get(column)) for column in columns}
                rows[_key(row, key)] = row
            write_file(pa.Table.from_pylist(list(rows.values())), self._folder / name)

    def query(
        self,
        kind: str,
        *,
        project: str,
        filters: Mapping[str, Any],
        start: date | None,
        end: date | None,
    ) -> list[dict[str, Any]]:
        """Metrics of a project from ``start`` to ``end``, both included, by date."""
        name, _, _ = monitoring_parquet_meta(kind)
        rows = [
            row
            for row in self._read(name)
            if (not project or row["project_id"] == project)
            and all(row[at] == value for at, value in filters.items() if value is not None)
            and (start is None or _day(row["metric_date"]) >= _day(start))
            and (end is None or _day(row["metric_date"]) <= _day(end))
        ]
        rows.sort(key=lambda row: _day(row["metric_date"]))
        return [dict(normalize_monitoring_row(row)) for row in rows]

    def clear_baseline(self, project: str, **matching: str | None) -> None:
        """Have no metrics of features be a baseline that match."""
        name, _, _ = monitoring_parquet_meta("feature")
        filters = {"project_id": project} | {at: value for at, value in matching.items() if value}
        with writer_lock(self._folder / name):
            rows = self._read(name)
            for row in rows:
                if all(row[at] == value for at, value in filters.items()):
                    row["is_baseline"] = False
            if rows:
                write_file(pa.Table.from_pylist(rows), self._folder / name)

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self._folder / name
        return pq.read_table(path).to_pylist() if path.exists() else []


def _stored(column: str, value: Any) -> Any:
    """A value as it is stored; dates and times may be text, and times without a zone are UTC."""
    if value is None:
        return None
    if column == "metric_date":
        return _day(value)
    if column in _TIMES:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return json.dumps(value, default=str) if isinstance(value, dict | list) else value


def _day(value: date | datetime | str | None) -> date:
    if isinstance(value, str):
        value = datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return value.date()
    return value or date.min


def _key(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    return tuple(
        str(_day(row[column])) if column == "metric_date" else str(row[column])
        for column in columns
    )
