"""Rows pushed to plain views, written to the online store without Feast.

For each push Feast decodes the whole registry and goes through pandas and protobuf, which costs
tens of milliseconds. Rows of a push source that feeds plain views only go straight to the store's
bulk writer, under the same point-in-time rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tallystick.clock import process_clock
from tallystick.definitions.exact_cast import log_values
from tallystick.definitions.feature_types import arrow_type
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.journal.write_journal import journal_of
from tallystick.online_store.redis_connection import SyncClient, connect
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.table_writer import write_table
from tallystick_serving.store_config import StoreConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore


class PushedRows:
    """Writes pushed rows of plain views.

    Args:
        config: The repo.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._views: dict[str, tuple[ViewSpec, ...]] = {}

    def clear(self) -> None:
        """Read the registry again at the next push; it may have changed."""
        self._views = {}

    def views_of(self, store: FeatureStore, source: str) -> tuple[ViewSpec, ...]:
        """The views that a push source feeds; none if Feast has to write them."""
        if source not in self._views:
            self._views[source] = _plain_views(store, source)
        return self._views[source]

    def write(self, views: Sequence[ViewSpec], columns: Mapping[str, Sequence[Any]]) -> None:
        """Write rows to every view.

        Args:
            views: The views that the push source feeds.
            columns: Column → one JSON value per row; times as ISO 8601 text, naive ones in UTC.

        Raises:
            DataError: Columns are missing or of a wrong type; all are listed.
            UnavailableError: Redis did not answer.
        """
        options = self._options
        for spec, table in [(spec, _table(spec, columns)) for spec in views]:
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


def _plain_views(store: FeatureStore, source: str) -> tuple[ViewSpec, ...]:
    views = [
        view
        for view in [*store.list_feature_views(), *store.list_stream_feature_views()]
        if getattr(view.stream_source, "name", None) == source
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
    """The columns of a view, each of its type; the bulk writer reports missing ones."""
    import pyarrow as pa

    moments = [spec.event_column, *([spec.created_column] if spec.created_column else [])]
    required = (
        *spec.join_keys,
        *spec.columns,
        *(Column(name=name, dtype="UNIX_TIMESTAMP") for name in moments),
    )
    arrays, problems = {}, []
    for column in required:
        if column.name not in columns:
            continue
        values = columns[column.name]
        try:
            arrays[column.name] = _array(values, column.dtype)
        except (pa.ArrowException, OverflowError, ValueError) as error:
            problems.append(Problem(f"column {column.name}", column.dtype, str(error)))
    if problems:
        raise DataError(f"Rows of view {spec.name} cannot be stored.", problems)
    return pa.table(arrays)


def _array(values: Sequence[Any], dtype: str) -> pa.Array:
    import pyarrow as pa

    if dtype != "UNIX_TIMESTAMP":
        return pa.array(log_values(values, dtype), type=arrow_type(dtype))
    # A text without a zone is in UTC, as in Feast.
    texts = [
        value if value is None or _has_zone(value) else f"{value}Z"
        for value in map(_as_text, values)
    ]
    return pa.array(texts, type=pa.string()).cast(arrow_type(dtype))


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not an ISO 8601 text")


def _has_zone(text: str) -> bool:
    clock_part = text[10:]
    return clock_part.endswith("Z") or "+" in clock_part or "-" in clock_part
