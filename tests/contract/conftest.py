"""The engines of the point-in-time rule; each test of the contract runs on each."""

from __future__ import annotations

import pytest

# One core, no page, no other machine: what is tested is the SQL, not the cluster.
SPARK_CONF = {
    "spark.master": "local[1]",
    "spark.ui.enabled": "false",
    "spark.sql.shuffle.partitions": "1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
}
STORES = {
    "duckdb": {
        "type": "tallystick.offline_store.DuckDBOfflineStore",
        "clock": "knowledge",
        "threads": 1,
    },
    "spark": {
        "type": "tallystick.offline_store.SparkOfflineStore",
        "clock": "knowledge",
        "spark_conf": SPARK_CONF,
    },
}


@pytest.fixture(scope="session", params=["duckdb", pytest.param("spark", marks=pytest.mark.spark)])
def offline_store(request):
    """``offline_store`` of a feature_store.yaml."""
    return STORES[request.param]


@pytest.fixture
def spark_conf():
    """The settings of the Spark application of the tests."""
    return SPARK_CONF
