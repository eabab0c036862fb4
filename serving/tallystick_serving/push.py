"""Rows pushed to plain views, written to the online store without Feast.

For each push Feast decodes the whole registry and goes through pandas and protobuf, which costs
tens of milliseconds. Rows of a push source that feeds plain views only go straight to the store's
bulk writer, under the same point-in-time rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tallystick.clock import process_clock
from tallystick.definitions.exact_cast import log_values
from tallystick.definitions.feature_types import arrow_type, feature_type
from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.journal.write_journal import journal_of
from tallystick.online_store.redis_connection import SyncClient, connect
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.table_writer import write_table
from tallystick_serving.error_responses import shown
from tallystick_serving.request_values import field_reader
from tallystick_serving.store_config import StoreConfig

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa
    from feast import FeatureStore


class PushedRows:
    """Writes pushed rows of plain views.

    Args:
        config: The repo.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._views: dict[tuple[str | None, str | None], tuple[ViewSpec, ...]] = {}

    def clear(self) -> None:
        """Read the registry again at the next push; it may have changed."""
        self._views = {}

    def views_of(
        self, store: FeatureStore, *, source: str | None = None, view: str | None = None
    ) -> tuple[ViewSpec, ...]:
        """The views that a push source feeds, or one view; none if Feast has to write them."""
        if (source, view) not in self._views:
            self._views[source, view] = _plain_views(
                store,
                lambda each: (
                    each.name == view
                    if source is None
                    else getattr(each.stream_source, "name", None) == source
                ),
            )
        return self._views[source, view]

    def write(
        self,
        views: Sequence[ViewSpec],
        columns: Mapping[str, Sequence[Any]],
        *,
        to_history: Callable[[pa.Table], None] | None = None,
        to_online: bool = True,
    ) -> None:
        """Write rows to every view: to history first, then online. All is checked before.

        Args:
            views: The views that the push source feeds.
            columns: Column → one JSON value per row.
            to_history: Adds the rows to the views' batch sources, or None.
            to_online: Whether they go online.

        Raises:
            DataError: Columns are missing or of a wrong type; all are listed. Nothing is written.
            UnavailableError: A store did not answer.
        """
        tables = [_table(spec, columns) for spec in views]
        if to_history is not None:
            to_history(_with_others(views, tables, columns))
        if not to_online:
            return
        options = self._options
        for spec, table in zip(views, tables, strict=True):
            write_table(
                self._client,
                self._config.name,
                spec,
                table,
                write_us=process_clock().now_us(),
                key_ttl_s=options.key_ttl_seconds,
                journal=journal_of(self._config.state_dir) if options.journal else None,
            )

    @property
    def _options(self) -> RedisOptions:
        assert self._config.redis is not None  # Feast writes to other stores
        return self._config.redis

    @cached_property
    def _client(self) -> SyncClient:
        return connect(self._options, self._config.path)


def _plain_views(store: FeatureStore, is_written: Callable[[Any], bool]) -> tuple[ViewSpec, ...]:
    views = [
        view
        for view in [*store.list_feature_views(), *store.list_stream_feature_views()]
        if is_written(view)
    ]
    computed = {
        projection.name
        for on_demand in store.list_on_demand_feature_views()
        if on_demand.write_to_online_store
        for projection in on_demand.source_feature_view_projections.values()
    }
    is_plain = all(type(view).__name__ == "FeatureView" for view in views)
    if not is_plain or any(view.name in computed for view in views):
        return ()
    return tuple(ViewSpec.from_feast(view) for view in views)


def _table(spec: ViewSpec, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The columns of a view, each of its type, by the rules for the fields of a request.

    Raises:
        DataError: With every column that is missing, has a value of another type, or lacks a key or
            an event time.
    """
    import pyarrow as pa

    keys = [key for key in spec.join_keys if key.name != NO_ENTITY_KEY]
    event = Column(name=spec.event_column, dtype="UNIX_TIMESTAMP")
    required = [*keys, *spec.columns, event]
    if spec.created_column is not None:
        required.append(Column(name=spec.created_column, dtype="UNIX_TIMESTAMP"))
    arrays, problems = {}, []
    for column in required:
        if column.name not in columns:
            problems.append(Problem(f"column {column.name}", column.dtype, "absent"))
            continue
        values, problem = _exact(columns[column.name], column)
        if problem is None:
            arrays[column.name] = pa.array(values, arrow_type(column.dtype))
            if column in {*keys, event} and None in values:
                problem = Problem(f"column {column.name}", "a value in every row", "null")
        if problem is not None:
            problems.append(problem)
    if problems:
        raise DataError(f"Rows of view {spec.name} cannot be stored.", problems)
    return pa.table(arrays)


def _exact(values: Sequence[Any], column: Column) -> tuple[Sequence[Any], Problem | None]:
    """JSON values in a column's type, and the first that is of another."""
    if feature_type(column.dtype).is_document:
        return log_values(values, column.dtype), None
    reader = field_reader(column)
    if reader.are_exact(list(values)):
        return values, None
    exact = []
    for row, value in enumerate(values):
        try:
            exact.append(None if value is None else reader.read(value))
        except (TypeError, ValueError):
            where = f"column {column.name}, row {row}"
            return [], Problem(where, reader.expected, shown(value))
    return exact, None


def _with_others(
    views: Sequence[ViewSpec], tables: Sequence[pa.Table], columns: Mapping[str, Sequence[Any]]
) -> pa.Table:
    """All columns of a push; those that no view declares have the type of their values."""
    import pyarrow as pa

    typed = {name: table[name] for table in tables for name in table.column_names}
    for spec in views:
        for column in spec.columns:
            if feature_type(column.dtype).is_document:  # JSON text online, and a value in history
                typed.pop(column.name, None)
    return pa.table(
        {
            name: typed[name] if name in typed else pa.array(values)
            for name, values in columns.items()
        }
    )


def append_to(sources: Sequence[Any], rows: pa.Table, *, repo_path: Path) -> None:
    """Add rows to the batch sources of views, once they fit all of them.

    Raises:
        DataError: They do not fit a source.
    """
    from tallystick.offline_store.sources.parquet_writer import append, fitted

    for source in sources:
        fitted(rows, source, source.field_mapping or {}, repo_path)
    for source in sources:
        append(source, rows, repo_path=repo_path)
