"""Rows pushed to the online store, written by the fold directly.

Feast's own way to write a push decodes the whole registry and goes through pandas and protobuf,
which costs tens of milliseconds. Where a push source feeds plain views only, the rows go straight
into packed form; the rule by which they are taken is the store's, the same on both ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tallystick.clock import process_clock
from tallystick.definitions.feature_types import arrow_type
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.bulk_writer import write_table
from tallystick.online_store.journal.write_journal import journal_of
from tallystick.online_store.redis_connection import SyncClient, connect
from tallystick_serving.store_config import Project

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore


class PushedRows:
    """Writes pushed rows of plain views.

    Args:
        project: The repo.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._views: dict[str, tuple[ViewSpec, ...]] = {}

    def forget(self) -> None:
        """Read the registry again when next asked; it may have changed."""
        self._views = {}

    def views_of(self, store: FeatureStore, source: str) -> tuple[ViewSpec, ...]:
        """The views that a push source feeds; none where Feast has to write them itself."""
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
        tables = [(spec, _table(spec, columns)) for spec in views]
        for spec, table in tables:
            write_table(
                self._client,
                self._project.name,
                spec,
                table,
                write_us=process_clock().now_us(),
                key_ttl_s=self._project.key_ttl_s,
                journal=journal_of(self._project.state_dir) if self._project.journal else None,
            )

    @cached_property
    def _client(self) -> SyncClient:
        return connect(
            self._project.connection_string,
            self._project.path,
            redis_type=self._project.redis_type,
            sentinel_master=self._project.sentinel_master,
        )


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
    """The columns that a view takes, each of its type; what is missing is told by the store."""
    import pyarrow as pa

    moments = [spec.event_column, *([spec.created_column] if spec.created_column else [])]
    wanted = (
        *spec.join_keys,
        *spec.columns,
        *(Column(name=name, dtype="UNIX_TIMESTAMP") for name in moments),
    )
    arrays, problems = {}, []
    for column in wanted:
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
        return pa.array(values, type=arrow_type(dtype))
    # Text with a zone is read as it says; text without one is UTC, as Feast takes it.
    texts = [
        value if value is None or _has_zone(value) else f"{value}Z"
        for value in map(_as_text, values)
    ]
    return pa.array(texts, type=pa.string()).cast(arrow_type(dtype))


def _as_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is no ISO 8601 text")


def _has_zone(text: str) -> bool:
    clock_part = text[10:]
    return clock_part.endswith("Z") or "+" in clock_part or "-" in clock_part
