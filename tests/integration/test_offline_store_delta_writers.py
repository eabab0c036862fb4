"""Writers of a Delta table: in processes of their own, through Feast, and to an object store."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from deltalake import Field as DeltaField
from deltalake.schema import PrimitiveType
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import (
    FileLoggingDestination,
    SavedDatasetFileStorage,
)
from feast.types import Int64

from delta_tables import ask_of_readers
from feast_stores import DUCKDB, feast_store
from tallystick.errors import DataError, MissingExtraError, UnavailableError
from tallystick.offline_store import DuckDBOfflineStore
from tallystick.offline_store.sources.delta_writer import commit_rows
from tallystick.offline_store.sources.file_source import open_source, source_location
from tallystick.offline_store.sources.parquet_writer import append
from tallystick.storage.locations import LOCAL, Location
from visible_rows import all_rows

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
TIME = pa.timestamp("us", tz="UTC")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")

WRITER = """
import sys
from types import SimpleNamespace
import pyarrow as pa
from tallystick.offline_store.sources.parquet_writer import append
class DeltaFormat: "Feast's, whose import takes seconds."
path, endpoint, first, times, rows = *sys.argv[1:3], *map(int, sys.argv[3:])
source = SimpleNamespace(
    path=path, s3_endpoint_override=endpoint, field_mapping={}, file_format=DeltaFormat()
)
for number in range(first, first + times):
    append(source, pa.table({"writer": [first] * rows, "number": [number] * rows}), repo_path=None)
"""


def source_of(path, endpoint=""):
    return SimpleNamespace(
        path=str(path), s3_endpoint_override=endpoint, field_mapping={}, file_format=DeltaFormat()
    )


def rows(*values, key=1, at=NOON):
    times = pa.array([at + HOUR * location for location in range(len(values))], TIME)
    return pa.table({"key": [key] * len(values), "value": values, "event": times, "created": times})


def read(source):
    """All rows of a source."""
    return all_rows(open_source(source, None))


def numbers_in(source):
    """The numbers of whole appends that a reader sees; half of one fails."""
    if not source_location(source, None).is_delta_table():  # nobody was first yet
        return {}
    found = read(source)["number"].to_pylist()
    return {number: found.count(number) for number in set(found)}


def check_writers(source, *, writers, times, rows_each):
    """They make the table, too; and no reader sees half of an append, or less than before."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, source.path, source.s3_endpoint_override]
            + [str(each) for each in (1000 * number, times, rows_each)]
        )
        for number in range(writers)
    ]
    seen = 0
    while any(each.poll() is None for each in started):
        found = numbers_in(source)
        assert set(found.values()) <= {rows_each}
        assert len(found) >= seen
        seen = len(found)
    assert [each.wait() for each in started] == [0] * writers
    every = {1000 * number + at for number in range(writers) for at in range(times)}
    assert numbers_in(source) == dict.fromkeys(every, rows_each)


def test_writers_lose_nothing_and_readers_see_whole_commits(tmp_path):
    source = source_of(tmp_path / "table")
    check_writers(source, writers=4, times=12, rows_each=50)
    # One commit each: the table's making is one of them.
    assert DeltaTable(source.path).version() == 4 * 12 - 1


def test_writers_to_an_object_store_lose_nothing(bucket):
    check_writers(
        source_of(bucket.uri("deep/é table"), bucket.endpoint), writers=3, times=5, rows_each=20
    )


def test_a_commit_that_others_are_always_before_is_given_up(tmp_path, monkeypatch):
    """And is not in the table."""
    location = Location(LOCAL, str(tmp_path / "table"))
    commit_rows(location, "it", rows(0))
    monkeypatch.setattr("tallystick.offline_store.sources.delta_writer.COMMIT_TRIES_MAX", 0)
    monkeypatch.setattr("tallystick.offline_store.sources.delta_writer.WRITE_TRIES_MAX", 2)

    def fitted(given, schema):
        assert schema.names == given.column_names
        write_deltalake(location.path, rows(1), mode="append")
        return given

    with pytest.raises(UnavailableError, match="another writer was first"):
        commit_rows(location, "it", rows(2), fitted=fitted)
    assert sorted(read(source_of(location.path))["value"].to_pylist()) == [0, 1, 1]


def test_rows_fit_a_table_that_another_writer_changes_meanwhile(tmp_path):
    source = source_of(tmp_path / "table")
    append(source, rows(1), repo_path=None)
    seen = []

    def fitted(given, schema):
        seen.append(schema.names)
        if len(seen) == 1:
            more = DeltaField("more", PrimitiveType("long"))
            DeltaTable(source.path).alter.add_columns([more])
        return pa.table(
            {
                each.name: given[each.name]
                if each.name in given.column_names
                else pa.nulls(given.num_rows, each.type)
                for each in schema
            }
        )

    commit_rows(Location(LOCAL, source.path), "it", rows(2), fitted=fitted)
    assert seen == [["key", "value", "event", "created"], [*seen[0], "more"]]
    assert sorted(read(source)["value"].to_pylist()) == [1, 2]


