"""Feast's offline store on Spark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
from feast.data_source import DataSource
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field

from tallystick.clock import to_us
from tallystick.offline_store.entity_rows import (
    changes_found,
    changes_sql,
    changing_views,
    check_entity_rows,
    check_request_times,
    entity_keys,
)
from tallystick.offline_store.feast_interface import PointInTimeOfflineStore
from tallystick.offline_store.known_late import KnownLate, known_late
from tallystick.offline_store.pull import Pull, answered, rows_sql
from tallystick.offline_store.spark.as_of_join import as_of_sql
from tallystick.offline_store.spark.spark_session import open_session, read_table
from tallystick.offline_store.spark.spark_source import SPARK, SparkRows, open_rows, restored
from tallystick.offline_store.view_history import history_of, require_times, typed
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import VisibilityClock

FEW_REQUESTS: Final = 100_000
"""Up to so many requests their keys are sent to every reader of a history, to leave out others."""


class SparkOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """``offline_store`` in ``feature_store.yaml``."""

    type: Literal["tallystick.offline_store.SparkOfflineStore"] = (
        "tallystick.offline_store.SparkOfflineStore"
    )
    clock: Literal["knowledge", "event"] = Field(
        default="event",
        description="When a row counts as visible in get_historical_features: from its event time "
        "on, as in Feast, or once it was known.",
    )
    spark_conf: dict[str, str] | None = Field(
        default=None,
        description="Settings of the Spark application; unused where one is running already.",
    )


class SparkOfflineStore(PointInTimeOfflineStore):
    """Parquet files and Spark's tables, read on Spark.

    Answers are those of ``DuckDBOfflineStore``, value for value. Entity rows and answers pass
    through the driver. Histories do not.
    """

    @classmethod
    def engine(cls, config: RepoConfig) -> SparkEngine:
        """A session of the running Spark application, or of one by ``spark_conf``."""
        return SparkEngine(open_session(config.offline_store.spark_conf), config.repo_path)


@dataclass(frozen=True)
class SparkEngine:
    """The point-in-time rule on Spark: an :class:`OfflineEngine`.

    Attributes:
        session: By :func:`tallystick.offline_store.spark.spark_session.open_session`.
        repo_path: Folder from which relative source paths are taken.
    """

    session: Any = field(repr=False)
    repo_path: Path | str | None

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
        check_entity_rows(entity_rows.schema, request_time, reads, with_times=False)
        check_request_times(request_time, nulls=entity_rows[request_time].null_count)
        answer = entity_rows
        for read in reads:
            keys = entity_keys(entity_rows, request_time, read)
            for name, column in self._answer(keys, read, clock, late).items():
                answer = answer.append_column(f"{read.name}__{name}", column)
        return answer

    def _answer(
        self,
        keys: pa.Table,
        read: ViewRead,
        clock: VisibilityClock,
        late: list[KnownLate] | None,
    ) -> dict[str, Any]:
        with self._opened(read.source) as rows, self._registered(keys) as view:
            history = history_of(read, rows, clock=clock, dialect=SPARK)
            require_times(
                partial(read_table, self.session, what=history.what), history, read, clock
            )
            sql = as_of_sql(
                history.sql,
                entity_rows=view,
                keys=history.keys,
                values=history.values,
                ttl_us=read.spec.ttl_us,
                few_requests=keys.num_rows <= FEW_REQUESTS,
            )
            found = read_table(self.session, sql, what=history.what)
        if late is not None and read.spec.created_column is not None:
            late += known_late(read, found, keys["request_us"])
        return typed(_restored(found, history), history, read)

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
        with ExitStack() as stack:
            histories = [
                history_of(
                    read,
                    stack.enter_context(self._opened(read.source)),
                    clock=clock,
                    dialect=SPARK,
                )
                for read in changing_views(reads)
            ]
            sql = changes_sql(
                reads, histories, start_us=to_us(start), end_us=to_us(end), dialect=SPARK
            )
            found = read_table(self.session, sql, what="the views' sources")
        return changes_found(found, reads, time=time)

    def pull_rows(self, source: DataSource, pull: Pull) -> pa.Table:
        """As :func:`tallystick.offline_store.pull.pull_rows`."""
        with self._opened(source) as rows:
            sql = rows_sql(rows, pull, SPARK)
            found = read_table(self.session, sql, what=f"the source {rows.label}")
        return answered(found, rows, pull)

    def query(self, sql: str) -> pa.Table:
        """The answer to a query for entity rows, in Spark's SQL."""
        return read_table(self.session, sql, what="the entity query")

    @contextmanager
    def _opened(self, source: Any) -> Iterator[SparkRows]:
        rows = open_rows(self.session, source, self.repo_path)
        try:
            yield rows
        finally:
            self.session.catalog.dropTempView(rows.view)

    @contextmanager
    def _registered(self, keys: pa.Table) -> Iterator[str]:
        self.session.createDataFrame(keys).createOrReplaceTempView("tallystick_entity_rows")
        try:
            yield "tallystick_entity_rows"
        finally:
            self.session.catalog.dropTempView("tallystick_entity_rows")


def _restored(found: pa.Table, history: History) -> pa.Table:
    """An answer with its values in the types that the source has."""
    schema = history.files.schema
    for value, name in zip(history.values, history.columns, strict=True):
        column = restored(found[value], schema.field(name).type)
        found = found.set_column(found.column_names.index(value), value, column)
    return found
