"""Feast's offline store interface over the fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.infra.offline_stores.file_source import FileLoggingDestination, SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import (
    OfflineStore,
    RetrievalJob,
    RetrievalMetadata,
)
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.saved_dataset import SavedDatasetStorage
from feast.utils import compute_non_entity_date_range
from pydantic import Field

from tallystick.clock import from_us
from tallystick.errors import DefinitionError, InputError
from tallystick.fold import VisibilityClock
from tallystick.offline_store.connection import connect, read_table
from tallystick.offline_store.feature_metrics import MetricFiles, feature_metrics, latest_event
from tallystick.offline_store.history import ViewRead
from tallystick.offline_store.places import place_of
from tallystick.offline_store.pull import Pull, pull_all, pull_latest
from tallystick.offline_store.retrieval import as_microseconds, changes_between, point_in_time
from tallystick.offline_store.writing import add_file, append, put_file
from tallystick.view import ViewSpec

SPINE_TIME = "event_timestamp"
"""Feast's name for the request time in an entity DataFrame."""


class DuckDBOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """``offline_store`` in ``feature_store.yaml``."""

    type: Literal["tallystick.offline_store.DuckDBOfflineStore"] = (
        "tallystick.offline_store.DuckDBOfflineStore"
    )
    clock: Literal["knowledge", "event", "served"] = Field(
        default="knowledge",
        description="When a row counts as visible in get_historical_features: once it was known, "
        "from its event time on, or once it was written online, by the journal of these writes.",
    )
    memory_limit: str | None = Field(
        default=None, description="For example 4GB; default 80% of the machine's memory."
    )
    threads: int | None = Field(default=None, ge=1, description="Default: one per core.")
    spill_dir: str | None = Field(
        default=None, description="Folder for what does not fit; default the system's temporary."
    )


