"""The point-in-time rule against an oracle that looks at every row for every request."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from itertools import pairwise

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from point_in_time_stream import streamed
from rule_oracle import (
    FEATURES,
    NUMBER_KEYS,
    START_US,
    TEXT_KEYS,
    TYPES,
    clocks,
    entity_table,
    histories,
    moments,
    oracle,
    request_lists,
    same,
    source_table,
    ttls,
    view_read,
    winner,
    write,
)
from tallystick.clock import from_us
from tallystick.offline_store import point_in_time
from tallystick.point_in_time.rule import VisibilityClock, as_of_sql, latest_sql
from visible_rows import visible_rows

MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def in_memory(entity_rows, read, clock, folder):
    del folder
    return point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=clock, with_times=True
    )


def in_batches(entity_rows, read, clock, folder):
    options = {"request_time": "at", "reads": [read], "clock": clock, "with_times": True}
    return streamed(entity_rows, folder, batch_rows=3, **options)


@pytest.mark.parametrize("way", [in_memory, in_batches])
@MANY
@given(
    history=histories,
    entity_rows=request_lists,
    clock=clocks,
    shape=st.tuples(
        st.sampled_from([("text",), ("number",), ("text", "number"), ()]),
        st.none() | st.integers(0, 25),
        ttls,
    ),
)
def test_every_request_gets_what_looking_at_all_rows_gives(way, history, entity_rows, clock, shape):
    key, cut, ttl = shape
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder, cut), key, ttl)
        table = entity_table(entity_rows)
        answer = way(table, read, clock, folder)
    assert answer.select(table.column_names).equals(table)
    assert {name: answer.schema.field(f"s__{name}").type for name in FEATURES} == TYPES
    for request, got in zip(entity_rows, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=key, clock=clock, ttl=ttl)
        assert got["s__status"] == status
        event, created = (row["event"], row["created"]) if row else (None, None)
        assert got["s__event_time"] == (None if row is None else from_us(event + START_US))
        assert got["s__created_time"] == (None if row is None else from_us(created + START_US))
        for name in FEATURES:
            expected = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], expected), (name, request)


@MANY
@given(history=histories, clock=clocks, bounds=st.lists(moments, min_size=1, max_size=4))
def test_writes_of_what_became_visible_add_up_to_the_rule(history, clock, bounds):
    """Written window by window, a store that replaces only by larger times has the rule's rows."""
    key = ("text", "number")
    online: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder), key)
        for after, until in pairwise([None, *sorted(set(bounds))]):
            rows = visible_rows(
                read,
                after=None if after is None else from_us(after + START_US),
                until=from_us(until + START_US),
                clock=clock,
            ).to_pylist()
            for row in rows:
                held = online.get((row["text"], row["number"]))
                times = (row["event"], row["created"])
                if held is None or times > (held["event"], held["created"]):
                    online[row["text"], row["number"]] = row
            for text in TEXT_KEYS:
                for number in NUMBER_KEYS:
                    request = {"text": text, "number": number, "at": until}
                    expected, _ = oracle(history, request, key=key, clock=clock, ttl=None)
                    held = online.get((text, number))
                    assert (held is None) == (expected is None)
                    assert expected is None or all(
                        same(held[name], expected[name]) for name in FEATURES
                    )


@pytest.mark.parametrize("clock", [VisibilityClock.EVENT, VisibilityClock.KNOWLEDGE])
@pytest.mark.parametrize("cut", [None, 1])
def test_of_full_ties_the_first_in_source_order_wins(tmp_path, clock, cut):
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "event": 1, "created": 1}
    history = [row | {"count": count} for count in (7, 8, 6)]
    read = view_read(write(history, tmp_path, cut), ("text",))
    entity_rows = entity_table([{"text": "a", "number": 1, "at": 1}])
    answer = point_in_time(entity_rows=entity_rows, request_time="at", reads=[read], clock=clock)
    assert answer["s__count"].to_pylist() == [7]
    rows = visible_rows(read, until=from_us(START_US + 1), clock=clock)
    assert rows["count"].to_pylist() == [7]


timed = st.fixed_dictionaries(
    {
        "key": st.sampled_from([0, 0, 1]),
        "event": moments,
        "created": moments,
        "visible": st.none() | moments,
    }
)


