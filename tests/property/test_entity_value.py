"""The rows of an entity's value are found, and a damaged value is never read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from packed_rows import joined, packed_row
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DamagedError
from tallystick.online_store.entity_value import SectionReader, spans
from tallystick.online_store.row_codec import RowCodec


def codec_of(name, dtype="STRING"):
    return RowCodec(
        ViewSpec(
            name=name,
            join_keys=(Column(name="id", dtype="INT64"),),
            columns=(Column(name="c", dtype=dtype),),
            ttl_us=None,
            event_column="event",
            created_column="created",
        )
    )


CODECS = {name: codec_of(name) for name in "abcdefg"}
CODECS["number"] = codec_of("number", "INT64")


@st.composite
def entities(draw):
    """The rows of one entity, by view."""
    rows = {}
    for name in draw(st.sets(st.sampled_from(sorted(CODECS)))):
        if name == "number":
            value = draw(st.sampled_from([None, 1, 2**40]))
        else:
            value = "x" * draw(st.sampled_from([0, 1, 1, 1, 250, 256, 70_000]))
        event = draw(st.integers(0, 2))
        rows[name] = packed_row(
            CODECS[name],
            {"c": value},
            event_us=event,
            created_us=draw(st.sampled_from([None, 5])),
            write_us=9,
        )
    return rows


@given(st.lists(st.none() | entities(), max_size=30), st.sets(st.sampled_from(sorted(CODECS))))
def test_each_row_is_found_in_its_value(values, requested):
    reader = SectionReader(CODECS[name].view for name in requested)
    stored = [None if rows is None else joined(list(rows.values())) for rows in values]
    found = reader.rows(stored)
    assert found.keys() == {CODECS[name].view for name in requested}
    for name in requested:
        assert found[CODECS[name].view] == [(rows or {}).get(name) for rows in values]


@given(entities().filter(bool), st.data())
def test_a_cut_value_is_damaged_or_ends_with_a_whole_row(rows, data):
    whole = joined(list(rows.values()))
    ends = {1, *(end for _, end in spans(whole))}
    cut = data.draw(st.integers(0, len(whole) - 1))
    reader = SectionReader([CODECS["a"].view])
    reader.rows([whole])
    if cut in ends:
        assert reader.rows([whole[:cut]])
    else:
        with pytest.raises(DamagedError):
            reader.rows([whole[:cut]])
    with pytest.raises(DamagedError):
        reader.rows([b"\1" + whole[1:]])
