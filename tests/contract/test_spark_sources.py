"""Feast's sources for Spark, read under the point-in-time rule."""

from __future__ import annotations

import dataclasses

import pytest

from rule_oracle import FEATURES, entity_table, view_read, write
from tallystick.errors import DataError
from tallystick.point_in_time.rule import VisibilityClock

pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore:The spark data source API:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]


@pytest.fixture
def engine(spark_conf):
    from tallystick.offline_store.spark.spark_session import open_session
    from tallystick.offline_store.spark.spark_store import SparkEngine

    return SparkEngine(open_session(spark_conf), None)


def counted(engine, folder, **location):
    from feast.infra.offline_stores.contrib.spark_offline_store.spark_source import SparkSource

    source = SparkSource(name="rows", timestamp_field="event", **location)
    read = dataclasses.replace(view_read(folder, ("text",)), source=source, columns=("count",))
    entity_rows = entity_table([{"text": "a", "number": 1, "at": at} for at in (0, 1, 2)])
    answer = engine.point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=VisibilityClock.KNOWLEDGE
    )
    return answer["s__count"].to_pylist()


@pytest.fixture
def folder(tmp_path):
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "created": 1}
    history = [row | {"event": 1, "count": 2**53 + count} for count in (7, 8, 6)]
    return write([*history, row | {"event": 2, "count": 5}], tmp_path, 1)


def test_a_path_is_read_in_the_order_of_its_files(engine, folder):
    expected = [None, 2**53 + 7, 5]
    assert counted(engine, folder, path=str(folder), file_format="parquet") == expected


def test_tables_and_queries_are_read(engine, folder):
    engine.session.read.parquet(str(folder)).createOrReplaceGlobalTempView("rows")
    tied = {2**53 + count for count in (6, 7, 8)}  # which of them, no order says
    for location in ({"table": "global_temp.rows"}, {"query": "SELECT * FROM global_temp.rows"}):
        before, at, after = counted(engine, folder, **location)
        assert (before, after) == (None, 5)
        assert at in tied


def test_what_spark_cannot_read_is_our_error(engine, folder):
    with pytest.raises(DataError, match="Cannot read the source nowhere"):
        counted(engine, folder, table="nowhere")
