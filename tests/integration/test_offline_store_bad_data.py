"""Sources that do not fit their view: one sentence that names file, view and column."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError, DefinitionError, InputError
from tallystick.offline_store import ViewRead, point_in_time
from tallystick.offline_store.entity_rows import changes_between
from tallystick.offline_store.pull import Pull, pull_rows
from tallystick.point_in_time.rule import VisibilityClock
from visible_rows import visible_rows

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
ROW = {"key": [1], "value": [2], "event": [NOON], "created": [NOON]}
ENTITY_ROWS = pa.table({"key": [1], "at": [NOON]})


def read_of(path, *, created="created", dtype="INT64"):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype="INT64"),),
        columns=(Column(name="value", dtype=dtype),),
        ttl_us=None,
        event_column="event",
        created_column=created,
    )
    return ViewRead(
        spec=spec,
        source=SimpleNamespace(path=str(path)),
        name="stats",
        key_map={},
        columns=("value",),
    )


def value_of(read, clock=VisibilityClock.KNOWLEDGE, repo_path=None):
    answer = point_in_time(
        entity_rows=ENTITY_ROWS, request_time="at", reads=[read], clock=clock, repo_path=repo_path
    )
    return answer["stats__value"].to_pylist()


def written(tmp_path, **columns):
    path = tmp_path / "rows.parquet"
    rows = {name: values for name, values in (ROW | columns).items() if values is not None}
    pq.write_table(pa.table(rows), path)
    return path


@pytest.mark.parametrize("location", ["data", "data/**/*.parquet", "data/part-1.parquet"])
def test_files_folders_and_globs_are_found_from_the_repo(tmp_path, location):
    (tmp_path / "data").mkdir()
    written(tmp_path).rename(tmp_path / "data" / "part-1.parquet")
    (tmp_path / "data" / ".part-0.parquet.tmp").write_text("half a file")
    uncommitted = tmp_path / "data" / "_temporary" / "0" / "part-0.parquet"
    uncommitted.parent.mkdir(parents=True)
    pq.write_table(pa.table(ROW | {"value": [3], "event": [NOON + MICROSECOND]}), uncommitted)
    assert value_of(read_of(location), repo_path=tmp_path) == [2]


@pytest.mark.parametrize(
    ("columns", "dtype", "message"),
    [
        ({"value": None}, "INT64", "feature value: expected column value, got no such column"),
        ({"value": ["x"]}, "INT64", "feature value: expected INT64, got column value of type str"),
        ({"value": [1.5]}, "INT64", "Feature value of view stats from .* is not int64"),
        ({"value": [2**31]}, "INT32", "Feature value of view stats from .* is not int32"),
        ({"key": ["1"]}, "INT64", "key key: expected INT64, got column key of type string"),
        ({"key": [1.5]}, "INT64", r"INT64 cannot hold 1\.5"),
        ({"event": [3]}, "INT64", "time event: expected UNIX_TIMESTAMP, got column event of type"),
        ({"event": pa.nulls(1, pa.timestamp("us"))}, "INT64", "column event: .*, got 1 nulls"),
        ({"created": pa.nulls(1, pa.timestamp("us"))}, "INT64", "column created: .*, got 1 nulls"),
    ],
)
def test_columns_that_do_not_fit_are_named(tmp_path, columns, dtype, message):
    read = read_of(written(tmp_path, **columns), dtype=dtype)
    with pytest.raises(DataError, match=message):
        value_of(read)
    with pytest.raises(DataError, match=message):
        visible_rows(read, until=NOON, clock=VisibilityClock.KNOWLEDGE)


def test_all_mismatches_are_reported_at_once(tmp_path):
    path = written(tmp_path, key=None, value=["x"], created=None)
    with pytest.raises(DataError) as caught:
        value_of(read_of(path))
    assert [problem.where for problem in caught.value.problems] == [
        "key key",
        "feature value",
        "time created",
    ]


def test_a_view_without_created_time_has_no_knowledge_clock(tmp_path):
    read = read_of(written(tmp_path), created=None)
    text = "View stats has no created_timestamp_column; give its source one, or use the event"
    with pytest.raises(DataError, match=text):
        value_of(read)
    assert value_of(read, VisibilityClock.EVENT) == [2]


@pytest.mark.parametrize(
    ("created", "winner"),
    [
        ([None, NOON, None], 1),
        ([NOON - MICROSECOND, None, NOON], 2),
        ([None, None, NOON + MICROSECOND], 3),
    ],
)
def test_under_the_event_clock_a_row_without_created_time_counts_as_created_at_its_event_time(
    tmp_path, created, winner
):
    created = pa.array(created, pa.timestamp("us", tz="UTC"))
    rows = {"key": [1] * 3, "value": [1, 2, 3], "event": [NOON] * 3, "created": created}
    read = read_of(written(tmp_path, **rows))
    assert value_of(read, VisibilityClock.EVENT) == [winner]
    visible = visible_rows(read, until=NOON, clock=VisibilityClock.EVENT)
    assert visible["value"].to_pylist() == [winner]
    pull = Pull(("key",), ("value",), "event", "created", None, None)
    latest = pull_rows(read.source, replace(pull, is_latest=True), config=None, repo_path=None)
    assert latest["value"].to_pylist() == [winner]


def test_where_knowledge_counts_a_row_without_created_time_is_refused_or_never_visible(tmp_path):
    """It is refused; if it were not, it would not be visible at its event time."""
    read = read_of(written(tmp_path, created=pa.nulls(1, pa.timestamp("us", tz="UTC"))))
    clock = VisibilityClock.KNOWLEDGE
    for ask in (
        lambda: value_of(read, clock),
        lambda: visible_rows(read, until=NOON, clock=clock),
    ):
        with pytest.raises(DataError, match="column created: expected a time in every row"):
            ask()
    changes = changes_between([read], start=NOON, end=NOON, time="at", clock=clock)
    assert changes.num_rows == 0


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match=r"absent\.parquet has no Parquet file"):
        value_of(read_of("absent.parquet"), repo_path=tmp_path)
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(written(tmp_path).read_bytes()[:-10])
    with pytest.raises(DataError, match=re.escape(f"{torn} is not a Parquet file")):
        value_of(read_of(torn))
    for uri in ("hdfs://host/rows.parquet", "s3:///rows.parquet"):
        with pytest.raises(DefinitionError, match=f"{uri} is not a path"):
            value_of(read_of(uri))


def test_empty_folders_and_files_are_named(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} does not exist or is empty")):
        value_of(read_of(tmp_path))
    empty = tmp_path / "empty.parquet"
    empty.touch()
    for path in (empty, tmp_path):
        with pytest.raises(DataError, match=re.escape(f"{empty} is not a Parquet file")) as caught:
            value_of(read_of(path))
        assert "it is empty" in str(caught.value)


def test_of_files_of_different_types_the_one_that_differs_is_named(tmp_path):
    for name, value in (("a", 1), ("b", 2), ("c", "x")):
        pq.write_table(pa.table(ROW | {"value": [value]}), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"value: .* of type string in .*c\.parquet"):
        value_of(read_of(tmp_path))


def test_a_row_created_before_its_event_is_visible_from_its_event_on(tmp_path):
    early = NOON - timedelta(days=1)
    assert value_of(read_of(written(tmp_path, created=[early]))) == [2]
    late = NOON + timedelta(microseconds=1)
    assert value_of(read_of(written(tmp_path, created=[early], event=[late]))) == [None]


def test_an_event_of_the_future_is_not_seen_and_hides_nothing(tmp_path):
    future = datetime(2250, 1, 1, tzinfo=UTC)
    rows = {"key": [1, 1], "value": [2, 3], "event": [NOON, future], "created": [NOON, NOON]}
    path = written(tmp_path, **rows)
    assert value_of(read_of(path)) == [2]
    assert value_of(read_of(path), VisibilityClock.EVENT) == [2]


def test_any_zone_is_read_and_naive_times_are_utc_but_not_beside_times_with_a_zone(tmp_path):
    for number, zone in enumerate(("UTC", "America/New_York", None)):
        at = NOON - timedelta(hours=2 - number)
        times = pa.array([at.replace(tzinfo=None)], pa.timestamp("us")).cast(pa.int64())
        column = times.cast(pa.timestamp("us", tz=zone))
        rows = {"value": [number], "event": column, "created": column}
        folder = tmp_path / str(zone).replace("/", "-")
        folder.mkdir()
        pq.write_table(pa.table(ROW | rows), folder / "rows.parquet")
        assert value_of(read_of(folder)) == [number]
    with pytest.raises(
        DataError, match=r"event: .* got timestamp.*, timestamp\[us\] in .*None/rows\.parquet"
    ):
        value_of(read_of(tmp_path))


def test_an_unknown_feature_gets_its_closest_name(tmp_path):
    read = read_of(written(tmp_path))
    object.__setattr__(read, "columns", ("valeu",))
    with pytest.raises(InputError, match="did you mean value"):
        value_of(read)


def test_empty_histories_and_entity_rows_are_no_errors(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table(ROW).slice(0, 0), path)
    assert value_of(read_of(path)) == [None]
    answer = point_in_time(
        entity_rows=ENTITY_ROWS.slice(0, 0),
        request_time="at",
        reads=[read_of(written(tmp_path))],
        clock=VisibilityClock.KNOWLEDGE,
    )
    assert answer.num_rows == 0
    assert answer.schema.field("stats__value").type == pa.int64()


def test_a_changed_file_is_read_anew(tmp_path):
    read = read_of(written(tmp_path))
    window = {"until": NOON, "clock": VisibilityClock.KNOWLEDGE}
    assert visible_rows(read, **window)["value"].to_pylist() == [2]
    pq.write_table(pa.table(ROW | {"value": [2**40]}), tmp_path / "new.parquet")
    (tmp_path / "new.parquet").replace(tmp_path / "rows.parquet")
    assert visible_rows(read, **window)["value"].to_pylist() == [2**40]


def test_a_feature_that_only_later_files_have_is_null_before(tmp_path):
    """Also where the later files are not read, since no request needs them."""
    for day, columns in ((0, {}), (50, {"value": [7]})):
        moment = NOON + timedelta(days=day)
        rows = {"key": [1], "event": [moment], "created": [moment]} | columns
        pq.write_table(pa.table(rows), tmp_path / f"day-{day:02}.parquet")
    for day, value in ((10, None), (60, 7)):
        answer = point_in_time(
            entity_rows=pa.table({"key": [1], "at": [NOON + timedelta(days=day)]}),
            request_time="at",
            reads=[read_of(tmp_path)],
            clock=VisibilityClock.KNOWLEDGE,
        )
        assert answer["stats__value"].to_pylist() == [value]
