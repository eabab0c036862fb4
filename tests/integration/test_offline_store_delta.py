"""Delta tables as sources: what is read of them, what is refused, and what is never seen."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from feast.data_format import DeltaFormat, ParquetFormat

from delta_tables import ask_of_readers, change_log, delete_rows
from point_in_time_stream import streamed
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError, DefinitionError, MissingExtraError
from tallystick.offline_store import (
    ViewRead,
    point_in_time,
    view_history,
)
from tallystick.offline_store.entity_rows import changes_between
from tallystick.offline_store.pull import Pull, pull_rows
from tallystick.offline_store.sources.delta_table import open_delta
from tallystick.offline_store.sources.file_source import Snapshots, open_source
from tallystick.offline_store.spark.spark_source import open_rows
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.storage.locations import LOCAL, Location
from visible_rows import visible_rows

FIRST = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
KNOWLEDGE = VisibilityClock.KNOWLEDGE


@pytest.fixture
def location(tmp_path):
    """Where a table is to be; signs in its name are only signs."""
    return tmp_path / "é 1%+"


def rows(*days, key=1, **more):
    times = pa.array([FIRST + day * DAY for day in days], pa.timestamp("us", tz="UTC"))
    return pa.table(
        {"key": [key] * len(days), "value": days, "event": times, "created": times} | more
    )


def add(location, table, **how):
    write_deltalake(str(location), table, mode="append", **how)


def read_of(location, *columns, dtypes=None, ttl=None, file_format=None):
    names = columns or ("value",)
    dtypes = dtypes or {}
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype="INT64"),),
        columns=tuple(Column(name=name, dtype=dtypes.get(name, "INT64")) for name in names),
        ttl_us=None if ttl is None else ttl // timedelta(microseconds=1),
        event_column="event",
        created_column="created",
    )
    source = SimpleNamespace(path=str(location), file_format=file_format or DeltaFormat())
    return ViewRead(spec=spec, source=source, name="stats", key_map={}, columns=names)


def values_at(read, *times, clock=KNOWLEDGE, **more):
    entity_rows = pa.table({"key": [1] * len(times), "at": list(times)})
    answer = point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=clock, **more
    )
    return answer[f"stats__{read.columns[0]}"].to_pylist()


def all_values(read):
    pull = Pull(("key",), (read.columns[0],), "event", "created", None, None)
    found = pull_rows(read.source, pull, config=None, repo_path=None)
    return sorted(found[read.columns[0]].to_pylist())


def files_of(location):
    return sorted(Path(location).glob("**/*.parquet"))


@pytest.mark.parametrize("file_format", [DeltaFormat(), ParquetFormat()])
def test_only_rows_that_the_newest_version_has_count(location, file_format):
    """Whether or not the source says that its folder is a Delta table."""
    add(location, rows(0, 1))
    add(location, rows(2))
    add(location, rows(3, 4))
    DeltaTable(str(location)).delete("value = 1 OR value = 2")
    DeltaTable(str(location)).create_checkpoint()
    assert len(files_of(location)) > len(DeltaTable(str(location)).file_uris())
    read = read_of(location, file_format=file_format)
    assert values_at(read, *(FIRST + day * DAY for day in range(5))) == [0, 0, 0, 3, 4]
    assert all_values(read) == [0, 3, 4]
    visible = visible_rows(read, after=FIRST, until=FIRST + 3 * DAY, clock=KNOWLEDGE)
    assert visible["value"].to_pylist() == [3]


def test_rows_that_a_deletion_vector_takes_do_not_count(location):
    add(location, rows(*range(10), day=["x y"] * 10), partition_by=["day"])
    delete_rows(location, [1, 7, 9])
    add(location, rows(10, 11, day=["x y"] * 2))
    read = read_of(location)
    assert values_at(read, *(FIRST + day * DAY for day in (1, 2, 7, 9, 11))) == [0, 2, 6, 8, 11]
    assert all_values(read) == [0, 2, 3, 4, 5, 6, 8, 10, 11]
    pull = Pull(("key",), ("value",), "event", "created", FIRST, FIRST + 9 * DAY)
    latest = pull_rows(read.source, replace(pull, is_latest=True), config=None, repo_path=None)
    assert latest["value"].to_pylist() == [8]


def test_a_null_time_of_a_deleted_row_is_none_of_the_table(location):
    table = rows(0, 1).set_column(2, "event", pa.array([FIRST, None], pa.timestamp("us", tz="UTC")))
    add(location, table)
    add(location, rows(5))
    with pytest.raises(DataError, match="column event: expected a time in every row, got 1 nulls"):
        values_at(read_of(location), FIRST)
    delete_rows(location, [1])
    assert values_at(read_of(location), FIRST) == [0]


def test_more_deleted_rows_than_can_be_held_are_refused(location, monkeypatch):
    add(location, rows(*range(5)))
    delete_rows(location, [1, 2])
    monkeypatch.setattr("tallystick.offline_store.sources.delta_table.DELETED_ROWS_MAX", 1)
    with pytest.raises(DataError, match=r"more than 1 rows that are deleted.*\n.*REORG TABLE"):
        values_at(read_of(location), FIRST)


@pytest.mark.parametrize(
    ("features", "configuration"),
    [
        (["typeWidening"], {}),
        (["timestampNtz", "variantType"], {}),
        (["columnMapping"], {"delta_columnMapping.mode": "name"}),
        (["columnMapping"], {"delta_columnMapping.mode": "id"}),
        (["notYetThoughtOf"], {}),
    ],
)
def test_what_reading_files_as_parquet_would_misread_is_refused(location, features, configuration):
    add(location, rows(0))
    ask_of_readers(location, *features, **configuration)
    if "columnMapping" in features:
        map_columns(location)
    with pytest.raises(DataError, match=f"The Delta table .*(?i:{features[-1]})"):
        values_at(read_of(location), FIRST)


def map_columns(location):
    def change(kind, held):
        if kind == "metaData":
            text = held["schemaString"]
            for number, name in enumerate(("key", "value", "event", "created"), 1):
                visible = (
                    f'"delta.columnMapping.id":{number},"delta.columnMapping.physicalName":"{name}"'
                )
                start = text.index(f'"name":"{name}"')
                at = text.index('"metadata":{', start) + len('"metadata":{')
                text = text[:at] + visible + text[at:]
            held["schemaString"] = text

    change_log(location, change)


@pytest.mark.parametrize(
    "features",
    [
        ["timestampNtz"],
        ["v2Checkpoint", "vacuumProtocolCheck"],
        ["deletionVectors"],
        ["columnMapping"],
    ],
)
def test_a_feature_that_a_table_allows_and_does_not_use_is_no_obstacle(location, features):
    add(location, rows(0))
    ask_of_readers(location, *features)
    assert values_at(read_of(location), FIRST) == [0]


def test_files_outside_of_the_table_are_refused(location):
    add(location, rows(0))

    def change(kind, held):
        if kind == "add":
            held["path"] = f"file:///elsewhere/{held['path']}"

    change_log(location, change)
    with pytest.raises(DataError, match="has files outside of its folder"):
        values_at(read_of(location), FIRST)


def test_partitions_are_columns_in_their_types(location):
    kinds = {
        "day": pa.array([date(2024, 1, 2), None]),
        "number": pa.array([2**31 - 1, -5], pa.int32()),
        "text": ["a/b=ü 1%", None],
        "flag": [True, False],
        "since": pa.array([FIRST, None], pa.timestamp("us", tz="UTC")),
        "ratio": pa.array([0.1, None], pa.float32()),
    }
    add(location, rows(0, 1, **kinds), partition_by=list(kinds))
    dtypes = {
        "day": "UNIX_TIMESTAMP",
        "number": "INT64",
        "text": "STRING",
        "flag": "BOOL",
        "since": "UNIX_TIMESTAMP",
        "ratio": "FLOAT",
    }
    expected = {
        "day": FIRST + DAY,
        "number": 2**31 - 1,
        "text": "a/b=ü 1%",
        "flag": True,
        "since": FIRST,
        "ratio": pa.scalar(0.1, pa.float32()).as_py(),
    }
    for name in kinds:
        read = read_of(location, name, dtypes=dtypes)
        second = {"number": -5, "flag": False}.get(name)
        assert values_at(read, FIRST, FIRST + DAY) == [expected[name], second], name
    pull = Pull(("key",), tuple(kinds), "event", "created", None, None)
    pulled = pull_rows(read.source, pull, config=None, repo_path=None).sort_by("event").to_pylist()
    assert pulled[0]["text"] == "a/b=ü 1%"
    assert pulled[0]["number"] == 2**31 - 1


def test_a_partition_can_be_the_event_time(location):
    times = pa.array([FIRST, FIRST + DAY], pa.timestamp("us", tz="UTC"))
    table = pa.table({"key": [1, 1], "value": [5, 6], "event": times, "created": times})
    add(location, table, partition_by=["event"])
    assert values_at(read_of(location, ttl=DAY), FIRST - DAY, FIRST, FIRST + DAY) == [None, 5, 6]


def spoil(path):
    """Have a file of the same size that cannot be read."""
    path.write_bytes(b"\xff" * path.stat().st_size)


def test_files_that_the_log_rules_out_are_not_even_opened(location):
    for day in range(6):
        add(location, rows(day))
    by_day = {pq.read_table(file)["value"][0].as_py(): file for file in files_of(location)}
    for day in (0, 1, 4, 5):
        spoil(by_day[day])
    read = read_of(location, ttl=DAY)
    assert values_at(read, FIRST + 3 * DAY) == [3]
    with pytest.raises(DataError, match="is not a Parquet file that can be read"):
        values_at(read_of(location), FIRST + 3 * DAY)
    pull = Pull(("key",), ("value",), "event", "created", FIRST + 2 * DAY, FIRST + 3 * DAY)
    assert pull_rows(read.source, pull, config=None, repo_path=None)["value"].to_pylist() == [2, 3]


def test_times_that_the_log_cuts_do_not_rule_out_a_file(location):
    """The log has milliseconds, the rows microseconds."""
    late = FIRST + timedelta(microseconds=900)
    time = pa.array([late], pa.timestamp("us", tz="UTC"))
    add(location, rows(5))
    sleep(0.002)  # the log orders files by milliseconds
    add(location, pa.table({"key": [1], "value": [7], "event": time, "created": time}))
    files = open_delta(Location(LOCAL, str(location)), "it")
    visible = pa.table(DeltaTable(str(location)).get_add_actions())["max"].combine_chunks()
    assert FIRST in visible.field("event").to_pylist()
    assert None not in files.known_times("event")
    read = read_of(location, ttl=timedelta(microseconds=50))
    assert values_at(read, late + timedelta(microseconds=50)) == [7]


def test_a_column_that_older_files_lack_is_null_in_them(location):
    add(location, rows(0))
    add(location, rows(1, more=["x"], parts=[[1, 2]]), schema_mode="merge")
    for name, dtype, value in (("more", "STRING", "x"), ("parts", "INT64_LIST", [1, 2])):
        read = read_of(location, name, dtypes={name: dtype}, ttl=timedelta(hours=1))
        assert values_at(read, FIRST, FIRST + DAY) == [None, value]
        # Only the file without the column is read.
        assert values_at(read, FIRST) == [None]


def test_an_empty_table_has_no_rows(location):
    DeltaTable.create(str(location), rows(0).schema)
    assert values_at(read_of(location), FIRST) == [None]
    assert all_values(read_of(location)) == []
    pull = Pull(("key",), ("value",), "event", "created", FIRST, None)
    pull = replace(pull, is_latest=True)
    assert pull_rows(read_of(location).source, pull, config=None, repo_path=None).num_rows == 0
    with pytest.raises(DataError, match="column absent"):
        values_at(read_of(location, "absent"), FIRST)


def test_times_that_other_writers_store_otherwise_are_the_same(location):
    """Spark writes times in 96 bits and without a zone, also far from now."""
    far = datetime(2300, 1, 1, 0, 0, 0, 5, tzinfo=UTC)
    add(location, rows(0, since=pa.array([far], pa.timestamp("us", tz="UTC"))))
    add(location, rows(1, since=pa.array([far], pa.timestamp("us", tz="UTC"))))
    file = files_of(location)[0]
    pq.write_table(pq.read_table(file), file, use_deprecated_int96_timestamps=True)
    read = read_of(location, "since", dtypes={"since": "UNIX_TIMESTAMP"})
    assert values_at(read, FIRST, FIRST + DAY) == [far, far]
    naive = rows(0).set_column(2, "event", pa.array([datetime(2024, 1, 1)], pa.timestamp("us")))
    write_deltalake(str(location), naive, mode="overwrite", schema_mode="overwrite")
    assert DeltaTable(str(location)).protocol().reader_features == ["timestampNtz"]
    assert values_at(read_of(location), FIRST - DAY, FIRST) == [None, 0]


def test_one_answer_is_of_one_version(location):
    """However many views read the table, and whatever is committed while they do."""
    add(location, rows(0))
    both = [read_of(location), read_of(location)]
    snapshots = Snapshots()
    first = open_source(both[0].source, None, snapshots=snapshots)
    add(location, rows(1))
    assert open_source(both[1].source, None, snapshots=snapshots) is first
    assert values_at(both[0], FIRST + DAY, snapshots=snapshots) == [0]
    assert values_at(both[0], FIRST + DAY) == [1]


@pytest.fixture
def committed_between(location, monkeypatch):
    """Have one more row committed each time that a view's source is looked up."""
    look_up, turn, days = view_history.open_source, threading.Lock(), itertools.count(1)

    def looked_up(*args, **kwargs):
        with turn:
            add(location, rows(next(days)))
            return look_up(*args, **kwargs)

    add(location, rows(0))
    monkeypatch.setattr(view_history, "open_source", looked_up)


