"""The fold against an oracle that looks at every row of the history for every request."""

from __future__ import annotations

import math
import tempfile
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tallystick.clock import from_us
from tallystick.fold import VisibilityClock
from tallystick.offline_store import retrieval, streaming
from tallystick.offline_store.history import ViewRead
from tallystick.offline_store.retrieval import point_in_time, visible_between
from tallystick.view import Column, ViewSpec

START_US = 1_356_998_400_000_000
MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

TEXT_KEYS = ["", "a", "A", "é", "'", '"', "1"]
NUMBER_KEYS = [0, -1, 1, 2**53, 2**53 + 1, 2**63 - 1]
FEATURES = {
    "count": ("INT64", pa.int64(), st.sampled_from([0, -7, 2**53 + 1, 2**63 - 1, -(2**63)])),
    "small": ("INT32", pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "ratio": ("FLOAT", pa.float32(), st.floats(width=32, allow_nan=True)),
    "mean": ("DOUBLE", pa.float64(), st.floats(allow_nan=True)),
    "flag": ("BOOL", pa.bool_(), st.booleans()),
    "name": ("STRING", pa.string(), st.sampled_from(["", "x", "é'\""])),
    "raw": ("BYTES", pa.binary(), st.binary(max_size=3)),
    "since": (
        "UNIX_TIMESTAMP",
        pa.timestamp("us", tz="UTC"),
        st.integers(-5, 5).map(lambda us: from_us(START_US + us)),
    ),
    "parts": ("INT64_LIST", pa.list_(pa.int64()), st.lists(st.integers(0, 3), max_size=2)),
}
TYPES = {name: kind for name, (_, kind, _) in FEATURES.items()}

moments = st.sampled_from([0, 0, 1, 1, 2, 3, 5, 8, 10**6, 10**6 + 1, 3_600_000_000])
rows = st.fixed_dictionaries(
    {
        "text": st.none() | st.sampled_from(TEXT_KEYS),
        "number": st.none() | st.sampled_from(NUMBER_KEYS),
        "event": moments,
        "created": moments,
        "written": st.none() | moments,
        **{name: st.none() | values for name, (_, _, values) in FEATURES.items()},
    }
)
few_keys = rows.map(lambda row: row | {"text": "a", "number": 2**53 + 1})
tied = few_keys.map(lambda row: row | {"event": 1, "created": 1})
histories = st.lists(rows | few_keys | few_keys | tied, max_size=25)
requests = st.fixed_dictionaries(
    {
        "text": st.none() | st.sampled_from([*TEXT_KEYS, "a", "a", "never"]),
        "number": st.none() | st.sampled_from([*NUMBER_KEYS, 2**53 + 1, 2**53 + 1]),
        "at": moments,
    }
)
spines = st.lists(requests, max_size=20).map(lambda some: some + some[:3])
ttls = st.none() | st.sampled_from([0, 1, 2, 5, 10**6, 3_600_000_000, 1 << 70])
clocks = st.sampled_from(VisibilityClock)


def visible_at(row, clock):
    if clock is VisibilityClock.EVENT:
        return row["event"]
    if clock is VisibilityClock.KNOWLEDGE:
        return max(row["event"], row["created"])
    return row["written"]


def winner(candidates, clock):
    """The first of the largest, looking at one row after the other as an online store does."""
    best = None
    for row in sorted(candidates, key=lambda row: visible_at(row, clock)):  # stable
        if best is None or (row["event"], row["created"]) > (best["event"], best["created"]):
            best = row
    return best


def oracle(history, request, *, key, clock, ttl):
    """Winning row and status of one request, by looking at all rows."""
    known = [
        row
        for row in history
        if all(row[name] is not None and row[name] == request[name] for name in key)
        and visible_at(row, clock) is not None
        and visible_at(row, clock) <= request["at"]
    ]
    best = winner(known, clock)
    if best is None:
        return None, "NOT_FOUND"
    if ttl and best["event"] < request["at"] - ttl:
        return best, "OUTSIDE_MAX_AGE"
    return best, "PRESENT"


def same(got, want):
    """Equal, a NaN equal to itself and a negative zero unequal to zero."""
    if isinstance(want, float) and isinstance(got, float):
        return math.copysign(1, got) == math.copysign(1, want) and (
            got == want or (math.isnan(got) and math.isnan(want))
        )
    return got == want and type(got) is type(want)


def source_table(history, *, unit="us", zone="UTC"):
    time = pa.timestamp(unit, tz=zone)
    scale = 1000 if unit == "ns" else 1
    table = {
        "text": pa.array([row["text"] for row in history], pa.string()),
        "number": pa.array([row["number"] for row in history], pa.int64()),
    }
    for name in ("event", "created", "written"):
        values = [None if row[name] is None else (row[name] + START_US) * scale for row in history]
        table[name] = pa.array(values, pa.int64()).cast(time)
    for name, kind in TYPES.items():
        table[name] = pa.array([row[name] for row in history], kind)
    return pa.table(table)


def spine_table(spine):
    return pa.table(
        {
            "text": pa.array([row["text"] for row in spine], pa.string()),
            "n": pa.array([row["number"] for row in spine], pa.int64()),
            "at": pa.array([row["at"] + START_US for row in spine], pa.timestamp("us", tz="UTC")),
            "note": pa.array(list(range(len(spine))), pa.int16()),
        }
    )


def view_read(path, key, ttl=None):
    types = {"text": "STRING", "number": "INT64"}
    spec = ViewSpec(
        name="stats",
        join_keys=tuple(Column(name=name, dtype=types[name]) for name in key),
        columns=tuple(Column(name=name, dtype=dtype) for name, (dtype, _, _) in FEATURES.items()),
        ttl_us=ttl,
        event_column="event",
        created_column="created",
    )
    return ViewRead(
        spec=spec,
        source=SimpleNamespace(path=str(path)),
        name="s",
        key_map={"number": "n"},
        columns=tuple(FEATURES),
        written_column="written",
    )


def write(history, folder, cut=None):
    """One file, or two whose rows follow each other."""
    table = source_table(history)
    if cut is None:
        path = Path(folder) / "history.parquet"
        pq.write_table(table, path, row_group_size=7)
        return path
    for part, piece in enumerate((table.slice(0, cut), table.slice(cut))):
        pq.write_table(piece, Path(folder) / f"part-{part}.parquet")
    return folder


def in_memory(spine, read, clock, folder):
    del folder
    return point_in_time(spine=spine, request_time="at", reads=[read], clock=clock, with_times=True)


def joined(spine, read, clock, folder):
    """As where a view's columns do not fit into memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "FETCHED_SHARE", 0.0)
        return in_memory(spine, read, clock, folder)


def from_file_to_file(spine, read, clock, folder):
    asked, out = Path(folder) / ".asked.parquet", Path(folder) / ".answer.parquet"
    pq.write_table(spine, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BATCH", 3)
        rows = streaming.write_point_in_time(
            spine=asked, request_time="at", reads=[read], clock=clock, out=out, with_times=True
        )
    answer = pq.read_table(out)
    assert answer.num_rows == rows
    return answer


@pytest.mark.parametrize("way", [in_memory, joined, from_file_to_file])
@MANY
@given(
    history=histories,
    spine=spines,
    clock=clocks,
    shape=st.tuples(
        st.sampled_from([("text",), ("number",), ("text", "number"), ()]),
        st.none() | st.integers(0, 25),
        ttls,
    ),
)
def test_every_request_gets_what_looking_at_all_rows_gives(way, history, spine, clock, shape):
    key, cut, ttl = shape
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder, cut), key, ttl)
        table = spine_table(spine)
        answer = way(table, read, clock, folder)
    assert answer.select(table.column_names).equals(table)
    assert {name: answer.schema.field(f"s__{name}").type for name in FEATURES} == TYPES
    for request, got in zip(spine, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=key, clock=clock, ttl=ttl)
        assert got["s__status"] == status
        event, created = (row["event"], row["created"]) if row else (None, None)
        assert got["s__event_time"] == (None if row is None else from_us(event + START_US))
        assert got["s__created_time"] == (None if row is None else from_us(created + START_US))
        for name in FEATURES:
            want = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], want), (name, request)


@MANY
@given(history=histories, clock=clocks, bounds=st.lists(moments, min_size=1, max_size=4))
def test_writes_of_what_became_visible_add_up_to_the_fold(history, clock, bounds):
    """Told window by window, a store that replaces only by larger times holds the fold's rows."""
    key = ("text", "number")
    online: dict = {}
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write(history, folder), key)
        for after, until in pairwise([None, *sorted(set(bounds))]):
            rows = visible_between(
                read,
                after=None if after is None else from_us(after + START_US),
                until=from_us(until + START_US),
                clock=clock,
            ).to_pylist()
            names = [(row["text"], row["number"]) for row in rows]
            assert len(names) == len(set(names))
            for row in rows:
                held = online.get((row["text"], row["number"]))
                times = (row["event_time"], row["created_time"])
                if held is None or times > (held["event_time"], held["created_time"]):
                    online[row["text"], row["number"]] = row
            for text in TEXT_KEYS:
                for number in NUMBER_KEYS:
                    request = {"text": text, "number": number, "at": until}
                    want, _ = oracle(history, request, key=key, clock=clock, ttl=None)
                    held = online.get((text, number))
                    assert (held is None) == (want is None)
                    assert want is None or all(same(held[name], want[name]) for name in FEATURES)


