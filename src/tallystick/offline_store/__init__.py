"""The offline stores: the fold, run over Parquet and Delta by DuckDB, or over more by Spark.

Training and audit call :func:`~tallystick.offline_store.point_in_time_join.point_in_time` and its
siblings directly; Feast's commands come through :class:`DuckDBOfflineStore` or
:class:`SparkOfflineStore`, named in ``feature_store.yaml`` as ``type:
tallystick.offline_store.DuckDBOfflineStore``, or so. Names are imported when they are first asked
for, so that the parts without Feast stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.offline_store.duckdb_connection import connect
    from tallystick.offline_store.duckdb_store import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from tallystick.offline_store.newly_visible import history_sql, visible_between
    from tallystick.offline_store.point_in_time_join import point_in_time
    from tallystick.offline_store.spark.spark_store import (
        SparkOfflineStore,
        SparkOfflineStoreConfig,
    )
    from tallystick.offline_store.view_history import ViewRead

__all__ = [
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "SparkOfflineStore",
    "SparkOfflineStoreConfig",
    "ViewRead",
    "connect",
    "history_sql",
    "point_in_time",
    "visible_between",
]

_HOMES = {
    "DuckDBOfflineStore": "duckdb_store",
    "DuckDBOfflineStoreConfig": "duckdb_store",
    "SparkOfflineStore": "spark.spark_store",
    "SparkOfflineStoreConfig": "spark.spark_store",
    "ViewRead": "view_history",
    "connect": "duckdb_connection",
    "history_sql": "newly_visible",
    "point_in_time": "point_in_time_join",
    "visible_between": "newly_visible",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
