"""The served clock against the online store itself: history gives later what was read then."""

from __future__ import annotations

import math
import struct
import tempfile
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from online_reads import read_online, use_of
from tallystick.clock import from_us, process_clock, to_us
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import StateError, UnavailableError
from tallystick.offline_store.point_in_time_join import point_in_time
from tallystick.offline_store.view_read import ViewRead
from tallystick.online_store.entity_keys import ttls_key
from tallystick.online_store.journal.journal_entry import entry_of_table
from tallystick.online_store.journal.write_journal import (
    BufferedJournal,
    Journal,
    pending_in,
    view_folder,
)
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_writer import delete_view
from tallystick.online_store.table_writer import write_table
from tallystick.point_in_time.rule import VisibilityClock

START_US = 1_709_294_400_000_000
PROJECT = "project"
MOMENT = pa.timestamp("us", tz="UTC")
TYPES = {
    "count": ("INT64", pa.int64(), st.sampled_from([0, -1, 2**53 + 1, 2**63 - 1])),
    "share": ("FLOAT", pa.float32(), st.floats(width=32, allow_nan=False)),
    "name": ("STRING", pa.string(), st.sampled_from(["", "x", "é"])),
    "since": ("UNIX_TIMESTAMP", MOMENT, st.integers(-5, 5).map(lambda us: from_us(START_US + us))),
    "parts": ("INT64_LIST", pa.list_(pa.int64()), st.lists(st.integers(0, 3), min_size=1)),
}


def spec_of(*names, ttl=7, created="created", **types):
    return ViewSpec(
        name="stats/1",
        join_keys=(Column(name="id", dtype="INT64"), Column(name="town", dtype="STRING")),
        columns=tuple(Column(name=name, dtype=types.get(name, TYPES[name][0])) for name in names),
        ttl_us=ttl,
        event_column="event",
        created_column=created,
    )


DEFINITIONS = [
    spec_of(*TYPES),
    spec_of(*TYPES, ttl=None),
    spec_of("name", "count", created=None),
    spec_of("since", "name", "count", count="DOUBLE"),
]
KEYS = [(1, "A"), (1, "B"), (2, "A")]

values = st.fixed_dictionaries({name: st.none() | drawn for name, (*_, drawn) in TYPES.items()})
rows = st.tuples(
    st.sampled_from([*KEYS, (None, "A")]),
    st.integers(-3, 3),
    st.none() | st.integers(-3, 3),
    values,
)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("write", "write", "write", "push", "push", "push"),
                *("cut before", "cut after", "remove", "empty", "wait"),
            ]
        ),
        st.sampled_from([0, 0, 0, 1, 2, 3]),
        st.lists(rows, min_size=1, max_size=4),
        st.integers(1, 5),
    ),
    min_size=1,
    max_size=12,
)


def table_of(spec, drawn, at_us):
    """Event times are near the clock's, so that rows come out of order and tie."""
    columns = {
        "id": pa.array([key[0] for key, *_ in drawn], pa.int64()),
        "town": pa.array([key[1] for key, *_ in drawn], pa.string()),
        "event": pa.array([at_us + event for _, event, *_ in drawn], pa.int64()).cast(MOMENT),
        "created": pa.array(
            [None if created is None else at_us + created for _, _, created, _ in drawn],
            pa.int64(),
        ).cast(MOMENT),
    }
    for column in spec.columns:
        kind = pa.float64() if column.dtype == "DOUBLE" else TYPES[column.name][1]
        cells = [row[column.name] for *_, row in drawn]
        if column.dtype == "DOUBLE":
            cells = [None if cell is None else float(cell % 1000) for cell in cells]
        columns[column.name] = pa.array(cells, kind)
    return pa.table(columns)


