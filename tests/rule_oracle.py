"""Histories and requests made up by hypothesis, and what looking at every row answers to them."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from tallystick.clock import from_us
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.offline_store.view_read import ViewRead
from tallystick.point_in_time.rule import VisibilityClock

START_US = 1_356_998_400_000_000

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
request_lists = st.lists(requests, max_size=20).map(lambda some: some + some[:3])
ttls = st.none() | st.sampled_from([0, 1, 2, 5, 10**6, 3_600_000_000, 1 << 70])
clocks = st.sampled_from([VisibilityClock.EVENT, VisibilityClock.KNOWLEDGE])


def visible_at(row, clock):
    if clock is VisibilityClock.EVENT:
        return row["event"]
    if clock is VisibilityClock.KNOWLEDGE:
        return max(row["event"], row["created"])
    return row["visible"]


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


def same(got, expected):
    """Equal, a NaN equal to itself and a negative zero unequal to zero."""
    if isinstance(expected, float) and isinstance(got, float):
        return math.copysign(1, got) == math.copysign(1, expected) and (
            got == expected or (math.isnan(got) and math.isnan(expected))
        )
    return got == expected and type(got) is type(expected)


def source_table(history, *, unit="us", zone="UTC"):
    time = pa.timestamp(unit, tz=zone)
    scale = 1000 if unit == "ns" else 1
    table = {
        "text": pa.array([row["text"] for row in history], pa.string()),
        "number": pa.array([row["number"] for row in history], pa.int64()),
    }
    for name in ("event", "created"):
        values = [None if row[name] is None else (row[name] + START_US) * scale for row in history]
        table[name] = pa.array(values, pa.int64()).cast(time)
    for name, kind in TYPES.items():
        table[name] = pa.array([row[name] for row in history], kind)
    return pa.table(table)


def entity_table(entity_rows):
    return pa.table(
        {
            "text": pa.array([row["text"] for row in entity_rows], pa.string()),
            "n": pa.array([row["number"] for row in entity_rows], pa.int64()),
            "at": pa.array(
                [row["at"] + START_US for row in entity_rows], pa.timestamp("us", tz="UTC")
            ),
            "note": pa.array(list(range(len(entity_rows))), pa.int16()),
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
