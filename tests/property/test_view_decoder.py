"""Values that are read many at once give what each gives alone."""

from __future__ import annotations

from datetime import UTC

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packed_rows import joined, packed_row
from tallystick.definitions.columns import plain
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DamagedError
from tallystick.online_store.entity_value import (
    BATCH_MIN,
    SectionReader,
    batches_of,
)
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.view_decoder import ViewDecoder

NUMBERS = ("INT32", "INT64", "FLOAT", "DOUBLE", "BOOL", "UNIX_TIMESTAMP")
VALUES = {
    "INT32": st.sampled_from([0, -1, 2**31 - 1]),
    "INT64": st.sampled_from([0, 1, 2**40, -(2**63)]),
    "FLOAT": st.sampled_from([0.5, -0.0, float("inf")]),
    "DOUBLE": st.sampled_from([0.1, 1e300, float("nan")]),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": st.datetimes(timezones=st.just(UTC)),
    "STRING": st.sampled_from(["", "text", "x" * 300]),
}


def spec_of(name: str, *dtypes: str, ttl_us: int | None = None) -> ViewSpec:
    return ViewSpec(
        name=name,
        join_keys=(Column(name="id", dtype="INT64"),),
        columns=tuple(Column(name=f"c{index}", dtype=dtype) for index, dtype in enumerate(dtypes)),
        ttl_us=ttl_us,
        event_column="event",
        created_column="created",
    )


SPECS = {
    "numbers": spec_of("numbers", *NUMBERS, ttl_us=1_000),
    "texts": spec_of("texts", "STRING", "DOUBLE"),
    "few": spec_of("few", "DOUBLE"),
}
OLD = spec_of("few", "DOUBLE", "INT64")
"""Another definition of a view, some of whose rows are still there."""
NOW_US = 2**50


@st.composite
def entities(draw):
    """The value of one entity."""
    rows = []
    for name, spec in SPECS.items():
        if draw(st.integers(0, 5)) == 0:
            continue
        written = OLD if name == "few" and draw(st.integers(0, 3)) == 0 else spec
        event_us = NOW_US - draw(st.sampled_from([0, 1_000, 1_001, 2**49]))
        created_us = draw(st.sampled_from([None, 0, 0, 0, 7, 2**33, -1]))
        rows.append(
            packed_row(
                RowCodec(written),
                {
                    column.name: draw(st.sampled_from([None, True, True]))
                    and draw(VALUES[column.dtype])
                    for column in written.columns
                },
                event_us=event_us,
                created_us=None if created_us is None else event_us + created_us,
                write_us=event_us + draw(st.sampled_from([0, 2**31, 2**33, 2**48, -1])),
            )
        )
    return joined(rows)


def decoders():
    found = {}
    for name, spec in SPECS.items():
        found[name] = decoder = ViewDecoder(spec, spec.column_names)
        if name == "few":
            decoder.add_definition(RowCodec(OLD).tag, OLD.model_dump_json().encode() + b"\nfew")
    return found


@settings(deadline=None)
@given(st.lists(entities(), min_size=1, max_size=4), st.data())
def test_many_values_are_read_like_one(kinds, data):
    values = data.draw(
        st.lists(
            st.sampled_from([*kinds, *kinds, None]), min_size=BATCH_MIN, max_size=4 * BATCH_MIN
        )
    )
    known = decoders()
    sections = SectionReader(decoder.view for decoder in known.values())
    found = sections.find(values)
    assert sorted(index for batch in found.batches for index in batch.indices) == sorted(
        set(range(len(values))) - set(found.indices) if found.batches else []
    )
    for decoder in known.values():
        many = decoder.decode_found(found, request_time_us=NOW_US)
        for index, value in enumerate(values):
            rows = sections.rows([value])[decoder.view]
            one = decoder.decode(rows, request_time_us=NOW_US)
            assert many.status[index] == one.status[0]
            assert many.definition[index] == one.definition[0]
            for field in ("event_us", "created_us", "write_us"):
                assert plain(getattr(many, field))[index] == getattr(one, field)[0]
            for name, column in many.values.items():
                assert repr(plain(column)[index]) == repr(one.values[name][0])
            assert one.is_complete or not many.is_complete


def test_values_that_are_alike_are_not_taken_one_by_one():
    row = packed_row(
        RowCodec(SPECS["few"]), {"c0": 0.5}, event_us=NOW_US, created_us=None, write_us=NOW_US
    )
    batches, others = batches_of([joined([row])] * BATCH_MIN)
    assert [batch.indices for batch in batches] == [list(range(BATCH_MIN))]
    assert not others


@given(entities().filter(lambda value: len(value) > 1), st.data())
def test_a_damaged_value_among_many_is_found(whole, data):
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    index = data.draw(st.integers(0, 2 * BATCH_MIN - 1))
    sections = SectionReader(decoder.view for decoder in decoders().values())
    try:
        expected = sections.rows([cut])
    except DamagedError:
        expected = None
    values = [whole] * (2 * BATCH_MIN)
    values[index] = cut
    if expected is None:
        with pytest.raises(DamagedError):
            sections.find(values)
    else:  # it ends with a whole row
        found = sections.find(values)
        assert {view: found.rows[view][found.indices.index(index)] for view in expected} == {
            view: rows[0] for view, rows in expected.items()
        }


@pytest.mark.parametrize("odd", [b"\2", b"\2cut", b"\1other"])
def test_an_odd_value_before_many_does_not_keep_them_from_being_read_at_once(odd):
    row = packed_row(
        RowCodec(SPECS["few"]), {"c0": 0.5}, event_us=NOW_US, created_us=None, write_us=NOW_US
    )
    batches, others = batches_of([odd, *[joined([row])] * BATCH_MIN])
    assert [batch.indices for batch in batches] == [list(range(1, BATCH_MIN + 1))]
    assert others == [0]
