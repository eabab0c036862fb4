"""Every engine against an oracle that looks at every row of the history for every request."""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import replace
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast.repo_config import RepoConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tallystick.offline_store
from rule_oracle import (
    FEATURES,
    START_US,
    TYPES,
    entity_table,
    histories,
    oracle,
    request_lists,
    same,
    source_table,
    ttls,
    view_read,
    write,
)
from tallystick.clock import from_us
from tallystick.definitions.feature_view import Column
from tallystick.errors import DataError
from tallystick.offline_store.pull import Pull
from tallystick.point_in_time.rule import VisibilityClock

SOME = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
CLOCKS = [VisibilityClock.EVENT, VisibilityClock.KNOWLEDGE]
EMPTY = dict.fromkeys(FEATURES) | {"text": "a", "number": 1}


@pytest.fixture(scope="module")
def engine(offline_store):
    config = RepoConfig(
        project="small",
        registry="none",
        provider="local",
        offline_store=offline_store,
        entity_key_serialization_version=3,
    )
    store = getattr(tallystick.offline_store, offline_store["type"].rpartition(".")[2])
    return store.engine(config)


def retrieved(engine, entity_rows, read, clock):
    return engine.point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read], clock=clock
    )


@SOME
@given(
    history=histories,
    entity_rows=request_lists,
    clock=st.sampled_from(CLOCKS),
    shape=st.tuples(
        st.sampled_from([("text",), ("number",), ("text", "number"), ()]),
        st.none() | st.integers(0, 25),
        ttls,
    ),
)
def test_every_request_gets_what_looking_at_all_rows_gives(
    engine, history, entity_rows, clock, shape
):
    key, cut, ttl = shape
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder, cut), key, ttl)
        table = entity_table(entity_rows)
        answer = retrieved(engine, table, read, clock)
    assert answer.select(table.column_names).equals(table)
    assert {name: answer.schema.field(f"s__{name}").type for name in FEATURES} == TYPES
    for request, got in zip(entity_rows, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=key, clock=clock, ttl=ttl)
        for name in FEATURES:
            expected = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], expected), (name, request)


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("names", [["one"], ["a/z", "a-b"], ["x 1%20", "x#2é"], ["[1]", "{2}"]])
def test_of_full_ties_the_first_in_source_order_wins(engine, tmp_path, clock, names):
    """Files by the parts of their paths, whatever signs these have, then rows."""
    for number, name in enumerate(names):
        rows = [EMPTY | {"event": 1, "created": 1, "count": 10 * number + n} for n in (7, 8, 6)]
        path = tmp_path / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(source_table(rows), path, row_group_size=2)
    entity_rows = entity_table([{"text": "a", "number": 1, "at": 1}] * 2)
    answer = retrieved(engine, entity_rows, view_read(tmp_path, ("text",)), clock)
    assert answer["s__count"].to_pylist() == [7, 7]


@pytest.mark.parametrize(
    ("created", "winner"), [([None, 1, None], 1), ([0, None, 1], 2), ([None, None, 2], 3)]
)
def test_a_row_without_created_time_is_created_at_its_event_time_or_refused(
    engine, tmp_path, created, winner
):
    history = [EMPTY | {"event": 1, "created": 1, "count": count} for count in (1, 2, 3)]
    table = source_table(history)
    times = [None if at is None else from_us(START_US + at) for at in created]
    column = pa.array(times, table.schema.field("created").type)
    table = table.set_column(table.column_names.index("created"), "created", column)
    pq.write_table(table, tmp_path / "history.parquet")
    read = view_read(tmp_path, ("text",))
    entity_rows = entity_table([{"text": "a", "number": 1, "at": 1}])
    answer = retrieved(engine, entity_rows, read, VisibilityClock.EVENT)
    assert answer["s__count"].to_pylist() == [winner]
    with pytest.raises(DataError, match="column created: expected a time in every row, got"):
        retrieved(engine, entity_rows, read, VisibilityClock.KNOWLEDGE)


@pytest.mark.parametrize("age_us", [0, 5, 6, -1])
@pytest.mark.parametrize("clock", CLOCKS)
def test_both_ends_of_the_window_are_included(engine, tmp_path, age_us, clock):
    history = [EMPTY | {"event": 10, "created": 10, "count": 3}]
    entity_rows = entity_table([{"text": "a", "number": 1, "at": 10 + age_us}])
    answer = retrieved(
        engine, entity_rows, view_read(write(history, tmp_path), ("text",), ttl=5), clock
    )
    assert answer["s__count"].to_pylist() == [3 if 0 <= age_us <= 5 else None]


