"""Serving's reader on a real Redis: statuses, ttl, changed definitions, faults."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from online_reads import read_online, use_of
from tallystick.clock import from_us
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DamagedError, DataError, InputError, UnavailableError
from tallystick.online_store.entity_keys import definitions_key
from tallystick.online_store.row_writer import WriteCounts, delete_project, delete_view
from tallystick.online_store.table_writer import write_table
from tallystick.point_in_time.feature_status import Status

# The rows here are of 1970, which Redis would have forgotten at once by its own clock.
pytestmark = pytest.mark.usefixtures("simulated_clock")
HOUR_US = 3_600_000_000
MOMENT = pa.timestamp("us", tz="UTC")


def spec_of(name="shop", keys=None, columns=None, ttl_us=HOUR_US, created="created"):
    keys = keys or {"id": "INT64"}
    columns = columns or {"x": "INT64", "s": "STRING"}
    return ViewSpec(
        name=name,
        join_keys=tuple(Column(name=key, dtype=dtype) for key, dtype in keys.items()),
        columns=tuple(Column(name=column, dtype=dtype) for column, dtype in columns.items()),
        ttl_us=ttl_us,
        event_column="event",
        created_column=created,
    )


def write(server, spec, columns, *, project="p", write_us=5):
    count = len(next(iter(columns.values())))
    times = {"event": [0] * count, "created": [0] * count}
    arrays = {
        name: pa.array(values, pa.int64()).cast(MOMENT) if name in times else pa.array(values)
        for name, values in (times | columns).items()
    }
    return write_table(server.client, project, spec, pa.table(arrays), write_us=write_us)


def read(server, uses, keys, *, at_us=0, project="p"):
    return read_online(project, uses, keys, at_us=at_us, connection_string=server.connection_string)


def test_each_status_with_its_times(redis_server):
    spec = spec_of()
    write(
        redis_server,
        spec,
        {"id": [1, 2], "x": [2**53 + 1, None], "s": ["", "é"], "event": [7, 8], "created": [9, 8]},
    )
    rows = read(redis_server, [use_of(spec)], {"id": [2, 3, 1, None]}, at_us=10)["shop"]
    assert rows.status == ["PRESENT", "NOT_FOUND", "PRESENT", "NOT_FOUND"]
    assert rows.values == {"x": [None, None, 2**53 + 1, None], "s": ["é", None, "", None]}
    assert rows.event_us == [8, None, 7, None]
    assert rows.created_us == [8, None, 9, None]
    assert rows.write_us == [5, None, 5, None]
    assert rows.definition == [spec.definition_hash, None, spec.definition_hash, None]


@pytest.mark.parametrize(
    ("at_us", "status"),
    [
        (HOUR_US + 100, Status.PRESENT),
        (HOUR_US + 101, Status.OUTSIDE_MAX_AGE),
        (0, Status.PRESENT),
    ],
)
def test_the_window_includes_its_end(redis_server, at_us, status):
    spec = spec_of()
    write(redis_server, spec, {"id": [1], "x": [5], "s": ["a"], "event": [100]})
    rows = read(redis_server, [use_of(spec)], {"id": [1]}, at_us=at_us)["shop"]
    assert rows.status == [status]
    assert rows.event_us == [100]
    assert rows.values["x"] == ([5] if status is Status.PRESENT else [None])


def test_no_ttl_never_expires_and_no_created_time_is_none(redis_server):
    spec = spec_of(ttl_us=None, created=None)
    write(redis_server, spec, {"id": [1], "x": [5], "s": ["a"]})
    rows = read(redis_server, [use_of(spec)], {"id": [1]}, at_us=2**62)["shop"]
    assert (rows.status, rows.created_us) == ([Status.PRESENT], [None])


def test_several_views_keys_and_aliases_in_one_read(redis_server):
    shop, pair = spec_of(), spec_of("pair", {"town": "STRING", "id": "INT64"}, {"y": "DOUBLE"})
    world = spec_of("world", {"__dummy_id": "STRING"}, {"z": "INT64"})
    write(redis_server, shop, {"id": [1, 2], "x": [10, 20], "s": ["a", "b"]})
    write(redis_server, pair, {"town": ["A", "B"], "id": [1, 1], "y": [0.5, 1.5]})
    write(redis_server, world, {"z": [99]})
    uses = [
        use_of(shop, {"id": "buyer"}, ["x"], name="buyer_shop"),
        use_of(shop, {"id": "seller"}, ["s"], name="seller_shop"),
        use_of(pair, {"id": "buyer", "town": "place"}),
        use_of(world, {}),
    ]
    keys = {"seller": [2, 1], "buyer": [1, 2], "place": ["B", "B"]}
    answer = read(redis_server, uses, keys)
    assert {name: rows.values for name, rows in answer.items()} == {
        "buyer_shop": {"x": [10, 20]},
        "seller_shop": {"s": ["b", "a"]},
        "pair": {"y": [1.5, None]},
        "world": {"z": [99, 99]},
    }


def test_rows_of_older_definitions_are_served_by_name_and_type(redis_server):
    old = spec_of(columns={"a": "INT64", "b": "STRING", "gone": "DOUBLE", "c": "INT64"})
    new = spec_of(columns={"c": "DOUBLE", "added": "INT64", "b": "STRING", "a": "INT64"})
    write(redis_server, old, {"id": [1], "a": [1], "b": ["old"], "gone": [0.5], "c": [7]})
    write(redis_server, new, {"id": [2], "a": [2], "b": ["new"], "added": [3], "c": [1.5]})
    rows = read(redis_server, [use_of(new)], {"id": [1, 2, 3]})["shop"]
    assert rows.values == {
        "c": [None, 1.5, None],
        "added": [None, 3, None],
        "b": ["old", "new", None],
        "a": [1, 2, None],
    }
    assert rows.definition == [old.definition_hash, new.definition_hash, None]
    assert read(redis_server, [use_of(old)], {"id": [2]})["shop"].values["gone"] == [None]


def test_the_same_times_under_a_new_definition_replace_the_row(redis_server):
    old, new = spec_of(columns={"x": "INT64"}), spec_of(columns={"x": "INT64", "y": "INT64"})
    write(redis_server, old, {"id": [1], "x": [1]})
    assert write(redis_server, old, {"id": [1], "x": [2]}) == WriteCounts(repeated=1)
    assert write(redis_server, new, {"id": [1], "x": [1], "y": [5]}) == WriteCounts(won=1)
    assert read(redis_server, [use_of(new)], {"id": [1]})["shop"].values == {"x": [1], "y": [5]}


def test_a_view_that_changed_its_key_does_not_find_the_rows_of_the_other(redis_server):
    old, new = spec_of(), spec_of(keys={"other": "INT64"})
    write(redis_server, old, {"id": [1], "x": [1], "s": ["a"]})
    rows = read(redis_server, [use_of(new)], {"other": [1]})["shop"]
    assert rows.status == [Status.NOT_FOUND]


def test_a_lost_definition_or_a_foreign_value_is_damage(redis_server):
    old, new = spec_of(), spec_of(columns={"x": "INT64"})
    write(redis_server, old, {"id": [1], "x": [1], "s": ["a"]})
    redis_server.client.delete(definitions_key("p"))
    with pytest.raises(DamagedError, match="no longer has"):
        read(redis_server, [use_of(new)], {"id": [1]})
    (key,) = redis_server.client.keys("ts3:p:??:*")
    redis_server.client.set(key, "something else")
    with pytest.raises(DamagedError, match="cannot be read"):
        read(redis_server, [use_of(new)], {"id": [1]})
    assert write(redis_server, old, {"id": [1], "x": [1], "s": ["a"]}).won == 1


def test_deleting_touches_only_what_is_named(redis_server):
    row = {"id": [1, 2], "x": [1, 2], "s": ["a", "b"]}
    for project in ("a", "ba", "ab", "a_b", "a*"):
        for view in ("shop", "shop2", "my_shop", "s*"):
            write(redis_server, spec_of(view), row, project=project)
    assert delete_view(redis_server.client, "a", "shop") == 2
    assert delete_view(redis_server.client, "a", "shop") == 0
    assert delete_view(redis_server.client, "a", "s*") == 2
    assert delete_view(redis_server.client, "a", "never") == 0
    assert delete_view(redis_server.client, "a*", "shop") == 2
    gone = {("a", "shop"), ("a", "s*"), ("a*", "shop")}
    for _ in range(2):
        for project in ("a", "ba", "ab", "a_b", "a*"):
            views = ("shop", "shop2", "my_shop", "s*")
            uses = [use_of(spec_of(view)) for view in views]
            answer = read(redis_server, uses, {"id": [1, 2]}, project=project)
            for view in views:
                expected = [None, None] if (project, view) in gone else [1, 2]
                assert answer[view].values["x"] == expected
        # Two entities, the definitions and their ttls.
        assert delete_project(redis_server.client, "a") == (4 if len(gone) == 3 else 0)
        gone |= {("a", view) for view in ("shop", "shop2", "my_shop", "s*")}


def test_the_last_view_of_an_entity_takes_the_value_along(redis_server):
    row = {"id": [1], "x": [1], "s": ["a"]}
    for view in ("shop", "shop2"):
        write(redis_server, spec_of(view, ttl_us=None), row)
    assert delete_view(redis_server.client, "p", "shop") == 1
    assert redis_server.client.keys("ts3:p:??:*")
    assert delete_view(redis_server.client, "p", "shop2") == 1
    assert not redis_server.client.keys("ts3:p:??:*")


def test_a_view_that_changed_its_key_is_deleted_under_both(redis_server):
    write(redis_server, spec_of(), {"id": [1], "x": [1], "s": ["a"]})
    write(redis_server, spec_of(keys={"other": "INT64"}), {"other": [1], "x": [1], "s": ["a"]})
    assert delete_view(redis_server.client, "p", "shop") == 2


def test_a_table_that_does_not_fit_is_refused_whole(redis_server):
    spec = spec_of(columns={"x": "INT32", "y": "INT64", "z": "STRING"})
    with pytest.raises(DataError) as caught:
        write(redis_server, spec, {"id": [1, 2], "x": [1, 2**31], "y": [0.5, 1.0]})
    assert [problem.where for problem in caught.value.problems] == [
        "column x",
        "column y",
        "column z",
    ]
    assert redis_server.client.dbsize() == 0


def test_values_that_a_table_cannot_keep_are_refused(redis_server):
    spec = spec_of(columns={"t": "UNIX_TIMESTAMP", "f": "FLOAT"})
    far = pa.array([2**62], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {
            "id": [1],
            "t": far,
            "f": [1e39],
            "event": pa.array([0], pa.int64()).cast(MOMENT),
            "created": pa.array([0], pa.int64()).cast(MOMENT),
        }
    )
    with pytest.raises(DataError) as caught:
        write_table(redis_server.client, "p", spec, table, write_us=5)
    assert [problem.where for problem in caught.value.problems] == ["column f", "column t"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda client, key: client.set(key, b"\3" + b"abcdefgh\0\3xyz"),
        lambda client, key: client.set(key, b"\3abc"),
        lambda client, key: client.hset(key, "a", "b"),
    ],
)
def test_what_is_damaged_under_a_key_is_replaced_by_a_write(redis_server, damage):
    row = {"id": [1], "x": [1], "s": ["a"]}
    write(redis_server, spec_of(), row)
    (key,) = redis_server.client.keys("ts3:p:??:*")
    redis_server.client.delete(key)
    damage(redis_server.client, key)
    assert write(redis_server, spec_of(), row) == WriteCounts(won=1)
    assert read(redis_server, [use_of(spec_of())], {"id": [1]})["shop"].values["x"] == [1]


def test_rows_without_key_are_counted_and_not_written(redis_server):
    counts = write(redis_server, spec_of(), {"id": [None, 1], "x": [1, 2], "s": ["a", "b"]})
    assert counts == WriteCounts(won=1, unkeyed=1)


def test_a_missing_or_ill_typed_key_is_an_input_error(redis_server):
    use = use_of(spec_of())
    with pytest.raises(InputError, match="id: expected a value in each row"):
        read(redis_server, [use], {"other": [1]})
    with pytest.raises(InputError, match="expected INT64, got '1'"):
        read(redis_server, [use], {"id": ["1"]})


def test_redis_down_names_the_host_and_no_password():
    def ask(keys):
        text = "127.0.0.1:1,username=u,password=s3cret"
        uses = [use_of(spec_of())]
        return read_online("p", uses, keys, connection_string=text, connect_timeout_s=0.2)

    with pytest.raises(UnavailableError, match=r"Redis at 127\.0\.0\.1:1 ") as caught:
        ask({"id": [1]})
    assert "s3cret" not in str(caught.value)
    assert ask({"id": [None]})["shop"].status == [Status.NOT_FOUND]


def test_times_come_back_as_aware_datetimes(redis_server):
    spec = spec_of(columns={"t": "UNIX_TIMESTAMP"})
    write(redis_server, spec, {"id": [1], "t": [from_us(1_234_567)]})
    assert read(redis_server, [use_of(spec)], {"id": [1]})["shop"].values["t"] == [
        from_us(1_234_567)
    ]


def test_reading_needs_neither_feast_nor_pandas():
    code = (
        "import sys, tallystick.online_store.online_reader, tallystick.online_store.row_codec\n"
        "import tallystick.online_store.redis_connection, tallystick.online_store.table_writer\n"
        "heavy = {'feast', 'pandas', 'sklearn', 'pyarrow'} & sys.modules.keys()\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
