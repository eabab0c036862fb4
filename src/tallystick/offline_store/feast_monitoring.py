"""What Feast's monitoring asks of an offline store: metrics of features, and a place to keep them.

Feast computes profiles and histograms (``feast monitor``); these are its outlines. They are kept in
Parquet files beside the repo, under Feast's names, each replaced in one step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.monitoring.monitoring_utils import (
    MONITORING_DIR,
    MONITORING_PARQUET_FILES,
    empty_categorical_metric,
    empty_numeric_metric,
    monitoring_parquet_meta,
    normalize_monitoring_row,
    opt_float,
)

from tallystick.clock import from_us
from tallystick.errors import DataError
from tallystick.offline_store.duckdb_connection import EngineLimits, connect, read_table
from tallystick.offline_store.pull import Pull, rows_sql
from tallystick.offline_store.sources.file_source import SourceFiles, open_source
from tallystick.offline_store.sources.parquet_writer import write_file
from tallystick.storage.locks import writer_lock

QUANTILES: Final = {"p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_COUNTS: Final = frozenset({"row_count", "null_count"})
_TIMES: Final = frozenset({"computed_at", "max_event_timestamp", "started_at", "completed_at"})
_FLAGS: Final = frozenset({"is_baseline"})
_NUMBERS: Final = frozenset({"mean", "stddev", "min_val", "max_val", *QUANTILES})


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
        features: Name, and ``numeric`` or ``categorical``; those that the source lacks are left
            out.
        event: Column of the event time.
        start: None for an open bound.
        end: None for an open bound.
        bins: Bins of a number's histogram.
        top: Values of a category that are counted each by itself.
        config: What the engine may take.
        repo_path: Folder from which a relative path is taken.

    Returns:
        One mapping per feature, as Feast's monitoring has them. Numbers that are not finite count
        as rows, and in nothing else.
    """
    files = open_source(source, repo_path)
    mapped = {new: old for old, new in (source.field_mapping or {}).items()}
    chosen = [
        (name, kind, mapped.get(name, name))
        for name, kind in features
        if mapped.get(name, name) in files.schema.names and kind in {"numeric", "categorical"}
    ]
    pull = Pull(
        keys=(),
        features=tuple(column for _, _, column in chosen),
        event=event,
        created=None,
        start=start,
        end=end,
    )
    connection = connect(config)
    try:
        what = f"the source {files.label}"
        rows = read_table(connection, rows_sql(pull.within(files), pull), what=what)
        connection.register("pulled", rows)
        return [
            (_numeric if kind == "numeric" else _categorical)(
                connection, f"value_{at}", name, bins if kind == "numeric" else top
            )
            for at, (name, kind, _) in enumerate(chosen)
        ]
    finally:
        connection.close()


def _numeric(connection: Any, column: str, name: str, bins: int) -> dict[str, Any]:
    metric: dict[str, Any] = empty_numeric_metric(name)
    number = f"CASE WHEN isfinite({column}::DOUBLE) THEN {column}::DOUBLE END"
    quantiles = ", ".join(f"quantile_cont(x, {share}) AS {at}" for at, share in QUANTILES.items())
    found = read_table(
        connection,
        f"SELECT count(*) AS row_count, count(*) - count(raw) AS null_count, avg(x) AS mean, "
        f"stddev_samp(x) AS stddev, min(x) AS min_val, max(x) AS max_val, {quantiles} "
        f"FROM (SELECT {column} AS raw, {number} AS x FROM pulled) AS numbers",
        what=f"feature {name}",
    ).to_pylist()[0]
    metric |= {at: found[at] if at in _COUNTS else opt_float(found[at]) for at in found}
    metric["null_rate"] = found["null_count"] / found["row_count"] if found["row_count"] else 0.0
    low, high = found["min_val"], found["max_val"]
    if low is None:
        return metric
    # As numpy has it: a single value gets bins of one around it; the last bin has its end.
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = (high - low) / bins
    counted = read_table(
        connection,
        f"SELECT least(floor((x - {low!r}) / {width!r})::BIGINT, {bins - 1}) AS bin, "
        f"count(*) AS rows FROM (SELECT {number} AS x FROM pulled) AS numbers "
        "WHERE x IS NOT NULL GROUP BY bin",
        what=f"feature {name}",
    ).to_pylist()
    counts = dict.fromkeys(range(bins), 0) | {row["bin"]: row["rows"] for row in counted}
    metric["histogram"] = {
        "bins": [low + width * place for place in range(bins)] + [high],
        "counts": list(counts.values()),
        "bin_width": width,
    }
    return metric


