"""The point-in-time rule over Delta tables against an oracle that looks at every row."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rule_oracle import (
    FEATURES,
    START_US,
    TYPES,
    clocks,
    entity_table,
    histories,
    oracle,
    request_lists,
    same,
    source_table,
    ttls,
    view_read,
)
from tallystick.clock import from_us
from tallystick.offline_store import point_in_time
from tallystick.offline_store.sources.delta_writer import commit_rows
from tallystick.storage.locations import LOCAL, Location
from visible_rows import visible_rows

SOME = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
keys = st.sampled_from([("text",), ("number",), ("text", "number"), ()])


def write_delta(history, folder, cut, partition):
    """One commit, or two whose rows follow each other; and one more that is undone."""
    location = Location(LOCAL, str(Path(folder, "table")))
    table = source_table(history)
    if partition is not None:
        write_deltalake(
            location.path, table.schema.empty_table(), partition_by=partition, mode="append"
        )
    for piece in [table] if cut is None else [table.slice(0, cut), table.slice(cut)]:
        commit_rows(location, "it", piece)
        # The log orders files by milliseconds.
        time.sleep(0.002)
    if history:
        version = DeltaTable(location.path).version()
        commit_rows(location, "it", table)
        DeltaTable(location.path).restore(version)
    return location.path


def check(answer, history, entity_rows, shape, *, with_times):
    key, clock, ttl = shape
    assert {name: answer.schema.field(f"s__{name}").type for name in FEATURES} == TYPES
    for request, got in zip(entity_rows, answer.to_pylist(), strict=True):
        row, status = oracle(history, request, key=key, clock=clock, ttl=ttl)
        if with_times:
            assert got["s__status"] == status
            event = None if row is None else from_us(row["event"] + START_US)
            assert got["s__event_time"] == event
        for name in FEATURES:
            expected = row[name] if status == "PRESENT" else None
            assert same(got[f"s__{name}"], expected), (name, request)


@pytest.mark.parametrize("with_times", [True, False])
@SOME
@given(
    history=histories,
    entity_rows=request_lists,
    shape=st.tuples(
        keys,
        clocks,
        ttls,
        st.none() | st.integers(0, 25),
        st.sampled_from([None, "text", "number"]),
    ),
)
def test_every_request_gets_what_looking_at_all_rows_gives(with_times, history, entity_rows, shape):
    key, clock, ttl, cut, by = shape
    # Rows that tie in everything have an order within a file alone.
    partition = by if by in key else None
    if partition == "text":
        # An empty text cannot be a partition's value: Delta has it as null, so writing one is
        # refused. test_an_empty_text_is_not_written_as_a_partition_value checks that.
        history = [row for row in history if row["text"] != ""]
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write_delta(history, folder, cut, partition), key, ttl)
        table = entity_table(entity_rows)
        answer = point_in_time(
            entity_rows=table, request_time="at", reads=[read], clock=clock, with_times=with_times
        )
    assert answer.select(table.column_names).equals(table)
    check(answer, history, entity_rows, (key, clock, ttl), with_times=with_times)


@SOME
@given(history=histories, clock=clocks, until=st.sampled_from([0, 1, 8, 10**6]))
def test_newly_visible_rows_are_those_of_the_rule(history, clock, until):
    with tempfile.TemporaryDirectory() as folder:
        read = view_read(write_delta(history, folder, 3, None), ("text", "number"))
        rows = visible_rows(read, until=from_us(until + START_US), clock=clock)
    names = {(row["text"], row["number"]) for row in history} - {
        (row["text"], row["number"]) for row in history if None in (row["text"], row["number"])
    }
    reported = {(row["text"], row["number"]): row for row in rows.to_pylist()}
    for text, number in names:
        request = {"text": text, "number": number, "at": until}
        expected, _ = oracle(history, request, key=("text", "number"), clock=clock, ttl=None)
        got = reported.pop((text, number), None)
        assert (got is None) == (expected is None)
        assert expected is None or all(same(got[name], expected[name]) for name in FEATURES)
    assert reported == {}
