"""The offline stores: the point-in-time rule over Parquet and Delta by DuckDB, or by Spark.

Training and the audit call :func:`~tallystick.offline_store.point_in_time_join.point_in_time`.
Feast's commands use :class:`DuckDBOfflineStore` or :class:`SparkOfflineStore`, named in
``feature_store.yaml`` as ``type: tallystick.offline_store.DuckDBOfflineStore``. Each name is
imported at its first use, so that the parts without Feast stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.offline_store.duckdb_connection import connect
    from tallystick.offline_store.duckdb_store import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from tallystick.offline_store.newly_visible import read_newly_visible
    from tallystick.offline_store.point_in_time_join import point_in_time
    from tallystick.offline_store.spark.spark_store import (
        SparkOfflineStore,
        SparkOfflineStoreConfig,
    )
    from tallystick.offline_store.view_read import ViewRead

__all__ = [
    "DuckDBOfflineStore",
    "DuckDBOfflineStoreConfig",
    "SparkOfflineStore",
    "SparkOfflineStoreConfig",
    "ViewRead",
    "connect",
    "point_in_time",
    "read_newly_visible",
]

_HOMES = {
    "DuckDBOfflineStore": "duckdb_store",
    "DuckDBOfflineStoreConfig": "duckdb_store",
    "SparkOfflineStore": "spark.spark_store",
    "SparkOfflineStoreConfig": "spark.spark_store",
    "ViewRead": "view_read",
    "connect": "duckdb_connection",
    "point_in_time": "point_in_time_join",
    "read_newly_visible": "newly_visible",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module at its first use (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