@pytest.mark.parametrize("lacks_created", [False, True])
@MANY
@given(
    history=st.lists(timed, max_size=25),
    entity_rows=st.lists(st.tuples(st.sampled_from([0, 1, 2]), moments), min_size=1, max_size=20),
    ttl=ttls,
)
def test_the_rule_holds_whenever_rows_became_visible(lacks_created, history, entity_rows, ttl):
    """As in a journal, where the write time does not follow from the other times."""
    if lacks_created:
        history = [row | {"created": row["event"]} for row in history]
    whole = pa.int64()
    rows = {
        "key": pa.array([row["key"] for row in history], whole),
        "event_us": pa.array([row["event"] for row in history], whole),
        "created_us": pa.array(
            [None if lacks_created else row["created"] for row in history], whole
        ),
        "visible_us": pa.array([row["visible"] for row in history], whole),
        "row_position": pa.array(range(len(history)), whole),
    }
    requests = {
        "key": pa.array([key for key, _ in entity_rows], whole),
        "request_us": pa.array([at for _, at in entity_rows], whole),
        "entity_row": pa.array(range(len(entity_rows)), whole),
    }
    names = {"keys": ["key"]}
    sql = as_of_sql("history", entity_rows="requests", ttl_us=ttl, **names)
    with duckdb.connect() as connection:
        connection.register("history", pa.table(rows))
        connection.register("requests", pa.table(requests))
        found = connection.sql(f"{sql} ORDER BY entity_row").to_arrow_table().to_pylist()
        latest = connection.sql(latest_sql("history", **names)).to_arrow_table()
    numbered = [row | {"position": number} for number, row in enumerate(history)]
    for (key, at), got in zip(entity_rows, found, strict=True):
        request = {"key": key, "at": at}
        clock = VisibilityClock.SERVED
        row, status = oracle(numbered, request, key=("key",), clock=clock, ttl=ttl)
        assert got["row_position"] == (row and row["position"])
        assert (got["too_old"] is True) == (status == "OUTSIDE_MAX_AGE")
    written = [row for row in numbered if row["visible"] is not None]
    if written == numbered:
        winners = [winner([row for row in written if row["key"] == key], clock) for key in (0, 1)]
        expected = sorted(row["position"] for row in winners if row is not None)
        assert latest["row_position"].to_pylist() == expected


def test_a_window_begins_behind_its_first_moment_and_holds_its_last(tmp_path):
    row = dict.fromkeys(FEATURES) | {"number": 1, "created": 0}
    history = [row | {"text": str(event), "event": event} for event in (1, 2, 3, 4)]
    rows = visible_rows(
        view_read(write(history, tmp_path), ("text",)),
        after=from_us(START_US + 1),
        until=from_us(START_US + 3),
        clock=VisibilityClock.KNOWLEDGE,
    )
    assert rows["text"].to_pylist() == ["2", "3"]


@pytest.mark.parametrize(
    ("age_us", "status"),
    [(0, "PRESENT"), (5, "PRESENT"), (6, "OUTSIDE_MAX_AGE"), (-1, "NOT_FOUND")],
)
@pytest.mark.parametrize("clock", [VisibilityClock.EVENT, VisibilityClock.KNOWLEDGE])
def test_both_ends_of_the_window_are_included(tmp_path, age_us, status, clock):
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "event": 10, "created": 10}
    read = view_read(write([row | {"count": 3}], tmp_path), ("text",), ttl=5)
    answer = point_in_time(
        entity_rows=entity_table([{"text": "a", "number": 1, "at": 10 + age_us}]),
        request_time="at",
        reads=[read],
        clock=clock,
        with_times=True,
    )
    assert answer["s__status"].to_pylist() == [status]
    assert answer["s__count"].to_pylist() == [3 if status == "PRESENT" else None]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_and_zones_of_a_source_do_not_matter(tmp_path, unit, zone):
    second = 10**6
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "count": 3}
    table = source_table([row | {"event": second, "created": 2 * second}])
    time = pa.timestamp(unit, tz=zone)
    for name in ("event", "created"):
        column = table[name].cast(pa.int64()).cast(pa.timestamp("us", tz=zone)).cast(time)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "history.parquet")
    answer = point_in_time(
        entity_rows=entity_table(
            [{"text": "a", "number": 1, "at": at} for at in (1, 1_999_999, 2 * second)]
        ),
        request_time="at",
        reads=[view_read(tmp_path, ("text",))],
        clock=VisibilityClock.KNOWLEDGE,
        with_times=True,
    )
    assert answer["s__count"].to_pylist() == [None, None, 3]
    assert answer["s__event_time"].to_pylist()[2] == from_us(START_US) + timedelta(seconds=1)


@MANY
@given(
    history=histories,
    entity_rows=request_lists,
    clock=clocks,
    shape=st.tuples(st.none() | st.integers(0, 25), ttls),
)
def test_rows_that_are_not_read_would_change_no_value(history, entity_rows, clock, shape):
    """Without times, whole files and row groups are left out."""
    cut, ttl = shape
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder, cut), ("text",), ttl)
        table = entity_table(entity_rows)
        answer = point_in_time(entity_rows=table, request_time="at", reads=[read], clock=clock)
    for request, got in zip(entity_rows, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=("text",), clock=clock, ttl=ttl)
        for name in FEATURES:
            expected = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], expected), (name, request)