@pytest.mark.usefixtures("committed_between")
def test_all_views_of_an_answer_see_one_version(location, tmp_path):
    reads = [dataclasses.replace(read_of(location), name=name) for name in ("a", "b", "c")]
    entity_rows = pa.table({"key": [1], "at": [FIRST + 99 * DAY]})
    requested = {"request_time": "at", "reads": reads, "clock": KNOWLEDGE}
    answer = point_in_time(entity_rows=entity_rows, **requested).to_pylist()
    assert [answer[0][f"{name}__value"] for name in "abc"] == [1, 1, 1]
    answer = streamed(entity_rows, tmp_path, **requested).to_pylist()
    assert [answer[0][f"{name}__value"] for name in "abc"] == [4, 4, 4]
    changes = changes_between(reads, start=FIRST, end=FIRST + 99 * DAY, time="at", clock=KNOWLEDGE)
    assert changes["at"].to_pylist() == [FIRST + day * DAY for day in range(8)]


@pytest.mark.parametrize("content", [None, "folder", "parquet"])
def test_what_is_no_table_is_named(tmp_path, content):
    location = tmp_path / "data"
    if content is not None:
        location.mkdir()
    if content == "parquet":
        pq.write_table(rows(0), location / "a.parquet")
    with pytest.raises(DataError, match=r"The source .*data has no Delta table"):
        values_at(read_of(location), FIRST)


@pytest.mark.parametrize("name", ["a%20b", "a[1]", "a|b"])
def test_a_path_that_would_be_taken_for_another_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="has a character in its path"):
        values_at(read_of(tmp_path / name), FIRST)


def test_a_damaged_log_is_named(location):
    add(location, rows(0))
    (location / "_delta_log" / f"{0:020d}.json").write_text("{")
    with pytest.raises(DataError, match=r"The Delta table .* cannot be used: "):
        values_at(read_of(location), FIRST)


def test_without_the_package_the_extra_is_named(location, monkeypatch):
    add(location, rows(0))
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tallystick\[delta\]'"):
        values_at(read_of(location), FIRST)


def test_spark_names_the_source_that_it_reads(location):
    add(location, rows(0))
    with pytest.raises(DefinitionError, match=r"it is a Delta table\.\n.*file_format='delta'"):
        open_rows(None, read_of(location).source, None)
