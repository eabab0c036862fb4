"""Feast's offline store interface over the point-in-time rule, on any engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import RepoConfig
from feast.utils import compute_non_entity_date_range

from tallystick.clock import arrow_to_us, from_us
from tallystick.errors import DefinitionError
from tallystick.offline_store.feast_monitoring import MonitoredOfflineStore
from tallystick.offline_store.known_late import KnownLate, warning_of
from tallystick.offline_store.pull import Pull
from tallystick.offline_store.retrieval_job import (
    ENTITY_TIME,
    DeferredRetrievalJob,
    OfflineEngine,
    changed_entity_rows,
    entity_table,
    short_names,
    view_read,
)
from tallystick.offline_store.sources.file_source import is_delta, open_source, source_location
from tallystick.offline_store.sources.parquet_writer import add_file, append
from tallystick.point_in_time.rule import VisibilityClock

logger = logging.getLogger(__name__)


class PointInTimeOfflineStore(MonitoredOfflineStore):
    """An offline store that answers by the point-in-time rule.

    ``get_historical_features`` returns one row per entity row, in its order, with the entity
    DataFrame's own columns first and features in their declared types.
    """

    supports_filter_by_created_timestamp = True

    @classmethod
    def engine(cls, config: RepoConfig) -> OfflineEngine:
        """The engine that computes the answers."""
        raise NotImplementedError

    @classmethod
    def get_historical_features(  # noqa: PLR0917 - Feast's signature
        cls,
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

        ``filter_by_created_timestamp=True`` selects the knowledge clock, not the configured one.
        Under the event clock a warning has the number of values that were not known at the time of
        their request.

        Raises:
            InputError: The entity rows cannot be used.
            DataError: A source does not fit its view, or lacks the time that the clock needs.
        """
        forced = kwargs.get("filter_by_created_timestamp", False)
        clock = VisibilityClock.KNOWLEDGE if forced else VisibilityClock(config.offline_store.clock)
        reads = [view_read(view, feature_refs) for view in feature_views]
        engine = cls.engine(config)
        if entity_df is None:
            start, end = compute_non_entity_date_range(
                feature_views, start_date=kwargs.get("start_date"), end_date=kwargs.get("end_date")
            )
            request_time = ENTITY_TIME
            entity_rows = changed_entity_rows(engine, reads, start=start, end=end, clock=clock)
        else:
            entity_rows, request_time = entity_table(entity_df, engine)

        def produce() -> pa.Table:
            late: list[KnownLate] = []
            table = engine.point_in_time(
                entity_rows=entity_rows,
                request_time=request_time,
                reads=reads,
                clock=clock,
                late=late if clock is VisibilityClock.EVENT else None,
            )
            if late:
                values = entity_rows.num_rows * sum(len(read.columns) for read in reads)
                logger.warning(warning_of(late, values=values))
            return table if full_feature_names else short_names(table, entity_rows, reads)

        times = pc.min_max(arrow_to_us(entity_rows[request_time])).as_py()
        return DeferredRetrievalJob(
            produce,
            config=config,
            on_demand=OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry),
            full_feature_names=full_feature_names,
            metadata=RetrievalMetadata(
                features=feature_refs,
                keys=[name for name in entity_rows.column_names if name != request_time],
                min_event_timestamp=None if times["min"] is None else from_us(times["min"]),
                max_event_timestamp=None if times["max"] is None else from_us(times["max"]),
            ),
        )

    @classmethod
    def pull_latest_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        cls,
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
        return cls.pull_all_from_table_or_query(
            config,
            data_source,
            join_key_columns,
            feature_name_columns,
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
            is_latest=True,
        )

    @classmethod
    def pull_all_from_table_or_query(  # noqa: PLR0917 - Feast's signature
        cls,
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
        *,
        is_latest: bool = False,
    ) -> RetrievalJob:
        """All rows with an event time in [start, end], in source order.

        With ``is_latest`` only the winning row of each key.
        """
        pull = Pull(
            keys=tuple(join_key_columns),
            features=tuple(feature_name_columns),
            event=timestamp_field,
            created=created_timestamp_column or None,
            start=start_date,
            end=end_date,
            is_latest=is_latest,
        )
        return DeferredRetrievalJob(
            lambda: cls.engine(config).pull_rows(data_source, pull), config=config
        )

    def get_table_column_names_and_types_from_data_source(
        self, config: RepoConfig, data_source: DataSource
    ) -> Iterable[tuple[str, str]]:
        """Name of each column of a source, and its type as pyarrow writes it.

        Feast itself does not look for a Delta table's relative path in the repo's folder, and does
        not reach an endpoint without TLS.

        Raises:
            DataError: The source cannot be read.
        """
        if isinstance(data_source, FileSource) and is_delta(
            data_source, source_location(data_source, config.repo_path)
        ):
            schema = open_source(data_source, config.repo_path).schema
            return [(field.name, str(field.type)) for field in schema]
        found: Iterable[tuple[str, str]] = data_source.get_table_column_names_and_types(config)
        return found

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
        # Arrow's name for the index of a frame that was filtered or sorted, which Feast passes on.
        index = [name for name in table.column_names if name.startswith("__index_level_")]
        rows = table.drop_columns(index)
        append(feature_view.batch_source, rows, repo_path=config.repo_path)
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
        """Add logged features to the destination's folder: one file, or one commit.

        All rows are added, or none, so the destination's ``partition_by`` has no effect.

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
        logs = destination.to_data_source()
        if is_delta(logs, source_location(logs, config.repo_path)):
            append(logs, table, repo_path=config.repo_path)
            return
        add_file(table, source_location(logs, config.repo_path))