@pytest.mark.parametrize("clock", VisibilityClock)
@pytest.mark.parametrize("cut", [None, 1])
def test_of_full_ties_the_first_in_source_order_wins(tmp_path, clock, cut):
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "event": 1, "created": 1}
    history = [row | {"written": 1, "count": count} for count in (7, 8, 6)]
    read = view_read(write(history, tmp_path, cut), ("text",))
    spine = spine_table([{"text": "a", "number": 1, "at": 1}])
    answer = point_in_time(spine=spine, request_time="at", reads=[read], clock=clock)
    assert answer["s__count"].to_pylist() == [7]
    rows = visible_between(read, after=None, until=from_us(START_US + 1), clock=clock)
    assert rows["count"].to_pylist() == [7]


def test_of_rows_equal_in_both_times_the_one_written_first_stays(tmp_path):
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "event": 1, "created": 1}
    history = [row | {"written": 9, "count": 7}, row | {"written": 5, "count": 8}]
    answer = point_in_time(
        spine=spine_table([{"text": "a", "number": 1, "at": at} for at in (4, 5, 9)]),
        request_time="at",
        reads=[view_read(write(history, tmp_path), ("text",))],
        clock=VisibilityClock.SERVED,
    )
    assert answer["s__count"].to_pylist() == [None, 8, 8]