@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "int96"])
def test_units_and_zones_of_a_source_do_not_matter(engine, tmp_path, unit, zone):
    second = 10**6
    table = source_table([EMPTY | {"event": second, "created": 2 * second, "count": 3}])
    time = pa.timestamp("ns" if unit == "int96" else unit, tz=zone)
    for name in ("event", "created"):
        column = table[name].cast(pa.int64()).cast(pa.timestamp("us", tz=zone)).cast(time)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(
        table, tmp_path / "history.parquet", use_deprecated_int96_timestamps=unit == "int96"
    )
    entity_rows = entity_table(
        [{"text": "a", "number": 1, "at": at} for at in (1_999_999, 2 * second)]
    )
    answer = retrieved(
        engine, entity_rows, view_read(tmp_path, ("text",)), VisibilityClock.KNOWLEDGE
    )
    assert answer["s__count"].to_pylist() == [None, 3]


@pytest.mark.parametrize("requested_twice", [False, True], ids=["joined", "fetched"])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_files_of_a_source_may_have_times_of_other_zones(engine, tmp_path, unit, requested_twice):
    zones = ("+01:00", "UTC", "America/New_York")
    for at, zone in enumerate(zones):
        moment = from_us(START_US + at * 1000)
        row = EMPTY | {"event": at * 1000, "created": at * 1000, "count": at, "since": moment}
        table = source_table([row])
        for name in ("event", "created", "since"):
            own = pa.timestamp(unit if at else "us", tz=zone)
            table = table.set_column(table.column_names.index(name), name, table[name].cast(own))
        pq.write_table(table, tmp_path / f"part-{at}.parquet")
    read = view_read(tmp_path, ("text",))
    entity_rows = [{"text": "a", "number": 1, "at": at * 1000} for at in range(len(zones))]
    rows = entity_rows if requested_twice else entity_rows[1:2]
    answer = retrieved(engine, entity_table(rows), read, VisibilityClock.KNOWLEDGE)
    expected = [0, 1, 2] if requested_twice else [1]
    assert answer["s__count"].to_pylist() == expected
    assert answer["s__since"].to_pylist() == [from_us(START_US + at * 1000) for at in expected]
    assert answer.schema.field("s__since").type == TYPES["since"]
    pull = Pull(("text",), ("since",), "event", "created", None, None)
    pulled = engine.pull_rows(read.source, pull)
    assert pulled["since"].to_pylist() == [from_us(START_US + at * 1000) for at in range(3)]
    found = engine.changes_between(
        [read], start=from_us(START_US), end=from_us(START_US + 5000), time="at", clock=CLOCKS[0]
    )
    assert found["at"].to_pylist() == pulled["event"].to_pylist()


def test_pulls_are_in_source_order_and_in_the_types_of_the_source(engine, tmp_path):
    history = [
        EMPTY | {"event": 2, "created": 2, "count": 2**53 + 1, "ratio": -0.0, "parts": [1]},
        EMPTY | {"event": 1, "created": 9, "count": None, "since": from_us(START_US)},
        EMPTY | {"text": None, "event": 1, "created": 1, "count": 5},
        EMPTY | {"text": "b", "event": 4, "created": 1, "count": 6},
    ]
    source = SimpleNamespace(path=str(write(history, tmp_path)))
    pull = Pull(
        keys=("text",),
        features=tuple(FEATURES),
        event="event",
        created="created",
        start=from_us(START_US + 1),
        end=from_us(START_US + 3),
    )
    rows = engine.pull_rows(source, pull)
    latest = engine.pull_rows(source, replace(pull, is_latest=True))
    assert rows["count"].to_pylist() == [2**53 + 1, None, 5]
    assert latest["count"].to_pylist() == [2**53 + 1]
    assert str(latest["ratio"].to_pylist()) == "[-0.0]"
    for table in (rows, latest):
        assert {name: table.schema.field(name).type for name in FEATURES} == TYPES
        assert table.column_names == ["text", *FEATURES, "event", "created"]


def test_changes_are_ordered_by_moment_then_keys(engine, tmp_path):
    history = [
        EMPTY | {"text": "b", "event": 1, "created": 3},
        EMPTY | {"text": "a", "event": 3, "created": 1},
        EMPTY | {"text": "a", "event": 0, "created": 3},
        EMPTY | {"text": "a", "event": 4, "created": 4},
    ]
    read = view_read(write(history, tmp_path), ("text",))
    start, end = from_us(START_US), from_us(START_US + 3)
    clock = VisibilityClock.KNOWLEDGE
    entity_rows = engine.changes_between([read], start=start, end=end, time="at", clock=clock)
    assert entity_rows.to_pylist() == [{"text": "a", "at": end}, {"text": "b", "at": end}]
    entity_rows = engine.changes_between(
        [read], start=start, end=end, time="at", clock=VisibilityClock.EVENT
    )
    assert entity_rows["text"].to_pylist() == ["a", "b", "a"]


