"""Sources, appended rows and saved datasets in an object store, against a real S3 server."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.types import Int64

from feast_stores import DUCKDB, feast_store
from point_in_time_stream import streamed
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError, UnavailableError
from tallystick.offline_store import ViewRead, point_in_time
from tallystick.offline_store.sources.parquet_writer import append
from tallystick.point_in_time.rule import VisibilityClock
from visible_rows import visible_rows

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
CLOCK = VisibilityClock.KNOWLEDGE

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")


def rows(*values, key=1, at=NOON):
    times = [at + HOUR * location for location in range(len(values))]
    return pa.table({"key": [key] * len(values), "value": values, "event": times, "created": times})


def read_of(uri, endpoint):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype="INT64"),),
        columns=(Column(name="value", dtype="INT64"),),
        ttl_us=None,
        event_column="event",
        created_column="created",
    )
    source = SimpleNamespace(path=uri, s3_endpoint_override=endpoint, field_mapping={})
    return ViewRead(spec=spec, source=source, name="stats", key_map={}, columns=("value",))


def values_at(read, *times, **more):
    entity_rows = pa.table({"key": [1] * len(times), "at": list(times)})
    answer = point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=CLOCK, **more
    )
    return answer["stats__value"].to_pylist()


@pytest.mark.parametrize("path", ["data/a.parquet", "data", "data/", "data/*.parquet", "*/a.*", ""])
def test_files_folders_globs_and_buckets_are_read(bucket, path):
    bucket.filesystem.create_dir(f"{bucket.name}/data")
    pq.write_table(
        rows(2**53 + 1, 7), f"{bucket.name}/data/a.parquet", filesystem=bucket.filesystem
    )
    pq.write_table(rows(9), f"{bucket.name}/data/_b.parquet", filesystem=bucket.filesystem)
    read = read_of(bucket.uri(path), bucket.endpoint)
    assert values_at(read, NOON - HOUR, NOON, NOON + HOUR) == [None, 2**53 + 1, 7]
    visible = visible_rows(read, until=NOON, clock=CLOCK)
    assert visible["value"].to_pylist() == [2**53 + 1]


def test_rows_of_several_files_are_read(bucket):
    read = read_of(bucket.uri("data"), bucket.endpoint)
    append(read.source, rows(1, 2), repo_path=None)
    append(read.source, rows(3, at=NOON + 2 * HOUR), repo_path=None)
    assert values_at(read, NOON, NOON + HOUR, NOON + 2 * HOUR) == [1, 2, 3]


def test_an_answer_is_streamed(bucket, tmp_path):
    read = read_of(bucket.uri("data"), bucket.endpoint)
    append(read.source, rows(1, 2), repo_path=None)
    entity_rows = pa.table({"key": [1, 1], "at": [NOON, NOON + HOUR]})
    answer = streamed(entity_rows, tmp_path, request_time="at", reads=[read], clock=CLOCK)
    assert answer["stats__value"].to_pylist() == [1, 2]


def test_appended_rows_are_seen_at_once_in_a_file_of_their_own(bucket):
    read = read_of(bucket.uri("new/data"), bucket.endpoint)
    append(read.source, rows(1), repo_path=None)
    assert values_at(read, NOON + HOUR) == [1]
    append(read.source, rows(2, at=NOON + HOUR), repo_path=None)
    assert values_at(read, NOON, NOON + HOUR) == [1, 2]
    with pytest.raises(DataError, match="column value: expected a column, got no such column"):
        append(read.source, rows(3).drop_columns("value"), repo_path=None)


def test_a_changed_object_is_read_anew(bucket):
    location = f"{bucket.name}/a.parquet"
    read = read_of(bucket.uri("a.parquet"), bucket.endpoint)
    pq.write_table(rows(1), location, filesystem=bucket.filesystem)
    assert values_at(read, NOON) == [1]
    pq.write_table(rows(*range(100, 200)), location, filesystem=bucket.filesystem)
    assert values_at(read, NOON) == [100]


def test_writers_at_once_lose_nothing(bucket):
    read = read_of(bucket.uri("data"), bucket.endpoint)

    def write(number):
        append(read.source, rows(number, key=number), repo_path=None)

    write(0)
    with ThreadPoolExecutor(max_workers=4) as threads:
        list(threads.map(write, range(1, 20)))
    visible = visible_rows(read, until=NOON, clock=CLOCK)
    assert sorted(visible["value"].to_pylist()) == list(range(20))


def test_rows_are_not_added_to_an_object_that_two_writers_might_replace(bucket):
    source = read_of(bucket.uri("a.parquet"), bucket.endpoint).source
    with pytest.raises(DataError, match=r"a\.parquet: an object store has no locks"):
        append(source, rows(1), repo_path=None)
    with pytest.raises(DataError, match="a glob does not say into which file"):
        append(read_of(bucket.uri("*"), bucket.endpoint).source, rows(1), repo_path=None)


def test_what_is_not_there_is_named(bucket):
    with pytest.raises(DataError, match=rf"{bucket.uri('absent')} does not exist or is empty"):
        values_at(read_of(bucket.uri("absent"), bucket.endpoint), NOON)
    with pytest.raises(DataError, match=r"no-such-bucket/a\.parquet"):
        values_at(read_of("s3://no-such-bucket/a.parquet", bucket.endpoint), NOON)
    with bucket.filesystem.open_output_stream(f"{bucket.name}/torn.parquet") as stream:
        stream.write(b"PAR1 and no more")
    with pytest.raises(DataError, match=f"{bucket.uri('torn.parquet')} is not a Parquet file"):
        values_at(read_of(bucket.uri("torn.parquet"), bucket.endpoint), NOON)


@pytest.mark.usefixtures("bucket")
def test_a_store_that_does_not_answer_is_unavailable():
    with socket.socket() as requested:  # bound, so that no other process listens there
        requested.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{requested.getsockname()[1]}"
        with pytest.raises(UnavailableError, match="The store of s3://b/a did not answer"):
            values_at(read_of("s3://b/a", endpoint), NOON)


def test_a_file_uri_is_a_local_path(tmp_path):
    pq.write_table(rows(5), tmp_path / "a.parquet")
    assert values_at(read_of(f"file://{tmp_path}/a.parquet", None), NOON) == [5]


def test_feast_reads_materializes_writes_and_saves_there(bucket, tmp_path):
    store = feast_store(tmp_path, offline=DUCKDB)
    source = FileSource(
        path=bucket.uri("data"),
        s3_endpoint_override=bucket.endpoint,
        timestamp_field="event",
        created_timestamp_column="created",
    )
    append(source, rows(1, 2), repo_path=tmp_path)
    entity = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats", entities=[entity], schema=[Field(name="value", dtype=Int64)], source=source
    )
    store.apply([entity, view])
    later = NOON + 2 * HOUR
    store.write_to_offline_store(
        "stats", pd.DataFrame({"key": [1], "value": [3], "event": [later], "created": [later]})
    )
    store.materialize(NOON - HOUR, later + HOUR)
    online = store.get_online_features(["stats:value"], [{"key": 1}]).to_dict()
    assert online["value"] == [3]
    entity_rows = pd.DataFrame({"key": [1, 1], "event_timestamp": [NOON, later]})
    job = store.get_historical_features(entity_rows, ["stats:value"])
    storage = SavedDatasetFileStorage(
        path=bucket.uri("saved/set.parquet"), s3_endpoint_override=bucket.endpoint
    )
    job.persist(storage)
    saved = pq.read_table(f"{bucket.name}/saved/set.parquet", filesystem=bucket.filesystem)
    assert saved["value"].to_pylist() == [1, 3]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)
    folder = SavedDatasetFileStorage(
        path=bucket.uri("saved/sets"), s3_endpoint_override=bucket.endpoint
    )
    for _ in range(2):
        job.persist(folder, allow_overwrite=True)
    saved = pq.read_table(f"{bucket.name}/saved/sets", filesystem=bucket.filesystem)
    assert saved["value"].to_pylist() == [1, 3]
