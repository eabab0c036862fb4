"""What a materialization brings online, and what it reads for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from tallystick.clock import to_us
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.errors import DataError, StateError
from tallystick.materialization.materializer import Materializer
from tallystick.offline_store.duckdb_connection import DefaultLimits
from tallystick.offline_store.newly_visible import BATCH_ROWS, read_newly_visible
from tallystick.offline_store.view_read import ViewRead
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.storage.atomic_files import replacing

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MANY = 300_000
SETTINGS = """\
project: visits
provider: local
registry: data/registry.db
offline_store: {{type: tallystick.offline_store.DuckDBOfflineStore}}
online_store:
  type: tallystick.online_store.RedisOnlineStore
  connection_string: {connection_string}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.data_format import DeltaFormat, ParquetFormat
from feast.types import Int64

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)


def view(name, file_format=None, **more):
    return FeatureView(
        name=name,
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="user", dtype=Int64), Field(name="n", dtype=Int64)],
        source=FileSource(
            name=name,
            path=f"data/{name}",
            timestamp_field="event",
            file_format=file_format,
            **more,
        ),
    )


known = view("known", created_timestamp_column="created")
unstamped = view("unstamped")
versioned = view("versioned", DeltaFormat(), created_timestamp_column="created")
"""


@pytest.fixture
def repo(tmp_path, redis_server):
    path = tmp_path / "repo"
    for name in ("known", "unstamped"):
        (path / "data" / name).mkdir(parents=True)
        pq.write_table(rows([0], 0, NOON), path / "data" / name / "first.parquet")
    write_deltalake(path / "data" / "versioned", rows([0], 0, NOON))
    string = redis_server.connection_string
    (path / "feature_store.yaml").write_text(SETTINGS.format(connection_string=string))
    (path / "visit_definitions.py").write_text(DEFINITIONS)
    opened = open_repo(path)
    apply(opened)
    return opened


def rows(users, n, event, created=None):
    kind = pa.timestamp("us", "UTC")
    count = len(users)
    return pa.table(
        {
            "user": pa.array(users, pa.int64()),
            "n": pa.array([n] * count, pa.int64()),
            "event": pa.array([event] * count, kind),
            "created": pa.array([created or event] * count, kind),
        }
    )


def add(repo, table, *, view="known", file="second.parquet"):
    with replacing(repo.path / "data" / view / file) as path:
        pq.write_table(table, path)


def run(repo, until, view="known", **how):
    """How many rows were read."""
    (done,) = Materializer(repo).run(views=[view], until=until, **how)
    return done.won + done.lost + done.repeated


def online(repo, users, view="known"):
    requested = {"features": [f"{view}:n"], "entity_rows": {"user": list(users)}}
    return repo.store.get_online_features(**requested).to_dict()["n"]


@pytest.mark.parametrize("view", ["known", "unstamped"])
def test_a_row_that_lands_after_a_run_goes_online_by_the_next(repo, view):
    run(repo, NOON + 10 * SECOND, view)
    add(repo, rows([1], 1, NOON + 5 * SECOND), view=view)
    assert run(repo, NOON + 20 * SECOND, view) == 1
    assert online(repo, [0, 1], view) == [0, 1]


@pytest.mark.parametrize("view", ["known", "unstamped"])
def test_rows_of_files_that_were_read_go_online_when_they_become_visible(repo, view):
    add(repo, rows([1], 1, NOON + 10 * SECOND), view=view)
    add(repo, rows([2], 2, NOON + 20 * SECOND, NOON), view=view, file="third.parquet")
    late = rows([3], 3, NOON, NOON + 20 * SECOND)
    if view == "unstamped":
        late = rows([3], 3, NOON + 20 * SECOND)
    add(repo, late, view=view, file="fourth.parquet")
    assert run(repo, NOON + 10 * SECOND, view) == 2
    assert online(repo, [0, 1, 2, 3], view) == [0, 1, None, None]
    assert run(repo, NOON + 15 * SECOND, view) == 0
    assert run(repo, NOON + 20 * SECOND, view) == 2
    assert online(repo, [0, 1, 2, 3], view) == [0, 1, 2, 3]


def test_only_a_file_that_was_changed_in_place_is_read_again(repo):
    add(repo, rows([1, 2], 1, NOON))
    assert run(repo, NOON + SECOND) == 3
    add(repo, rows([1, 2, 3], 1, NOON))
    assert run(repo, NOON + 2 * SECOND) == 3
    assert online(repo, [0, 1, 2, 3]) == [0, 1, 1, 1]
    assert run(repo, NOON + 2 * SECOND) == 0
    assert run(repo, NOON + 2 * SECOND, again=True) == 4


def test_of_a_delta_table_only_files_of_newer_versions_are_read(repo):
    assert run(repo, NOON + 10 * SECOND, "versioned") == 1
    late = rows([1, 2], 1, NOON + 5 * SECOND)
    write_deltalake(repo.path / "data" / "versioned", late, mode="append")
    assert run(repo, NOON + 20 * SECOND, "versioned") == 2
    assert online(repo, [0, 1, 2], "versioned") == [0, 1, 1]
    mark = Materializer(repo).marks()["versioned"]
    assert (mark.table_version, mark.files, mark.rows_written) == (1, 2, 3)


def test_a_run_up_to_an_earlier_moment_loses_nothing(repo):
    run(repo, NOON + 20 * SECOND)
    add(repo, pa.concat_tables([rows([1], 1, NOON), rows([2], 2, NOON + 10 * SECOND)]))
    run(repo, NOON + 5 * SECOND)
    assert online(repo, [1, 2]) == [1, None]
    run(repo, NOON + 20 * SECOND)
    assert online(repo, [1, 2]) == [1, 2]


def test_a_restored_store_is_as_old_as_its_mark(repo, redis_server):
    client = redis_server.client
    run(repo, NOON + SECOND)
    backup = {key: client.dump(key) for key in client.scan_iter()}
    add(repo, rows([1], 1, NOON))
    run(repo, NOON + 2 * SECOND)
    client.flushall()
    for key, content in backup.items():
        client.restore(key, 0, content)
    assert online(repo, [0, 1]) == [0, None]
    assert run(repo, NOON + 2 * SECOND) == 1
    assert online(repo, [0, 1]) == [0, 1]


def wait_for_rows(client, count):
    deadline = time.monotonic() + 120
    while client.dbsize() < count:
        assert time.monotonic() < deadline, "no rows came"
        time.sleep(0.005)


def test_a_killed_run_leaves_no_mark_and_is_run_again(repo, redis_server):
    add(repo, rows(range(MANY), 1, NOON + SECOND))
    command = [sys.executable, "-m", "tallystick", "--repo", str(repo.path)]
    with subprocess.Popen([*command, "materialize", "--view", "known"]) as process:
        try:
            wait_for_rows(redis_server.client, 1_000)
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert redis_server.client.dbsize() < MANY
    assert Materializer(repo).marks() == {}
    assert run(repo, NOON + 10 * SECOND) == MANY
    assert online(repo, [0, MANY - 1]) == [1, 1]


def test_a_store_that_is_emptied_during_a_run_gets_no_mark(repo, redis_server):
    add(repo, rows(range(MANY), 1, NOON))

    def empty():
        wait_for_rows(redis_server.client, 1_000)
        redis_server.client.flushall()

    thread = threading.Thread(target=empty)
    thread.start()
    with pytest.raises(StateError, match="were removed from the online store"):
        run(repo, NOON + SECOND)
    thread.join()
    assert Materializer(repo).marks() == {}
    assert run(repo, NOON + SECOND) == MANY


def test_a_file_that_is_damaged_far_inside_is_named(repo):
    """The engine finds it while rows are streamed, after the first ones went online."""
    file = repo.path / "data" / "known" / "first.parquet"
    tables = [rows(range(start, start + 50_000), 1, NOON) for start in range(0, 600_000, 50_000)]
    with pq.ParquetWriter(file, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    Materializer(repo).run(views=["known"], until=NOON - SECOND)
    content = bytearray(file.read_bytes())
    start = pq.read_metadata(file).row_group(11).column(0).data_page_offset
    content[start + 20 : start + 2_000] = bytes(1_980)
    stat = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(DataError, match=r"^Cannot read view known from data/known"):
        run(repo, NOON)


def test_two_runs_at_once_do_no_harm(repo):
    add(repo, rows(range(20_000), 1, NOON))
    runs = [
        threading.Thread(target=run, args=(repo, NOON + seconds * SECOND)) for seconds in (5, 10)
    ]
    runs[0].start()
    add(repo, rows(range(10_000, 30_000), 2, NOON + 3 * SECOND), file="third.parquet")
    runs[1].start()
    for thread in runs:
        thread.join()
    run(repo, NOON + 10 * SECOND)
    assert online(repo, [1, 9_999, 10_000, 29_999]) == [1, 1, 2, 2]
    assert run(repo, NOON + 10 * SECOND) == 0


def test_rows_are_read_in_bounded_batches_under_the_memory_limit(repo):
    users = 1_000_000
    for number in range(3):
        add(repo, rows(range(users), number, NOON + number * SECOND), file=f"{number}.parquet")
    sizes, last = [], []

    def write(batch):
        sizes.append(batch.num_rows)
        last.append(set(batch["n"].unique().to_pylist()))

    view = Materializer(repo)._specs["known"]
    read_newly_visible(
        ViewRead(
            spec=view,
            source=repo.view_source("known"),
            name="known",
            key_map={},
            columns=view.column_names,
        ),
        write,
        clock=VisibilityClock.KNOWLEDGE,
        until_us=to_us(NOON + 10 * SECOND),
        config=DefaultLimits(memory_limit="120MB", threads=2),
        repo_path=repo.path,
    )
    assert sum(sizes) == users
    assert max(sizes) <= BATCH_ROWS
    assert set().union(*last) == {2}