def test_files_of_different_columns_are_one_source(engine, tmp_path):
    first = source_table([EMPTY | {"event": 1, "created": 1, "count": 1, "small": 7}])
    second = source_table([EMPTY | {"event": 2, "created": 2, "count": 2, "name": "x"}])
    wide = first.set_column(
        first.column_names.index("small"), "small", first["small"].cast(pa.int16())
    )
    pq.write_table(wide.drop_columns(["name"]), tmp_path / "1.parquet")
    pq.write_table(second.drop_columns(["small"]), tmp_path / "2.parquet")
    entity_rows = entity_table([{"text": "a", "number": 1, "at": at} for at in (1, 2)])
    answer = retrieved(engine, entity_rows, view_read(tmp_path, ("text",)), VisibilityClock.EVENT)
    assert answer["s__small"].to_pylist() == [7, None]
    assert answer["s__name"].to_pylist() == [None, "x"]


NS = pa.timestamp("ns", tz="UTC")
KEYS = {
    "FLOAT": (pa.array([0.5, -0.0, None], pa.float32()), [0.5, 0.0]),
    "DOUBLE": (pa.array([1e300, -0.0, 3.0]), [1e300, 0.0]),
    "BYTES": (pa.array([b"", b"\x00\xff", b"x"]), [b"", b"\x00\xff"]),
    "BOOL": (pa.array([False, True, None]), [False, True]),
    "STRING": (pa.array(["", "é", "e"]).dictionary_encode(), ["", "é"]),
    "INT64": (pa.array([1.0, -7.0, None]), [1, -7]),
    "INT32": (pa.array([1, 200, 7], pa.uint8()), [1, 200]),
    "UNIX_TIMESTAMP": (pa.array([1_500, -1_500, 0]).cast(NS), [from_us(1), from_us(-1)]),
}


@pytest.mark.parametrize("dtype", KEYS)
def test_keys_of_every_type_find_their_rows(engine, tmp_path, dtype):
    held, requested = KEYS[dtype]
    table = source_table([EMPTY | {"event": 1, "created": 1, "count": n} for n in range(3)])
    table = table.set_column(table.column_names.index("text"), "text", held)
    pq.write_table(table, tmp_path / "history.parquet")
    read = view_read(tmp_path, ("text",))
    spec = read.spec.model_copy(update={"join_keys": (Column(name="text", dtype=dtype),)})
    at = pa.array([START_US + 1] * 3, pa.timestamp("us", tz="UTC"))
    entity_rows = pa.table({"text": pa.array([*requested, None]), "at": at})
    answer = retrieved(
        engine, entity_rows, dataclasses.replace(read, spec=spec), VisibilityClock.EVENT
    )
    assert answer["s__count"].to_pylist() == [0, 1, None]


def test_a_key_with_a_fraction_is_no_integer(engine, tmp_path):
    table = source_table([EMPTY | {"event": 1, "created": 1}])
    halves = pa.array([1.5])
    table = table.set_column(table.column_names.index("number"), "number", halves)
    pq.write_table(table, tmp_path / "history.parquet")
    entity_rows = entity_table([{"text": "a", "number": 1, "at": 1}])
    with pytest.raises(DataError, match=r"INT64 cannot hold 1\.5"):
        retrieved(engine, entity_rows, view_read(tmp_path, ("number",)), VisibilityClock.EVENT)


def test_pulled_values_have_the_types_of_the_source(engine, tmp_path):
    odd = {
        "nanos": pa.array([1, None, -1]).cast(NS),
        "lists": pa.array([[1], None, [None]], pa.list_(pa.int64())).cast(pa.list_(NS)),
        "large": pa.array([2**64 - 1, None, 0], pa.uint64()),
        "money": pa.array([1, None, 2]).cast(pa.decimal128(21, 2)),
        "fixed": pa.array([b"ab", None, b"cd"], pa.binary(2)),
        "day": pa.array([1, None, -1], pa.int32()).cast(pa.date32()),
        "spot": pa.array([{"x": 1}, None, {"x": None}]),
        "nothing": pa.nulls(3),
    }
    event = pa.array([START_US] * 3, pa.timestamp("us", tz="UTC"))
    pq.write_table(pa.table({**odd, "event": event}), tmp_path / "history.parquet")
    pull = Pull((), tuple(odd), event="event", created=None, start=None, end=None)
    found = engine.pull_rows(SimpleNamespace(path=str(tmp_path)), pull)
    assert found.select(list(odd)).equals(pa.table(odd))