def _categorical(connection: Any, column: str, name: str, top: int) -> dict[str, Any]:
    metric: dict[str, Any] = empty_categorical_metric(name)
    counted = read_table(
        connection,
        f"SELECT {column} AS value, count(*) AS rows FROM pulled GROUP BY value "
        "ORDER BY rows DESC, value",
        what=f"feature {name}",
    ).to_pylist()
    present = [row for row in counted if row["value"] is not None]
    metric["row_count"] = sum(row["rows"] for row in counted)
    metric["null_count"] = metric["row_count"] - sum(row["rows"] for row in present)
    if metric["row_count"]:
        metric["null_rate"] = metric["null_count"] / metric["row_count"]
    if present:
        metric["histogram"] = {
            "values": [{"value": row["value"], "count": row["rows"]} for row in present[:top]],
            "other_count": sum(row["rows"] for row in present[top:]),
            "unique_count": len(present),
        }
    return metric


def latest_event(
    source: DataSource, event: str, *, config: EngineLimits | None, repo_path: Path | str | None
) -> datetime | None:
    """The last event time of a source; None where it has no rows, or no file yet."""
    try:
        files: SourceFiles = open_source(source, repo_path)
    except DataError:
        return None
    pull = Pull(keys=(), features=(), event=event, created=None, start=None, end=None)
    connection = connect(config)
    try:
        sql = f"SELECT max(event_us) AS last FROM ({rows_sql(files, pull)}) AS pulled"
        last = read_table(connection, sql, what=f"the source {files.label}")["last"][0].as_py()
    finally:
        connection.close()
    return None if last is None else from_us(last)


class MetricFiles:
    """The files in which Feast's monitoring metrics are kept.

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
                    write_file(_table([], columns), self._folder / name)

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
                row = {column: metric.get(column) for column in columns}
                histogram = row.get("histogram")
                if histogram is not None and not isinstance(histogram, str):
                    row["histogram"] = json.dumps(histogram, default=str)
                rows[_key(row, key)] = row
            write_file(_table(list(rows.values()), columns), self._folder / name)

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
            and all(row[at] == wanted for at, wanted in filters.items() if wanted is not None)
            and (start is None or _day(row["metric_date"]) >= _day(start))
            and (end is None or _day(row["metric_date"]) <= _day(end))
        ]
        rows.sort(key=lambda row: _day(row["metric_date"]))
        return [dict(normalize_monitoring_row(row)) for row in rows]

    def clear_baseline(self, project: str, **matching: str | None) -> None:
        """Have no metrics of features be a baseline that match."""
        name, columns, _ = monitoring_parquet_meta("feature")
        wanted = {"project_id": project} | {at: is_ for at, is_ in matching.items() if is_}
        with writer_lock(self._folder / name):
            rows = self._read(name)
            for row in rows:
                if all(row[at] == is_ for at, is_ in wanted.items()):
                    row["is_baseline"] = False
            write_file(_table(rows, columns), self._folder / name)

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self._folder / name
        return pq.read_table(path).to_pylist() if path.exists() else []


def _table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pa.Table:
    schema = pa.schema([(column, _kind(column)) for column in columns])
    return pa.Table.from_pylist(
        [{column: _fitting(row.get(column), _kind(column)) for column in columns} for row in rows],
        schema=schema,
    )


def _kind(column: str) -> pa.DataType:
    if column == "metric_date":
        return pa.date32()
    if column in _TIMES:
        return pa.timestamp("us", tz="UTC")
    if column in _FLAGS:
        return pa.bool_()
    if column in _NUMBERS or column.endswith("_rate"):
        return pa.float64()
    if column in _COUNTS or column.startswith("total_") or column == "features_with_nulls":
        return pa.int64()
    return pa.string()


def _fitting(value: Any, kind: pa.DataType) -> Any:
    """Dates and times may come as text, and times without a zone, which then are UTC."""
    if value is None:
        return None
    if pa.types.is_date(kind):
        return _day(value)
    if pa.types.is_timestamp(kind):
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if pa.types.is_string(kind) and not isinstance(value, str):
        return str(value)
    return value


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