def test_a_window_begins_behind_its_first_moment_and_holds_its_last(tmp_path):
    row = dict.fromkeys(FEATURES) | {"number": 1, "created": 0, "written": None}
    history = [row | {"text": str(event), "event": event} for event in (1, 2, 3, 4)]
    rows = visible_between(
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
    read = view_read(write([row | {"written": None, "count": 3}], tmp_path), ("text",), ttl=5)
    answer = point_in_time(
        spine=spine_table([{"text": "a", "number": 1, "at": 10 + age_us}]),
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
    row = dict.fromkeys(FEATURES) | {"text": "a", "number": 1, "written": None, "count": 3}
    table = source_table([row | {"event": second, "created": 2 * second}])
    time = pa.timestamp(unit, tz=zone)
    for name in ("event", "created"):
        column = table[name].cast(pa.int64()).cast(pa.timestamp("us", tz=zone)).cast(time)
        table = table.set_column(table.column_names.index(name), name, column)
    pq.write_table(table, tmp_path / "history.parquet")
    answer = point_in_time(
        spine=spine_table(
            [{"text": "a", "number": 1, "at": at} for at in (1, 1_999_999, 2 * second)]
        ),
        request_time="at",
        reads=[view_read(tmp_path, ("text",))],
        clock=VisibilityClock.KNOWLEDGE,
        with_times=True,
    )
    assert answer["s__count"].to_pylist() == [None, None, 3]
    assert answer["s__event_time"].to_pylist()[2] == from_us(START_US) + timedelta(seconds=1)


@pytest.mark.parametrize("fetched_share", [0.0, 0.125])
@MANY
@given(
    history=histories,
    spine=spines,
    clock=clocks,
    shape=st.tuples(st.none() | st.integers(0, 25), ttls),
)
def test_rows_that_are_not_read_would_change_no_value(fetched_share, history, spine, clock, shape):
    """Without times, whole files and row groups are left out."""
    cut, ttl = shape
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "FETCHED_SHARE", fetched_share)
        read = view_read(write(history, folder, cut), ("text",), ttl)
        table = spine_table(spine)
        answer = point_in_time(spine=table, request_time="at", reads=[read], clock=clock)
    for request, got in zip(spine, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=("text",), clock=clock, ttl=ttl)
        for name in FEATURES:
            want = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], want), (name, request)
