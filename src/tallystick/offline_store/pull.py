"""Rows of a source by event time, under the source's own column names, for Feast's pulls."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import arrow_from_us, to_us
from tallystick.definitions.exact_cast import converted, family, fits
from tallystick.definitions.feature_view import NO_ENTITY_KEY
from tallystick.errors import DataError, Problem
from tallystick.offline_store.duckdb_connection import EngineLimits, query_table
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.sources.file_source import open_source
from tallystick.offline_store.sources.pruning import Bounds, pruned
from tallystick.offline_store.sources.source_files import FileGroup, SourceFiles
from tallystick.offline_store.sql_dialect import DUCKDB, Dialect
from tallystick.offline_store.view_history import NO_TIME
from tallystick.point_in_time.rule import POSITION, latest_sql

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Pull:
    """Which rows and columns of a source are read.

    Attributes:
        keys: Key columns, by the source's names.
        features: Further columns.
        event: Column of the event time.
        created: Column of the created time, if there is one.
        start: First event time, included, or None for an open bound.
        end: Last event time, included, or None for an open bound.
        is_latest: Whether only the winning row of each key is read. Rows with a null in a key are
            left out then.
    """

    keys: tuple[str, ...]
    features: tuple[str, ...]
    event: str
    created: str | None
    start: datetime | None
    end: datetime | None
    is_latest: bool = False

    def bounds(self) -> list[str]:
        """Conditions on ``event_us``."""
        bounds = [f"event_us >= {to_us(self.start)}"] if self.start is not None else []
        return bounds + ([f"event_us <= {to_us(self.end)}"] if self.end is not None else [])

    def within(self, files: SourceFiles) -> SourceFiles:
        """The files of the source that may have such rows."""
        at = files.schema.get_field_index(self.event)
        if at < 0 or family(files.schema.field(at).type) != "time":
            return files
        first, last = (None if each is None else to_us(each) for each in (self.start, self.end))
        return pruned(files, {self.event: Bounds(first, last)})


def pull_rows(
    source: Any, pull: Pull, *, config: EngineLimits | None, repo_path: Path | str | None
) -> pa.Table:
    """Rows of a source in a range of event time, in source order.

    Args:
        source: A Feast ``FileSource``.
        pull: Which rows and columns.
        config: Limits of the engine.
        repo_path: Folder from which a relative path is taken.

    Returns:
        Keys, features and times (timestamp[us, UTC]) under the source's names, all but the times in
        the source's types. A view without entities gets Feast's key for these.

    Raises:
        DataError: The source lacks a column, or a time column holds no times.
    """

    def read(files: SourceFiles) -> pa.Table:
        found = query_table(config, rows_sql(files, pull), what=f"the source {files.label}")
        return answered(found, files, pull)

    return read_steadily(
        lambda: pull.within(open_source(source, repo_path)), lambda files: [files], read
    )


def _by_real_keys(pull: Pull) -> Pull:
    """Without Feast's stand-in for a key, which no source has."""
    return replace(pull, keys=tuple(key for key in pull.keys if key != NO_ENTITY_KEY))


def rows_sql(files: SourceFiles, pull: Pull, dialect: Dialect = DUCKDB) -> str:
    """The query of :func:`pull_rows`. :func:`answered` reads its answer.

    Raises:
        DataError: With every column that is missing or holds no times.
    """
    pull = _by_real_keys(pull)
    times = [pull.event, *([pull.created] if pull.created else [])]
    problems = []
    for name in dict.fromkeys((*pull.keys, *pull.features, *times)):
        if name not in files.schema.names:
            problems.append(Problem(f"column {name}", "a column", "no such column"))
        elif name in times and not fits("UNIX_TIMESTAMP", files.schema.field(name).type):
            kind = str(files.schema.field(name).type)
            problems.append(Problem(f"column {name}", "timestamps", kind))
        else:
            problems += files.unshared([name])
    if problems:
        raise DataError(f"The source {files.label} does not fit its view.", problems)
    keys = {f"key_{at}": name for at, name in enumerate(pull.keys)}
    features = {f"value_{at}": name for at, name in enumerate(pull.features)}

    def selected(group: FileGroup) -> str:
        event_us = dialect.time_us_sql(*group.column(pull.event))
        columns = {"key_0": "0", "event_us": event_us, "created_us": NO_TIME}
        for inner, name in (keys | features).items():
            common = files.schema.field(name).type
            columns[inner] = dialect.widened_sql(*group.column(name), common)
        if pull.created:
            columns["created_us"] = dialect.time_us_sql(*group.column(pull.created))
        return group.select(columns | {"visible_us": event_us})

    conditions = pull.bounds()
    if pull.is_latest:
        conditions += [f"{key} IS NOT NULL" for key in keys]
    rows = (
        f"(SELECT * FROM ({' UNION ALL '.join(map(selected, files.groups))}) AS source "
        f"WHERE {' AND '.join(conditions) or 'true'})"
    )
    if pull.is_latest:
        return latest_sql(rows, keys=list(keys) or ["key_0"])
    return f"SELECT * FROM {rows} AS pulled ORDER BY {POSITION}"


def answered(found: pa.Table, files: SourceFiles, pull: Pull) -> pa.Table:
    """The answer to a query over :func:`rows_sql`, under the source's names and types.

    Without a key there is Feast's stand-in for one, by which Feast materializes.
    """
    import pyarrow as pa

    pull = _by_real_keys(pull)
    inner = {f"key_{at}": name for at, name in enumerate(pull.keys)}
    inner |= {f"value_{at}": name for at, name in enumerate(pull.features)}
    columns = {
        name: converted(found[column], files.schema.field(name).type, where=f"Column {name}")
        for column, name in inner.items()
    }
    columns[pull.event] = arrow_from_us(found["event_us"])
    if pull.created:
        columns[pull.created] = arrow_from_us(found["created_us"])
    if not pull.keys:
        columns[NO_ENTITY_KEY] = pa.array([""] * found.num_rows, pa.string())
    return pa.table(columns)
