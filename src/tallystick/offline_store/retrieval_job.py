"""Feast's retrieval job, and the conversions between Feast's requests and ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

import pandas as pd
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.dqm.errors import ValidationFailed
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DefinitionError, InputError
from tallystick.offline_store.known_late import KnownLate
from tallystick.offline_store.pull import Pull
from tallystick.offline_store.sources.file_source import is_delta
from tallystick.offline_store.sources.parquet_writer import put_dataset
from tallystick.offline_store.view_read import ViewRead
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.storage.locations import location_of

logger = logging.getLogger(__name__)

ENTITY_TIME = "event_timestamp"
"""Feast's name for the request time in an entity DataFrame."""


class OfflineEngine(Protocol):
    """An engine that computes the point-in-time rule, with its limits and the repo it reads."""

    def point_in_time(
        self,
        *,
        entity_rows: pa.Table,
        request_time: str,
        reads: Sequence[ViewRead],
        clock: VisibilityClock,
        late: list[KnownLate] | None = None,
    ) -> pa.Table:
        """As :func:`tallystick.offline_store.point_in_time_join.point_in_time`."""

    def changes_between(
        self,
        reads: Sequence[ViewRead],
        *,
        start: datetime,
        end: datetime,
        time: str,
        clock: VisibilityClock,
    ) -> pa.Table:
        """As :func:`tallystick.offline_store.entity_rows.changes_between`."""

    def pull_rows(self, source: DataSource, pull: Pull) -> pa.Table:
        """As :func:`tallystick.offline_store.pull.pull_rows`."""

    def query(self, sql: str) -> pa.Table:
        """The answer to a query for entity rows."""


class DeferredRetrievalJob(RetrievalJob):  # type: ignore[misc]
    """A query that runs when its result is read.

    Args:
        produce: Runs it.
        config: The repo's configuration.
        on_demand: On-demand views to compute from the result.
        full_feature_names: Whether features are named ``view__feature``.
        metadata: What was requested.
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

    def to_arrow(self, validation_reference: Any = None, timeout: int | None = None) -> pa.Table:
        """The result as an Arrow table.

        Raises:
            ValidationFailed: It does not fit the profile of a reference.
        """
        table = super().to_arrow(timeout=timeout)
        if validation_reference is not None:
            # The profile was made from such a frame. Integers turned to floats would not fit it.
            report = validation_reference.profile.validate(lossless(table))
            if not report.is_success:
                raise ValidationFailed(report)
        return table

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> Any:
        """The result as a DataFrame. An integer column with nulls has pandas' type ``Int64``."""
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
        """What was requested."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool = False,  # noqa: FBT001, FBT002 - Feast's signature
        timeout: int | None = None,
    ) -> None:
        """Write the result in one step: to a file, as the one file of a folder, or to a table.

        Raises:
            DefinitionError: The storage is not a file.
            SavedDatasetLocationAlreadyExists: It exists, and may not be overwritten.
            DataError: Its folder has other Parquet files.
        """
        if not isinstance(storage, SavedDatasetFileStorage):
            raise DefinitionError(
                f"A dataset cannot be saved to a {type(storage).__name__}.",
                hint="Use feast's SavedDatasetFileStorage.",
            )
        options = storage.file_options
        location = location_of(
            options.uri, self._config.repo_path, endpoint=options.s3_endpoint_override
        )
        if location.exists() and not allow_overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(location))
        if is_delta(options, location):
            from tallystick.offline_store.sources.delta_writer import commit_rows

            rows = self.to_arrow(timeout=timeout)
            mode: Literal["replace", "create"] = "replace" if allow_overwrite else "create"
            commit_rows(location, options.uri, rows, mode=mode)
            return
        put_dataset(self.to_arrow(timeout=timeout), location)


def view_read(view: FeatureView, feature_refs: Sequence[str]) -> ViewRead:
    """How one view is read for ``view:feature`` references."""
    requested = view.projection.name_to_use()
    pairs = (reference.split(":", 1) for reference in feature_refs)
    columns = dict.fromkeys(feature for name, feature in pairs if name == requested)
    return ViewRead(
        spec=ViewSpec.from_feast(view),
        source=view.batch_source,
        name=view.projection.name_alias or view.name,
        key_map=dict(view.projection.join_key_map),
        columns=tuple(columns),
    )


def entity_table(
    entity_df: pd.DataFrame | pa.Table | str, engine: OfflineEngine
) -> tuple[pa.Table, str]:
    """The entity rows as an Arrow table, and the name of their request time.

    Raises:
        InputError: No column can be the request time.
    """
    if isinstance(entity_df, str):
        rows = engine.query(entity_df)
    elif isinstance(entity_df, pd.DataFrame):
        rows = pa.Table.from_pandas(times_parsed(entity_df), preserve_index=False)
    else:
        rows = entity_df
    rows = rows.replace_schema_metadata()
    times = [field.name for field in rows.schema if pa.types.is_timestamp(field.type)]
    if ENTITY_TIME in rows.column_names:
        return rows, ENTITY_TIME
    if len(times) == 1:
        return rows, times[0]
    raise InputError(
        f"The entity rows have no column {ENTITY_TIME}, and {len(times)} columns of timestamps.",
        hint=f"Name the request time {ENTITY_TIME}.",
    )


def changed_entity_rows(
    engine: OfflineEngine,
    reads: Sequence[ViewRead],
    *,
    start: datetime,
    end: datetime,
    clock: VisibilityClock,
) -> pa.Table:
    """Every key at every moment in [start, end] at which a row of it became visible.

    Where there is none although events fall into the range, a warning says so: an empty answer
    looks the same for a backfill, known only since it was loaded, and a range without events.
    """

    def moments(by: VisibilityClock) -> pa.Table:
        return engine.changes_between(reads, start=start, end=end, time=ENTITY_TIME, clock=by)

    rows = moments(clock)
    if not rows.num_rows and clock is not VisibilityClock.EVENT:
        events = moments(VisibilityClock.EVENT).num_rows
        if events:
            logger.warning(
                "No row became visible from %s to %s under the %s clock, but %d events fall into "
                "this range; set clock: event in offline_store to have rows count from their event "
                "time on.",
                start.isoformat(),
                end.isoformat(),
                clock.value,
                events,
            )
    return rows


def times_parsed(entity_df: pd.DataFrame) -> pd.DataFrame:
    """Request times that are text or mixed objects, parsed as Feast does. Others are unchanged.

    Raises:
        InputError: One is not a time.
    """
    if ENTITY_TIME not in entity_df or entity_df[ENTITY_TIME].dtype != object:
        return entity_df
    try:
        return entity_df.assign(**{ENTITY_TIME: pd.to_datetime(entity_df[ENTITY_TIME], utc=True)})
    except (ValueError, TypeError) as error:
        raise InputError(f"Column {ENTITY_TIME} of the entity rows has no time: {error}") from error


def short_names(table: pa.Table, entity_rows: pa.Table, reads: Sequence[ViewRead]) -> pa.Table:
    """``view__feature`` renamed to ``feature``.

    Raises:
        InputError: Two columns would have the same name.
    """
    names = [*entity_rows.column_names, *(name for read in reads for name in read.columns)]
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
