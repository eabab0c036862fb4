"""Feast's offline store on DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import pyarrow as pa
from feast.data_source import DataSource
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field

from tallystick.offline_store.duckdb_connection import EngineLimits, connect, read_table
from tallystick.offline_store.entity_rows import changes_between
from tallystick.offline_store.feast_interface import FoldOfflineStore
from tallystick.offline_store.point_in_time_join import point_in_time
from tallystick.offline_store.pull import Pull, pull_all, pull_latest
from tallystick.offline_store.retrieval_job import view_read
from tallystick.offline_store.sources.snapshot import Snapshots
from tallystick.offline_store.view_history import ViewRead
from tallystick.point_in_time.rule import VisibilityClock

__all__ = ["DuckDBEngine", "DuckDBOfflineStore", "DuckDBOfflineStoreConfig", "view_read"]


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


class DuckDBOfflineStore(FoldOfflineStore):
    """Parquet files and Delta tables, read by the fold on DuckDB."""

    @classmethod
    def engine(cls, config: RepoConfig) -> DuckDBEngine:
        """DuckDB, within the limits that the config sets."""
        return DuckDBEngine(config.offline_store, config.repo_path)

    @classmethod
    def limits(cls, config: RepoConfig) -> EngineLimits | None:
        """Those of the config."""
        limits: EngineLimits = config.offline_store
        return limits


@dataclass(frozen=True)
class DuckDBEngine:
    """The fold on DuckDB.

    Attributes:
        config: What it may take.
        repo_path: Folder from which relative source paths are taken.
        snapshots: The versions of tables of which its answers to one call of Feast's are made.
    """

    config: EngineLimits
    repo_path: Path | str | None
    snapshots: Snapshots = field(default_factory=Snapshots)

    def point_in_time(
        self,
        entity_rows: pa.Table,
        *,
        request_time: str,
        reads: Sequence[ViewRead],
        clock: VisibilityClock,
    ) -> pa.Table:
        """As :func:`tallystick.offline_store.point_in_time_join.point_in_time`."""
        return point_in_time(
            entity_rows=entity_rows,
            request_time=request_time,
            reads=reads,
            clock=clock,
            config=self.config,
            repo_path=self.repo_path,
            snapshots=self.snapshots,
        )

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
        return changes_between(
            reads,
            start=start,
            end=end,
            time=time,
            clock=clock,
            config=self.config,
            repo_path=self.repo_path,
            snapshots=self.snapshots,
        )

    def pull_latest(self, source: DataSource, pull: Pull) -> pa.Table:
        """As :func:`tallystick.offline_store.pull.pull_latest`."""
        return pull_latest(source, pull, config=self.config, repo_path=self.repo_path)

    def pull_all(self, source: DataSource, pull: Pull) -> pa.Table:
        """As :func:`tallystick.offline_store.pull.pull_all`."""
        return pull_all(source, pull, config=self.config, repo_path=self.repo_path)

    def query(self, sql: str) -> pa.Table:
        """The answer to a query for entity rows."""
        connection = connect(self.config)
        try:
            return read_table(connection, sql, what="the entity query")
        finally:
            connection.close()
