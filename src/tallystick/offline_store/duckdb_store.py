"""Feast's offline store on DuckDB."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import Field

from tallystick.definitions.feature_repo import Repo
from tallystick.offline_store.duckdb_connection import EngineLimits, query_table
from tallystick.offline_store.entity_rows import changes_between
from tallystick.offline_store.feast_interface import PointInTimeOfflineStore
from tallystick.offline_store.point_in_time_join import point_in_time
from tallystick.offline_store.pull import pull_rows
from tallystick.offline_store.sources.file_source import Snapshots


class DuckDBOfflineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """``offline_store`` in ``feature_store.yaml``."""

    type: Literal["tallystick.offline_store.DuckDBOfflineStore"] = (
        "tallystick.offline_store.DuckDBOfflineStore"
    )
    clock: Literal["knowledge", "event", "served"] = Field(
        default="event",
        description="When a row counts as visible in get_historical_features: from its event time "
        "on, as in Feast, once it was known, or once it was written online, by the journal of "
        "these writes.",
    )
    memory_limit: str | None = Field(
        default=None, description="For example 4GB; default 80% of the machine's memory."
    )
    threads: int | None = Field(default=None, ge=1, description="Default: one per core.")
    spill_dir: str | None = Field(
        default=None, description="Folder for what does not fit; default the system's temporary."
    )


def offline_config(repo: Repo) -> DuckDBOfflineStoreConfig:
    """The offline store's settings, or the defaults where the repo uses another store."""
    config = repo.store.config.offline_store
    return config if isinstance(config, DuckDBOfflineStoreConfig) else DuckDBOfflineStoreConfig()


class DuckDBOfflineStore(PointInTimeOfflineStore):
    """Parquet files and Delta tables, read on DuckDB."""

    @classmethod
    def engine(cls, config: RepoConfig) -> DuckDBEngine:
        """DuckDB, within the limits in the config."""
        return DuckDBEngine(config.offline_store, config.repo_path)

    @classmethod
    def limits(cls, config: RepoConfig) -> EngineLimits | None:
        """The limits in the config."""
        limits: EngineLimits = config.offline_store
        return limits


class DuckDBEngine:
    """The point-in-time rule on DuckDB: an :class:`OfflineEngine` for one call of Feast's.

    Args:
        config: Limits of the engine.
        repo_path: Folder from which relative source paths are taken.
    """

    def __init__(self, config: EngineLimits, repo_path: Path | str | None) -> None:
        snapshots = Snapshots()
        self.point_in_time = partial(
            point_in_time, config=config, repo_path=repo_path, snapshots=snapshots
        )
        self.changes_between = partial(
            changes_between, config=config, repo_path=repo_path, snapshots=snapshots
        )
        self.pull_rows = partial(pull_rows, config=config, repo_path=repo_path)
        self.query = partial(query_table, config, what="the entity query")
