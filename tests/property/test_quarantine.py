"""Which requests incidents touched, against an oracle that asks every incident of every request."""

from __future__ import annotations

import math
from itertools import product

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tallystick.clock import from_us
from tallystick.records.quarantine import touched
from tallystick.records.record_store import AffectedKeys, Incident

# Text whose order by UTF-16 is another; numbers that a float cannot hold; neighbours of them.
TEXTS = ["", "a", "a\x00", "aa", "b", "é", "e\u0301", "\uff5e", "\U0001f600"]
WHOLE = [-(2**63), -1, 0, 1, 2, 2**53, 2**53 + 1, 2**63 - 1]
FRACTIONS = [-math.inf, -0.0, 0.0, 0.1, 0.5, 1.0, 2.0, float(2**53), float(2**63), math.inf]
NUMBERS = [*WHOLE, *FRACTIONS, True, False, 2**63, -(2**63) - 1, 10**400, -(10**400), math.nan]
KINDS = {
    "text": (pa.string(), TEXTS, TEXTS),
    "whole": (pa.int64(), WHOLE, NUMBERS),
    "small": (pa.int32(), [-1, 0, 1, 2], NUMBERS),
    "double": (pa.float64(), [*FRACTIONS, math.nan], NUMBERS),
    "single": (pa.float32(), [-0.0, 0.5, 1.0, 2.0], NUMBERS),
    "flag": (pa.bool_(), [True, False], NUMBERS),
    "bytes": (pa.binary(), [b"a", b"b"], TEXTS),
}
MOMENTS = range(6)
MANY = settings(max_examples=400, deadline=None)


@st.composite
def scenes(draw):
    """Key columns with their types, requests, and incidents."""
    kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=3))
    columns = {f"k{at}": kind for at, kind in enumerate(kinds)}
    request = st.tuples(
        st.sampled_from(MOMENTS),
        *(st.sampled_from([None, *KINDS[kind][1]]) for kind in kinds),
    )
    return columns, draw(st.lists(request, max_size=30)), draw(st.lists(incidents(columns)))


@st.composite
def incidents(draw, columns):
    names = draw(st.permutations(sorted(columns)))[: draw(st.integers(0, len(columns)))]
    required = [KINDS[columns[name]][2] for name in names]
    if draw(st.integers(0, 9)) == 0:  # as where the definitions have changed since
        names, required = [*names, "gone"], [*required, TEXTS]
    if required and draw(st.integers(0, 9)) == 0:
        required[0] = NUMBERS if required[0] is TEXTS else TEXTS
    key = st.tuples(*(st.sampled_from([None, *values]) for values in required))
    start, end, first, last = (
        *sorted((draw(st.sampled_from(MOMENTS)), draw(st.sampled_from(MOMENTS)))),
        draw(key),
        draw(key),
    )
    keys = AffectedKeys(
        names=tuple(names),
        values=tuple(draw(st.lists(key, max_size=6))),
        first=first,
        last=last,
    )
    return Incident(
        incident_id="x",
        model="demo",
        view="stats",
        cause="materialization_lag",
        start=from_us(start),
        end=from_us(end),
        found_at=from_us(end),
        requests=1,
        values=1,
        is_open=draw(st.booleans()),
        evidence="",
        keys=draw(st.sampled_from([keys, None])) if draw(st.booleans()) else keys,
    )


def part(value):
    """A part of a key, to be compared: null first, and NaN is null."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return (0, 0)
    return (1, value)


def is_said(columns, keys):
    """Whether a record's keys can be compared with those of the requests."""
    return set(keys.names) <= set(columns) and all(
        columns[name] != "bytes"
        and (part(value) == (0, 0) or isinstance(value, str) == (columns[name] == "text"))
        for key in keys.values or (keys.first, keys.last)
        for name, value in zip(keys.names, key, strict=True)
    )


def is_touched(columns, request, incident):
    moment, values = request[0], dict(zip(columns, request[1:], strict=True))
    start, end, keys = incident.start.microsecond, incident.end.microsecond, incident.keys
    if moment < start or (moment > end and not incident.is_open):
        return False
    if keys is None or not is_said(columns, keys):
        return True
    own = tuple(part(values[name]) for name in keys.names)
    if keys.values:
        return any(own == tuple(map(part, key)) for key in keys.values)
    return tuple(map(part, keys.first)) <= own <= tuple(map(part, keys.last))


@MANY
@given(scenes(), st.booleans())
def test_a_request_is_touched_as_the_rule_says(scene, in_chunks):
    columns, requests, found = scene
    times = pa.array([moment for moment, *_ in requests], pa.int64())
    table = pa.table(
        {
            "at": times.cast(pa.timestamp("us", tz="UTC")),
            **{
                name: pa.array([request[index] for request in requests], KINDS[kind][0])
                for index, (name, kind) in enumerate(columns.items(), start=1)
            },
        }
    )
    if in_chunks:
        table = pa.concat_tables([table[:7], table[7:8], table[8:]])
    mask = touched(found, table["at"], {name: table[name] for name in columns})
    expected = [any(is_touched(columns, request, each) for each in found) for request in requests]
    assert mask.tolist() == expected


SPELL = Incident(
    incident_id="x",
    model="demo",
    view="stats",
    cause="materialization_lag",
    start=from_us(0),
    end=from_us(0),
    found_at=from_us(0),
    requests=1,
    values=1,
    is_open=False,
    evidence="",
)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"bytes"}))
def test_every_bound_and_every_value_is_compared_exactly(kind):
    dtype, values, bounds = KINDS[kind]
    column = pa.chunked_array([pa.array([None, *values], dtype)])
    times = pa.chunked_array([pa.array([0] * len(column), pa.timestamp("us", tz="UTC"))])
    requests = [(0, value) for value in column.to_pylist()]
    for first, last in product([None, *bounds], repeat=2):
        for listed in ((), ((first,), (last,))):
            keys = AffectedKeys(names=("k",), values=listed, first=(first,), last=(last,))
            incident = SPELL.model_copy(update={"keys": keys})
            mask = touched([incident], times, {"k": column}).tolist()
            assert mask == [is_touched({"k": kind}, each, incident) for each in requests], keys
