"""Folders that give columns, and files and row groups that no request needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError
from tallystick.offline_store import ViewRead, point_in_time
from tallystick.offline_store.sources.parquet_writer import append
from tallystick.point_in_time.rule import VisibilityClock
from visible_rows import visible_rows

DAY = timedelta(days=1)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
CLOCK = VisibilityClock.KNOWLEDGE


def read_of(path, *, ttl=None, event="event", created="created", key="INT64", value="INT64"):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype=key),),
        columns=(Column(name="value", dtype=value),),
        ttl_us=None if ttl is None else ttl // timedelta(microseconds=1),
        event_column=event,
        created_column=created,
    )
    source = SimpleNamespace(path=str(path), field_mapping={})
    return ViewRead(spec=spec, source=source, name="stats", key_map={}, columns=("value",))


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def values_at(read, *times, keys=None, clock=CLOCK, with_times=False):
    entity_rows = pa.table({"key": keys or [1] * len(times), "at": list(times)})
    answer = point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=clock, with_times=with_times
    )
    return answer["stats__value"].to_pylist()


def corrupt(path):
    """Spoil a file's data; its footer stays whole."""
    content = bytearray(path.read_bytes())
    start = int.from_bytes(content[-8:-4], "little") + 8
    content[4:-start] = b"\xff" * (len(content) - start - 4)
    path.write_bytes(content)


@pytest.fixture
def days(tmp_path):
    """One file per day for ten days, each of one row of its own value."""
    for day in range(10):
        at = FIRST + day * DAY
        location = tmp_path / f"day={at:%Y-%m-%d}" / "rows.parquet"
        write(location, key=[1], value=[day], event=[at], created=[at])
    return tmp_path


def test_folders_give_keys_features_and_times_in_the_declared_types(tmp_path):
    write(tmp_path / "key=01" / "value=7" / "event=2024-01-01" / "a.parquet", created=[FIRST])
    write(tmp_path / "key=2" / "value=8" / "event=2024-01-02" / "a.parquet", created=[FIRST])
    assert values_at(read_of(tmp_path), FIRST, FIRST + DAY, keys=[1, 2]) == [7, 8]
    text = read_of(tmp_path, key="STRING", value="STRING")
    assert values_at(text, FIRST, FIRST + DAY, FIRST, keys=["01", "2", "1"]) == ["7", "8", None]
    visible = visible_rows(text, until=FIRST + DAY, clock=CLOCK)
    assert visible["key"].to_pylist() == ["01", "2"]


def test_a_folder_without_value_is_null_and_names_are_decoded(tmp_path):
    write(
        tmp_path / "value=__HIVE_DEFAULT_PARTITION__" / "a.parquet",
        key=[1],
        event=[FIRST],
        created=[FIRST],
    )
    write(tmp_path / "value=a%2Fb'c" / "a.parquet", key=[2], event=[FIRST], created=[FIRST])
    assert values_at(read_of(tmp_path, value="STRING"), FIRST, FIRST, keys=[1, 2]) == [
        None,
        "a/b'c",
    ]


def test_a_folder_of_another_type_is_named(tmp_path):
    write(tmp_path / "value=x" / "a.parquet", key=[1], event=[FIRST], created=[FIRST])
    with pytest.raises(DataError, match=r"folder value=x of .*a\.parquet: expected INT64"):
        values_at(read_of(tmp_path), FIRST)


def test_a_files_own_column_goes_before_the_folders(tmp_path):
    write(tmp_path / "value=9" / "a.parquet", key=[1], value=[5], event=[FIRST], created=[FIRST])
    assert values_at(read_of(tmp_path), FIRST) == [5]


def test_rows_are_not_added_to_folders_of_partitions(days):
    rows = pa.table({"key": [1], "value": [1], "event": [FIRST], "created": [FIRST]})
    with pytest.raises(DataError, match="its folders give day"):
        append(read_of(days).source, rows, repo_path=None)


def test_files_outside_the_range_of_the_requests_are_not_read(days):
    for day in (0, 1, 2, 6, 7, 8, 9):
        corrupt(days / f"day=2024-01-{day + 1:02d}" / "rows.parquet")
    read = read_of(days, ttl=DAY)
    assert values_at(read, FIRST + 4 * DAY, FIRST + 5 * DAY) == [4, 5]
    # With times, an older row has to be distinguished from none.
    with pytest.raises(DataError):
        values_at(read, FIRST + 4 * DAY, with_times=True)
    with pytest.raises(DataError):
        values_at(read_of(days), FIRST + 4 * DAY)


@pytest.mark.parametrize("clock", [VisibilityClock.KNOWLEDGE, VisibilityClock.EVENT])
def test_the_ends_of_the_range_are_in_it(days, clock):
    read = read_of(days, ttl=2 * DAY)
    for day in range(3, 10):
        corrupt(days / f"day=2024-01-{day + 1:02d}" / "rows.parquet")
    assert values_at(read, FIRST + 2 * DAY, clock=clock) == [2]
    (days / "day=2024-01-02" / "rows.parquet").unlink()
    (days / "day=2024-01-03" / "rows.parquet").unlink()
    assert values_at(read, FIRST + 2 * DAY, clock=clock) == [0]
    assert values_at(read, FIRST + 2 * DAY + timedelta(microseconds=1), clock=clock) == [None]


def test_row_groups_outside_the_range_are_not_read(tmp_path):
    location = tmp_path / "rows.parquet"
    times = [FIRST + day * DAY for day in range(10)]
    table = pa.table({"key": [1] * 10, "value": range(10), "event": times, "created": times})
    pq.write_table(table, location, row_group_size=1, compression="none")
    first = pq.read_metadata(location).row_group(0).column(0)
    content = bytearray(location.read_bytes())
    start = min(first.data_page_offset, first.dictionary_page_offset)
    content[start : start + first.total_compressed_size] = b"\xff" * first.total_compressed_size
    location.write_bytes(content)
    with pytest.raises(DataError):
        values_at(read_of(location), FIRST + 4 * DAY, with_times=True)
    # The key column is spoiled only in the first group, which no request needs.
    assert values_at(read_of(location, ttl=DAY), FIRST + 4 * DAY, FIRST + 5 * DAY) == [4, 5]


def test_a_null_time_outside_the_range_is_still_refused(days):
    event = pa.array([FIRST, None], pa.timestamp("us", tz="UTC"))
    write(
        days / "day=2024-01-01" / "rows.parquet",
        key=[1, 1],
        value=[0, 0],
        event=event,
        created=[FIRST, FIRST],
    )
    with pytest.raises(DataError, match="column event: expected a time in every row, got 1 nulls"):
        values_at(read_of(days, ttl=DAY), FIRST + 5 * DAY)