def test_rows_are_fitted_to_the_table(tmp_path):
    source = source_of(tmp_path / "table")
    source.field_mapping = {"value": "renamed"}
    write_deltalake(source.path, rows(1), partition_by=["key"])
    given = rows(2, 3).rename_columns(["key", "renamed", "event", "created"])
    late = pa.array([1_577_880_000_000_000_999] * 2, pa.timestamp("ns", tz="America/New_York"))
    given = given.set_column(2, "event", late).select(["created", "event", "key", "renamed"])
    append(source, given, repo_path=None)
    found = read(source).sort_by("value")
    assert found["value"].to_pylist() == [1, 2, 3]
    assert found["event"].to_pylist() == [NOON, NOON, NOON]
    with pytest.raises(DataError, match="column value: expected a column, got no such column"):
        append(source, given.drop_columns("renamed"), repo_path=None)
    with pytest.raises(DataError, match=r"Column value for .* has a value that is not int64"):
        append(source, given.set_column(3, "renamed", pa.array([1.5, 2.0])), repo_path=None)
    assert DeltaTable(source.path).version() == 1


def test_an_empty_text_is_not_written_as_a_partition_value(tmp_path):
    """Delta has an empty text there as null, so another value would come back."""
    source = source_of(tmp_path / "table")
    given = rows(1, 2).append_column("day", pa.array(["a", None]))
    write_deltalake(source.path, given, partition_by=["day"])
    empty = rows(3, 4).append_column("day", pa.array(["b", ""]))
    with pytest.raises(DataError, match="column day: expected a text that is not empty, or null"):
        append(source, empty, repo_path=None)
    assert DeltaTable(source.path).version() == 0
    append(source, empty.slice(0, 1), repo_path=None)
    found = pa.table(DeltaTable(source.path).to_pyarrow_table()).sort_by("value")
    assert found["day"].to_pylist() == ["a", None, "b"]
    plain = source_of(tmp_path / "plain")
    append(plain, empty, repo_path=None)
    append(plain, empty, repo_path=None)
    found = pa.table(DeltaTable(plain.path).to_pyarrow_table())
    assert sorted(found["day"].to_pylist()) == ["", "", "b", "b"]


def test_a_new_table_has_types_that_every_reader_knows(tmp_path):
    source = source_of(tmp_path / "table")
    given = {
        "small": pa.array([200], pa.uint8()),
        "large": pa.array([2**63 - 1], pa.uint64()),
        "naive": pa.array([datetime(2020, 1, 1, 12)], pa.timestamp("ns")),
        "local": pa.array([NOON], pa.timestamp("s", tz="America/New_York")),
        "word": pa.array(["a"]).dictionary_encode(),
        "words": pa.array([["a"]], pa.large_list(pa.large_string())),
    }
    append(source, pa.table(given), repo_path=None)
    table = DeltaTable(source.path)
    assert table.protocol().reader_features is None
    assert read(source).select(list(given)).to_pylist() == [
        {
            "small": 200,
            "large": 2**63 - 1,
            "naive": NOON,
            "local": NOON,
            "word": "a",
            "words": ["a"],
        }
    ]
    other = source_of(tmp_path / "other")
    with pytest.raises(DataError, match="column empty: expected a type, got nulls alone"):
        append(other, pa.table({"empty": pa.nulls(1)}), repo_path=None)
    with pytest.raises(DataError, match="Column large for"):
        append(other, pa.table({"large": pa.array([2**63], pa.uint64())}), repo_path=None)
    with pytest.raises(DataError, match=r"The Delta table .* cannot be used: .*Duration"):
        append(other, pa.table({"span": pa.array([HOUR])}), repo_path=None)


def test_rows_are_not_added_to_a_table_that_is_not_read(tmp_path):
    source = source_of(tmp_path / "table")
    append(source, rows(1), repo_path=None)
    ask_of_readers(tmp_path / "table", "typeWidening")
    with pytest.raises(DataError, match="cannot be read without typeWidening"):
        append(source, rows(2), repo_path=None)


def test_without_the_package_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(MissingExtraError, match=r"tallystick\[delta\]"):
        append(source_of(tmp_path / "table"), rows(1), repo_path=None)
    assert not (tmp_path / "table").exists()


def store_in(folder):
    return feast_store(folder, offline=DUCKDB | {"clock": "knowledge"})


@pytest.fixture(params=["local", "object store"])
def somewhere(request):
    """A location for tables: the path of one by its name, and the endpoint of S3."""
    if request.param == "local":
        return (lambda name: name), None
    bucket = request.getfixturevalue("bucket")
    return bucket.uri, bucket.endpoint