class DuckDBOfflineStore(OfflineStore):  # type: ignore[misc]
    """Parquet files, read by the fold on DuckDB.

    ``get_historical_features`` returns one row per entity row, in its order, with the entity
    DataFrame's own columns first and features in their declared types.
    """

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | pa.Table | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,  # noqa: FBT001, FBT002 - Feast's signature
        **kwargs: Any,
    ) -> RetrievalJob:
        """Features at the request times of an entity DataFrame, Arrow table or SQL query.

        Without entity rows: for every key at every moment from ``start_date`` to ``end_date`` at
        which a row of it became visible in one of the views. As with Feast's stores ``end_date`` is
        now by default, and ``start_date`` the longest ttl before it, or 30 days.

        ``filter_by_created_timestamp=True`` asks for the knowledge clock whatever the config says.

        Raises:
            InputError: The entity rows cannot be used.
            DataError: A source does not fit its view, or lacks the time that the clock asks for.
        """
        forced = kwargs.get("filter_by_created_timestamp", False)
        clock = VisibilityClock.KNOWLEDGE if forced else VisibilityClock(config.offline_store.clock)
        reads = [view_read(view, feature_refs) for view in feature_views]
        if entity_df is None:
            start, end = compute_non_entity_date_range(
                feature_views, start_date=kwargs.get("start_date"), end_date=kwargs.get("end_date")
            )
            spine, request_time = (
                changes_between(
                    reads,
                    start=start,
                    end=end,
                    time=SPINE_TIME,
                    clock=clock,
                    config=config.offline_store,
                    repo_path=config.repo_path,
                ),
                SPINE_TIME,
            )
        else:
            spine, request_time = spine_of(entity_df, config)

        def produce() -> pa.Table:
            table = point_in_time(
                spine=spine,
                request_time=request_time,
                reads=reads,
                clock=clock,
                config=config.offline_store,
                repo_path=config.repo_path,
            )
            return table if full_feature_names else short_names(table, spine, reads)

        times = pc.min_max(as_microseconds(spine[request_time])).as_py()
        return DuckDBRetrievalJob(
            produce,
            config=config,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in spine.column_names if name != request_time],
                min_event_timestamp=None if times["min"] is None else from_us(times["min"]),
                max_event_timestamp=None if times["max"] is None else from_us(times["max"]),
            ),
        )

    @staticmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The winning row of each key among those with an event time in [start, end]."""
        pull = Pull(
            keys=tuple(join_key_columns),
            features=tuple(feature_name_columns),
            event=timestamp_field,
            created=created_timestamp_column or None,
            start=start_date,
            end=end_date,
        )

        def produce() -> pa.Table:
            return pull_latest(
                data_source, pull, config=config.offline_store, repo_path=config.repo_path
            )

        return DuckDBRetrievalJob(produce, config=config)

    @staticmethod
    def pull_all_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """All rows with an event time in [start, end], in source order."""
        pull = Pull(
            keys=tuple(join_key_columns),
            features=tuple(feature_name_columns),
            event=timestamp_field,
            created=created_timestamp_column or None,
            start=start_date,
            end=end_date,
        )

        def produce() -> pa.Table:
            return pull_all(
                data_source, pull, config=config.offline_store, repo_path=config.repo_path
            )

        return DuckDBRetrievalJob(produce, config=config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to a view's source, all of them or none.

        Raises:
            DataError: The columns do not fit the source.
        """
        append(feature_view.batch_source, table, repo_path=config.repo_path)
        if progress:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,  # noqa: ARG004 - Feast's signature
        logging_config: LoggingConfig,
        registry: BaseRegistry,  # noqa: ARG004
    ) -> None:
        """Add one Parquet file with logged features to the destination's folder.

        Raises:
            DefinitionError: The destination is not a folder of files.
        """
        import pyarrow.parquet as pq

        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise DefinitionError(
                f"Features cannot be logged to a {type(destination).__name__}.",
                hint="Use feast's FileLoggingDestination.",
            )
        table = pq.read_table(data) if isinstance(data, Path) else data
        endpoint = destination.s3_endpoint_override
        add_file(table, place_of(destination.path, config.repo_path, endpoint=endpoint))

    @staticmethod
    def compute_monitoring_metrics(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        data_source: DataSource,
        feature_columns: list[tuple[str, str]],
        timestamp_field: str,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        histogram_bins: int = 20,
        top_n: int = 10,
    ) -> list[dict[str, Any]]:
        """Profiles and histograms of features, for Feast's monitoring."""
        return feature_metrics(
            data_source,
            feature_columns,
            event=timestamp_field,
            start=start_date,
            end=end_date,
            bins=histogram_bins,
            top=top_n,
            config=config.offline_store,
            repo_path=config.repo_path,
        )

    @staticmethod
    def get_monitoring_max_timestamp(
        config: RepoConfig, data_source: DataSource, timestamp_field: str
    ) -> datetime | None:
        """The last event time of a source; None where nothing was written yet."""
        return latest_event(
            data_source, timestamp_field, config=config.offline_store, repo_path=config.repo_path
        )

    @staticmethod
    def ensure_monitoring_tables(config: RepoConfig) -> None:
        """Make the files in which Feast's monitoring keeps its metrics."""
        MetricFiles(config.repo_path).ensure()

    @staticmethod
    def save_monitoring_metrics(
        config: RepoConfig, metric_type: str, metrics: list[dict[str, Any]]
    ) -> None:
        """Keep metrics of Feast's monitoring; those with the same key are replaced."""
        if metrics:
            MetricFiles(config.repo_path).save(metric_type, metrics)

    @staticmethod
    def query_monitoring_metrics(  # noqa: PLR0917 - Feast's signature
        config: RepoConfig,
        project: str,
        metric_type: str,
        filters: dict[str, Any] | None = None,
        start_date: date | None = None,
        end_date: date | None = None,
    ) -> list[dict[str, Any]]:
        """Metrics that Feast's monitoring kept."""
        return MetricFiles(config.repo_path).query(
            metric_type, project=project, filters=filters or {}, start=start_date, end=end_date
        )

    @staticmethod
    def clear_monitoring_baseline(
        config: RepoConfig,
        project: str,
        feature_view_name: str | None = None,
        feature_name: str | None = None,
        data_source_type: str | None = None,
    ) -> None:
        """Have no metrics that match be a baseline."""
        MetricFiles(config.repo_path).clear_baseline(
            project,
            feature_view_name=feature_view_name,
            feature_name=feature_name,
            data_source_type=data_source_type,
        )


class DuckDBRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A query that runs when its result is asked for.

    Args:
        produce: Runs it.
        config: The repo's configuration.
        on_demand: On-demand views to compute from the result.
        full_feature_names: Whether features are named ``view__feature``.
        metadata: What was asked for.
    """

    def __init__(
        self,
        produce: Callable[[], pa.Table],
        *,
        config: RepoConfig,
        on_demand: Sequence[OnDemandFeatureView] = (),
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._produce = produce
        self._config = config
        self._on_demand = list(on_demand)
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> Any:
        """The result as a DataFrame; an integer column with nulls is of pandas' ``Int64``."""
        return lossless(self.to_arrow(validation_reference, timeout))

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return lossless(self._to_arrow_internal(timeout))

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:  # noqa: ARG002
        # One chunk per column: Feast writes only the first of a table online.
        return self._produce().combine_chunks()

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named ``view__feature``."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """On-demand views to compute from the result."""
        return self._on_demand

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """What was asked for."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,  # noqa: FBT001, FBT002 - Feast's signature
        timeout: int | None = None,
    ) -> None:
        """Write the result to a file, in one step.

        Raises:
            DefinitionError: The storage is no file.
            SavedDatasetLocationAlreadyExists: It is there, and may not be overwritten.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise DefinitionError(
                f"A dataset cannot be saved to a {type(storage).__name__}.",
                hint="Use feast's SavedDatasetFileStorage.",
            )
        options = storage.file_options
        place = place_of(options.uri, self._config.repo_path, endpoint=options.s3_endpoint_override)
        if place.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(place))
        put_file(self.to_arrow(timeout=timeout), place)


def view_read(view: FeatureView, feature_refs: Sequence[str]) -> ViewRead:
    """What ``view:feature`` references ask of one view."""
    asked = view.projection.name_to_use()
    pairs = (reference.split(":", 1) for reference in feature_refs)
    columns = dict.fromkeys(feature for name, feature in pairs if name == asked)
    return ViewRead(
        spec=ViewSpec.from_feast(view),
        source=view.batch_source,
        name=view.projection.name_alias or view.name,
        key_map=dict(view.projection.join_key_map),
        columns=tuple(columns),
    )


def spine_of(entity_df: pd.DataFrame | pa.Table | str, config: RepoConfig) -> tuple[pa.Table, str]:
    """The entity rows as an Arrow table, and the name of their request time.

    Raises:
        InputError: No column can be the request time.
    """
    if isinstance(entity_df, str):
        connection = connect(config.offline_store)
        try:
            spine = read_table(connection, entity_df, what="the entity query")
        finally:
            connection.close()
    elif isinstance(entity_df, pd.DataFrame):
        spine = pa.Table.from_pandas(times_parsed(entity_df), preserve_index=False)
    else:
        spine = entity_df
    spine = spine.replace_schema_metadata()
    times = [field.name for field in spine.schema if pa.types.is_timestamp(field.type)]
    if SPINE_TIME in spine.column_names:
        return spine, SPINE_TIME
    if len(times) == 1:
        return spine, times[0]
    raise InputError(
        f"The entity rows have no column {SPINE_TIME}, and {len(times)} columns of timestamps.",
        hint=f"Name the request time {SPINE_TIME}.",
    )


def times_parsed(entity_df: pd.DataFrame) -> pd.DataFrame:
    """Request times that are text or mixed objects, parsed as Feast does; else unchanged.

    Raises:
        InputError: One is no time.
    """
    if SPINE_TIME not in entity_df or entity_df[SPINE_TIME].dtype != object:
        return entity_df
    try:
        return entity_df.assign(**{SPINE_TIME: pd.to_datetime(entity_df[SPINE_TIME], utc=True)})
    except (ValueError, TypeError) as error:
        raise InputError(f"Column {SPINE_TIME} of the entity rows has no time: {error}") from error


def short_names(table: pa.Table, spine: pa.Table, reads: Sequence[ViewRead]) -> pa.Table:
    """``view__feature`` renamed to ``feature``.

    Raises:
        InputError: Two columns would have the same name.
    """
    names = [*spine.column_names, *(name for read in reads for name in read.columns)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"More than one column would be named {', '.join(twice)}.",
            hint="Ask for full_feature_names=True.",
        )
    return table.rename_columns(names)


def lossless(table: pa.Table) -> Any:
    """A DataFrame that keeps every integer: columns with nulls become ``Int64``, not floats."""
    nullable = {
        field.name
        for field in table.schema
        if pa.types.is_integer(field.type) and table[field.name].null_count
    }
    plain = table.drop_columns(sorted(nullable)).to_pandas()
    whole = table.select(sorted(nullable)).to_pandas(integer_object_nulls=True)
    for name in sorted(nullable):
        kind = str(table.schema.field(name).type)
        dtype = kind.replace("uint", "UInt") if kind[0] == "u" else kind.capitalize()
        plain[name] = whole[name].astype(dtype)
    return plain[table.column_names]