class Scene:
    """A store, its journals, and what was read from it."""

    def __init__(self, redis_server, clock, folder):
        self.redis, self.clock, self.folder = redis_server, clock, Path(folder)
        self.state = self.folder / ".tallystick"
        self.direct = Journal(self.state)
        self.buffered = BufferedJournal(self.state, rows_max=10_000, flush_rows=5, interval_s=60)
        self.reads = []

    def write(self, spec, table, journal):
        write_table(
            self.redis.client,
            PROJECT,
            spec,
            table,
            write_us=process_clock().now_us(),
            journal=journal,
        )

    def cut_off(self, spec, table, *, is_written):
        """A process that was killed while it wrote."""
        entry = entry_of_table(spec, table, write_us=process_clock().now_us())
        entry = entry.filter(entry["key::id"].is_valid())
        recording = self.direct.recording(self.redis.client, PROJECT, RowCodec(spec), entry)
        with suppress(InterruptedError), recording:
            if is_written:
                self.write(spec, table, None)
            raise InterruptedError

    def take(self, step, spec, drawn):
        table = table_of(spec, drawn, START_US)
        if step == "write":
            self.write(spec, table, self.direct)
        elif step == "push":
            self.write(spec, table, self.buffered)
        elif step.startswith("cut"):
            self.cut_off(spec, table, is_written=step == "cut after")
        elif step == "remove":
            self.settle()
            delete_view(self.redis.client, PROJECT, spec.name)
            self.buffered.removed(spec.name)
        elif step == "empty":
            self.settle()
            self.redis.client.flushall()
            self.write(spec, table, self.direct)

    def settle(self):
        self.write(DEFINITIONS[0], table_of(DEFINITIONS[0], [], START_US), self.direct)
        self.direct.settle(self.redis.client, PROJECT, "stats/1")

    def look(self):
        now_us = process_clock().now_us()
        for spec in DEFINITIONS:
            self.reads.append((spec, now_us, online(self.redis.socket, spec, now_us)))


def online(socket, spec, now_us):
    requested = {"id": [key for key, _ in KEYS], "town": [town for _, town in KEYS]}
    use, text = use_of(spec, name="use"), f"unix://{socket}"
    return read_online(PROJECT, [use], requested, at_us=now_us, connection_string=text)["use"]


def view_read(spec):
    return ViewRead(spec=spec, source=None, name="s", key_map={}, columns=spec.column_names)


def served(folder, spec, moments):
    """The served clock's answer for every key at every moment."""
    requested = [(key, town, at) for at in moments for key, town in KEYS]
    return point_in_time(
        entity_rows=pa.table(
            {
                "id": pa.array([key for key, _, _ in requested], pa.int64()),
                "town": [town for _, town, _ in requested],
                "at": pa.array([at for _, _, at in requested], pa.int64()).cast(MOMENT),
            }
        ),
        request_time="at",
        reads=[view_read(spec)],
        clock=VisibilityClock.SERVED,
        repo_path=folder,
        with_times=True,
    )


