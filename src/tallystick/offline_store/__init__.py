"""The offline stores: the fold, run over Parquet and Delta by DuckDB, or over more by Spark.

Training and audit call :func:`~tallystick.offline_store.retrieval.point_in_time` and its siblings
directly; Feast's commands come through :class:`DuckDBOfflineStore` or :class:`SparkOfflineStore`,
named in ``feature_store.yaml`` as ``type: tallystick.offline_store.DuckDBOfflineStore``, or so.
Names are imported when they are first asked for, so that the parts without Feast stay light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.offline_store.connection import connect
    from tallystick.offline_store.feast_store import DuckDBOfflineStore, DuckDBOfflineStoreConfig
    from tallystick.offline_store.history import ViewRead
    from tallystick.offline_store.retrieval import point_in_time
    from tallystick.offline_store.spark.store import SparkOfflineStore, SparkOfflineStoreConfig
    from tallystick.offline_store.visible import history_sql, visible_between

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
    "DuckDBOfflineStore": "feast_store",
    "DuckDBOfflineStoreConfig": "feast_store",
    "SparkOfflineStore": "spark.store",
    "SparkOfflineStoreConfig": "spark.store",
    "ViewRead": "history",
    "connect": "connection",
    "history_sql": "visible",
    "point_in_time": "retrieval",
    "visible_between": "visible",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