def test_feast_reads_materializes_pushes_profiles_and_saves(somewhere, tmp_path):
    path, endpoint = somewhere
    store = store_in(tmp_path)
    source = FileSource(
        path=path("data"),
        file_format=DeltaFormat(),
        s3_endpoint_override=endpoint,
        timestamp_field="event",
        created_timestamp_column="created",
    )
    append(source, rows(2**53 + 1, 2), repo_path=tmp_path)
    entity = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats", entities=[entity], schema=[Field(name="value", dtype=Int64)], source=source
    )
    store.apply([entity, view])
    later = NOON + 2 * HOUR
    store.write_to_offline_store(
        "stats",
        pd.DataFrame({"key": [1], "value": [3], "event": [later], "created": [later + HOUR / 2]}),
    )
    store.materialize(NOON - HOUR, later + HOUR)
    online = store.get_online_features(["stats:value"], [{"key": 1}]).to_dict()
    assert online["value"] == [3]
    entity_rows = pd.DataFrame({"key": [1, 1, 2], "event_timestamp": [NOON, later, later]})
    job = store.get_historical_features(entity_rows, ["stats:value"])
    assert job.to_df()["value"].fillna(-1).tolist() == [2**53 + 1, 2, -1]
    moments = store.get_historical_features(
        None, ["stats:value"], start_date=NOON, end_date=later + HOUR
    )
    append(source, rows(99, at=later + HOUR / 4), repo_path=tmp_path)
    # The request is answered from the version of that moment.
    assert moments.to_df()["value"].tolist() == [2**53 + 1, 2, 3]
    profile = DuckDBOfflineStore.compute_monitoring_metrics(
        store.config, source, [("value", "numeric")], "event", NOON + HOUR, later
    )
    assert (profile[0]["row_count"], profile[0]["mean"]) == (2, 2.5)
    last = DuckDBOfflineStore.get_monitoring_max_timestamp(store.config, source, "event")
    assert last == later + HOUR / 4

    storage = SavedDatasetFileStorage(
        path=path("saved"), file_format=DeltaFormat(), s3_endpoint_override=endpoint
    )
    with pytest.warns(RuntimeWarning, match="Saving dataset is an experimental feature"):
        saved = store.create_saved_dataset(job, "saved", storage)
    assert sorted(saved.to_df()["value"].dropna().tolist()) == [2, 2**53 + 1]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    other = store.get_historical_features(entity_rows[:1].assign(more="x"), ["stats:value"])
    other.persist(storage, allow_overwrite=True)
    again = read(source_of(path("saved") if endpoint else tmp_path / "saved", endpoint))
    assert again.select(["key", "more", "value"]).to_pylist() == [
        {"key": 1, "more": "x", "value": 2**53 + 1}
    ]


def test_logged_features_are_added_to_a_delta_table_by_a_commit(somewhere, tmp_path):
    path, endpoint = somewhere
    store = store_in(tmp_path)
    destination = FileLoggingDestination(path=path("logs"), s3_endpoint_override=endpoint or "")
    logs = source_of(path("logs") if endpoint else tmp_path / "logs", endpoint)
    append(logs, rows(1), repo_path=None)
    for value in (2, 3):
        DuckDBOfflineStore.write_logged_features(
            store.config,
            rows(value),
            SimpleNamespace(),
            LoggingConfig(destination=destination),
            SimpleNamespace(),
        )
    assert sorted(read(logs)["value"].to_pylist()) == [1, 2, 3]


def test_partitions_in_an_object_store_are_read(bucket):
    source = source_of(bucket.uri("a/by text"), bucket.endpoint)
    append(source, rows(1).append_column("text", pa.array(["z"])).slice(0, 0), repo_path=None)
    commit = rows(1, 2, 3).append_column("text", pa.array(["a/b=ü 1%", None, "z"]))
    other = source_of(bucket.uri("partitioned"), bucket.endpoint)
    options = {
        "AWS_ENDPOINT_URL": bucket.endpoint,
        "AWS_ALLOW_HTTP": "true",
    }
    write_deltalake(other.path, commit, partition_by=["text"], storage_options=options)
    append(other, commit.slice(0, 1), repo_path=None)
    assert read(source).num_rows == 0
    assert sorted(map(str, read(other)["text"].to_pylist())) == ["None", *["a/b=ü 1%"] * 2, "z"]


def test_threads_of_one_process_write_at_once(tmp_path):
    source = source_of(tmp_path / "table")
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(lambda at: append(source, rows(at), repo_path=None), range(24)))
    assert sorted(read(source)["value"].to_pylist()) == list(range(24))


@pytest.mark.usefixtures("bucket")
def test_a_store_that_does_not_answer_is_unavailable():
    with socket.socket() as bound:  # bound, so that no other process listens there
        bound.bind(("127.0.0.1", 0))
        source = source_of("s3://b/a", f"http://127.0.0.1:{bound.getsockname()[1]}")
        with pytest.raises(UnavailableError, match="The store of s3://b/a did not answer"):
            read(source)
        with pytest.raises(UnavailableError, match="The store of s3://b/a did not answer"):
            append(source, rows(1), repo_path=None)


def test_a_bucket_that_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match="The Delta table s3://no-such-bucket/a cannot be used"):
        read(source_of("s3://no-such-bucket/a", bucket.endpoint))
