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
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.monitoring.metrics_calculator import MetricsCalculator
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    MONITORING_PARQUET_FILES,
    monitoring_parquet_meta,
    normalize_monitoring_row,
)
from feast.repo_config import RepoConfig

from tallystick.clock import from_us
from tallystick.errors import DataError
from tallystick.offline_store.duckdb_connection import EngineLimits, query_table
from tallystick.offline_store.pull import Pull, pull_rows, rows_sql
from tallystick.offline_store.sources.file_source import open_source
from tallystick.offline_store.sources.parquet_writer import write_file
from tallystick.storage.locks import writer_lock

_TIMES: Final = frozenset({"computed_at", "max_event_timestamp", "started_at", "completed_at"})


class MonitoredOfflineStore(OfflineStore):  # type: ignore[misc]
    """The part of an offline store that ``feast monitor`` uses."""

    @classmethod
    def limits(cls, config: RepoConfig) -> EngineLimits | None:  # noqa: ARG003 - some have none
        """Limits of DuckDB, which reads the rows."""
        return None

    @classmethod
    def compute_monitoring_metrics(  # noqa: PLR0917 - Feast's signature
        cls,
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Profiles and histograms of features among rows with an event time in [start, end].

        Features that the source lacks, and those that are neither ``numeric`` nor ``categorical``,
        are left out. Numbers that are not finite count as rows, and in nothing else.
        """
        names = open_source(data_source, config.repo_path).schema.names
        mapped = {new: old for old, new in (data_source.field_mapping or {}).items()}
        chosen = [
            (name, kind, mapped.get(name, name))
            for name, kind in feature_columns
            if mapped.get(name, name) in names and kind in {"numeric", "categorical"}
        ]
        pull = Pull(
            keys=(),
            features=tuple(dict.fromkeys(column for _, _, column in chosen)),
            event=timestamp_field,
            created=None,
            start=start_date,
            end=end_date,
        )
        rows = pull_rows(data_source, pull, config=cls.limits(config), repo_path=config.repo_path)
        calculator = MetricsCalculator(histogram_bins=histogram_bins, top_n=top_n)
        return [
            {"feature_name": name, **_metrics(calculator, kind, rows[column])}
            for name, kind, column in chosen
        ]

    @classmethod
    def get_monitoring_max_timestamp(
        cls, config: RepoConfig, data_source: DataSource, timestamp_field: str
    ) -> datetime | None:
        """The last event time of a source, or None where it has no rows, or no file yet."""
        try:
            files = open_source(data_source, config.repo_path)
        except DataError:
            return None
        pull = Pull(keys=(), features=(), event=timestamp_field, created=None, start=None, end=None)
        sql = f"SELECT max(event_us) AS last FROM ({rows_sql(files, pull)}) AS pulled"
        found = query_table(cls.limits(config), sql, what=f"the source {files.label}")
        last = found["last"][0].as_py()
        return None if last is None else from_us(last)

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Make the files of metrics that do not exist yet."""
        for kind in MONITORING_PARQUET_FILES:
            path, columns, _ = _file(config, kind)
            with writer_lock(path):
                if not path.exists():
                    write_file(pa.table({column: [] for column in columns}), path)

    @staticmethod
    def save_monitoring_metrics(
        config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]
    ) -> None:
        """Add metrics to their file, in place of those with the same key."""
        path, columns, key = _file(config, metric_type)
        with writer_lock(path):
            rows = {_key(row, key): row for row in _read(path)}
            for metric in metrics:
                row = {column: _stored(column, metric.get(column)) for column in columns}
                rows[_key(row, key)] = row
            _write(path, list(rows.values()))

    @staticmethod
    def query_monitoring_metrics(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """Metrics of a project from ``start_date`` to ``end_date``, both included, by date."""
        rows = [
            row
            for row in _read(_file(config, metric_type)[0])
            if (not project or row["project_id"] == project)
            and all(row[at] == value for at, value in (filters or {}).items() if value is not None)
            and (start_date is None or _day(row["metric_date"]) >= _day(start_date))
            and (end_date is None or _day(row["metric_date"]) <= _day(end_date))
        ]
        rows.sort(key=lambda row: _day(row["metric_date"]))
        return [dict(normalize_monitoring_row(row)) for row in rows]

    @staticmethod
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Clear the baseline flag of all metrics that match."""
        filters = {
            "project_id": project,
            "feature_view_name": feature_view_name,
            "feature_name": feature_name,
            "data_source_type": data_source_type,
        }
        path, _, _ = _file(config, "feature")
        with writer_lock(path):
            rows = _read(path)
            for row in rows:
                if all(row[at] == value for at, value in filters.items() if value):
                    row["is_baseline"] = False
            _write(path, rows)


def _metrics(calculator: MetricsCalculator, kind: str, values: pa.ChunkedArray) -> dict[str, Any]:
    if kind == "categorical":
        return dict(calculator.compute_categorical(values.combine_chunks()))
    numbers = values.cast(pa.float64(), safe=False)
    finite = pc.if_else(pc.is_finite(numbers), numbers, None).combine_chunks()
    share = values.null_count / len(values) if len(values) else 0.0
    found = dict(calculator.compute_numeric(finite))
    return found | {"null_count": values.null_count, "null_rate": share}


def _file(config: RepoConfig, metric_type: str) -> tuple[Path, list[str], list[str]]:
    """The file of a type of metrics, its columns, and those of its key."""
    name, columns, key = monitoring_parquet_meta(metric_type)
    return Path(config.repo_path or ".") / MONITORING_DIR / name, columns, key


def _read(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist() if path.exists() else []


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    if rows:
        write_file(pa.Table.from_pylist(rows), path)


def _stored(column: str, value: Any) -> Any:
    """A value as it is stored. Dates and times may be text, and times without a zone are in UTC."""
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