def bits(value):
    """A value so that only the same one equals it."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else struct.pack("<d", value)
    return value


def compare(scene):
    for spec in DEFINITIONS:
        own = [(at, rows) for other, at, rows in scene.reads if other is spec]
        retrieved = served(scene.folder, spec, [at for at, _ in own])
        kinds = {column.name: column.dtype for column in spec.columns}
        for name, dtype in kinds.items():
            expected = pa.float64() if dtype == "DOUBLE" else TYPES[name][1]
            assert retrieved.schema.field(f"s__{name}").type == expected
        answers = iter(retrieved.to_pylist())
        for _, rows in own:
            for index in range(len(KEYS)):
                got = next(answers)
                assert got["s__status"] == rows.status[index]
                for name, us in (("event", rows.event_us), ("created", rows.created_us)):
                    moment = us[index]
                    expected = None if moment is None else from_us(moment)
                    assert got[f"s__{name}_time"] == expected, (name, spec)
                for name in kinds:
                    assert bits(got[f"s__{name}"]) == bits(rows.values[name][index]), name


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(taken=steps)
def test_what_was_read_online_is_what_the_served_clock_tells(redis_server, simulated_clock, taken):
    redis_server.client.flushall()
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(redis_server, simulated_clock, folder)
        now_us = START_US
        # The first write makes sure that there is a journal.
        for step, number, drawn, rest_us in [("write", 0, [(KEYS[0], 0, 0, NOTHING)], 1), *taken]:
            simulated_clock.set(from_us(now_us))
            scene.take(step, DEFINITIONS[number], drawn)
            scene.look()
            now_us += rest_us
            simulated_clock.set(from_us(now_us - 1))
            scene.look()
        simulated_clock.set(from_us(now_us))
        scene.settle()
        scene.buffered.buffer.close()
        ledger = scene.buffered.buffer.ledger
        assert (ledger.accepted, ledger.dropped, ledger.in_flight) == (ledger.durable, 0, 0)
        compare(scene)


NOTHING = dict.fromkeys(TYPES)


def test_a_write_that_was_cut_off_has_to_be_settled(redis_server, simulated_clock, tmp_path):
    scene = Scene(redis_server, simulated_clock, tmp_path)
    spec = DEFINITIONS[1]
    row = (KEYS[0], 0, 0, NOTHING | {"count": 7})
    scene.write(spec, table_of(spec, [row], START_US), scene.direct)
    later = (KEYS[0], 1, 1, NOTHING | {"count": 8})
    simulated_clock.set(from_us(to_us(from_us(process_clock().now_us())) + 5))
    scene.cut_off(spec, table_of(spec, [later], START_US), is_written=True)
    now_us = process_clock().now_us()
    assert len(pending_in(view_folder(scene.state, spec.name))) == 1
    with pytest.raises(StateError, match="was cut off"):
        served(tmp_path, spec, [now_us])
    scene.settle()
    assert served(tmp_path, spec, [now_us - 1, now_us])["s__count"].to_pylist()[::3] == [7, 8]
    scene.buffered.buffer.close()


def test_an_entry_of_a_write_under_way_is_neither_read_nor_settled(
    redis_server, simulated_clock, tmp_path
):
    scene = Scene(redis_server, simulated_clock, tmp_path)
    spec = DEFINITIONS[1]
    first = table_of(spec, [(KEYS[0], 0, 0, NOTHING | {"count": 7})], START_US)
    scene.write(spec, first, scene.direct)
    second = table_of(spec, [(KEYS[1], 0, 0, NOTHING | {"count": 8})], START_US)
    entry = entry_of_table(spec, second, write_us=process_clock().now_us())
    with scene.direct.recording(redis_server.client, PROJECT, RowCodec(spec), entry):
        scene.settle()
        now_us = process_clock().now_us()
        assert served(tmp_path, spec, [now_us])["s__count"].to_pylist() == [7, None, None]
    assert served(tmp_path, spec, [now_us])["s__count"].to_pylist() == [7, 8, None]
    scene.buffered.buffer.close()


def test_a_view_without_a_journal_is_one_clear_error(tmp_path):
    with pytest.raises(StateError, match=r"no journal of online writes(.|\n)*journal: true"):
        served(tmp_path, DEFINITIONS[0], [START_US])


def test_a_write_that_fails_leaves_its_entry_to_be_settled(redis_server, simulated_clock, tmp_path):
    scene = Scene(redis_server, simulated_clock, tmp_path)
    spec = DEFINITIONS[1]
    for journal in (scene.direct, scene.buffered):
        row = table_of(spec, [(KEYS[0], 0, 0, NOTHING)], START_US)
        redis_server.client.set(ttls_key(PROJECT), "not a hash")
        with pytest.raises(UnavailableError, match="WRONGTYPE"):
            scene.write(spec, row, journal)
        redis_server.client.flushall()
        assert len(pending_in(view_folder(scene.state, spec.name))) == 1
        scene.settle()
        assert pending_in(view_folder(scene.state, spec.name)) == []
    scene.buffered.buffer.close()
    assert list(view_folder(scene.state, spec.name).glob("*/*.parquet")) == []
