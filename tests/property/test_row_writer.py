"""Whatever the order of writes, Redis ends with the row that the point-in-time rule names."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from online_reads import read_online, use_of
from packed_rows import joined, packed_row
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_writer import WriteCounts, write_rows
from tallystick.online_store.table_writer import write_table
from tallystick.point_in_time.feature_status import Status

SPEC = ViewSpec(
    name="view",
    join_keys=(Column(name="id", dtype="INT64"),),
    columns=(Column(name="value", dtype="INT64"),),
    ttl_us=None,
    event_column="event",
    created_column="created",
)
CODEC = RowCodec(SPEC)
KEYS = EntityKeys("project", SPEC.join_keys)
# Times on both sides of every boundary that a comparison of halves or of doubles can get wrong.
EDGES = [0, 1, -1, 2**31, 2**32, 2**32 - 1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63), -(2**32)]
TIMES = st.sampled_from(EDGES) | st.integers(0, 5)
WRITES = st.lists(st.tuples(st.integers(0, 3), TIMES, st.none() | TIMES), max_size=30)


def packed(write, value):
    key, event, created = write
    row = packed_row(CODEC, {"value": value}, event_us=event, created_us=created, write_us=value)
    return KEYS.of([[key]])[0], row


def brute_force(writes):
    """The fold, as its definition says it: one write after the other, in a dict."""
    state, counts = {}, {"won": 0, "lost": 0, "repeated": 0}
    for value, (key, event, created) in enumerate(writes):
        order = (event, event if created is None else created)
        if key not in state or order > state[key][0]:
            state[key] = (order, value)
            counts["won"] += 1
        else:
            counts["repeated" if order == state[key][0] else "lost"] += 1
    return {key: value for key, (_, value) in state.items()}, WriteCounts(**counts)


def read(socket, keys, spec=SPEC, *, request_time_us=0):
    use, text = use_of(spec, name="use"), f"unix://{socket}"
    return read_online("project", [use], keys, at_us=request_time_us, connection_string=text)["use"]


def stored(socket):
    rows = read(socket, {"id": [0, 1, 2, 3]})
    return {
        key: value
        for key, (value, status) in enumerate(zip(rows.values["value"], rows.status, strict=True))
        if status is Status.PRESENT
    }


QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUICK
@given(writes=WRITES)
def test_writes_one_by_one(redis_server, writes):
    redis_server.client.flushall()
    counts = WriteCounts()
    for value, write in enumerate(writes):
        counts += write_rows(redis_server.client, "project", CODEC, [packed(write, value)])
    expected, expected_counts = brute_force(writes)
    assert stored(redis_server.socket) == expected
    assert counts == expected_counts


@QUICK
@given(writes=WRITES, data=st.data())
def test_writes_in_batches(redis_server, writes, data):
    redis_server.client.flushall()
    rows = [packed(write, value) for value, write in enumerate(writes)]
    total = WriteCounts()
    while rows:
        size = data.draw(st.integers(1, len(rows)))
        total += write_rows(redis_server.client, "project", CODEC, rows[:size])
        rows = rows[size:]
    assert stored(redis_server.socket) == brute_force(writes)[0]
    assert total.won + total.lost + total.repeated == len(writes)


@QUICK
@given(writes=WRITES)
def test_writing_all_again_changes_nothing(redis_server, writes):
    redis_server.client.flushall()
    rows = [packed(write, value) for value, write in enumerate(writes)]
    write_rows(redis_server.client, "project", CODEC, rows)
    before = stored(redis_server.socket)
    again = write_rows(redis_server.client, "project", CODEC, random.sample(rows, len(rows)))
    assert again.won == 0
    assert stored(redis_server.socket) == before


@pytest.mark.parametrize("seed", range(3))
def test_concurrent_writers_end_in_the_largest(redis_server, seed):
    chance = random.Random(seed)
    writes = [
        (chance.randrange(40), chance.randrange(50), chance.choice([None, *range(50)]))
        for _ in range(6_000)
    ]
    # A row's value says its times, so that full ties are the same row whoever writes it.
    rows = []
    largest = {}
    for key, event, created in writes:
        order = (event, event if created is None else created)
        value = order[0] * 1_000 + order[1]
        rows.append(packed((key, event, created), value))
        largest[key] = max(largest.get(key, 0), value)

    def write(part):
        client = Redis(unix_socket_path=str(redis_server.socket))
        with client:
            for start in range(0, len(part), 37):
                write_rows(client, "project", CODEC, part[start : start + 37])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [chance.sample(rows, len(rows)) for _ in range(4)]))
    got = read(redis_server.socket, {"id": list(range(40))})
    assert dict(enumerate(got.values["value"])) == largest


@QUICK
@given(writes=WRITES)
def test_a_table_is_written_like_rows(redis_server, writes):
    redis_server.client.flushall()
    moments = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "id": pa.array([key for key, _, _ in writes], pa.int64()),
            "value": pa.array(range(len(writes)), pa.int64()),
            "event": pa.array([event for _, event, _ in writes], pa.int64()).cast(moments),
            "created": pa.array([created for _, _, created in writes], pa.int64()).cast(moments),
        }
    )
    write_table(redis_server.client, "project", SPEC, table, write_us=9)
    assert stored(redis_server.socket) == brute_force(writes)[0]


SCALAR_ARRAYS = {
    "INT32": (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "INT64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "FLOAT": (pa.float32(), st.floats(width=32)),
    "DOUBLE": (pa.float64(), st.floats()),
    "BOOL": (pa.bool_(), st.booleans()),
    "UNIX_TIMESTAMP": (
        pa.timestamp("us", tz="UTC"),
        st.integers(-(2**40), 2**50),
    ),
    "STRING": (pa.string(), st.text()),
    "BYTES": (pa.binary(), st.binary()),
    "INT64_LIST": (pa.list_(pa.int64()), st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1)),
}


@QUICK
@given(data=st.data())
def test_a_table_packs_the_same_bytes_as_rows(redis_server, data):
    redis_server.client.flushall()
    dtypes = data.draw(st.lists(st.sampled_from(sorted(SCALAR_ARRAYS)), max_size=11))
    spec = SPEC.model_copy(
        update={
            "columns": tuple(Column(name=f"c{p}", dtype=d) for p, d in enumerate(dtypes)),
        }
    )
    count = data.draw(st.integers(1, 5))
    arrays = {
        f"c{p}": pa.array(
            [data.draw(st.none() | SCALAR_ARRAYS[d][1]) for _ in range(count)],
            SCALAR_ARRAYS[d][0],
        )
        for p, d in enumerate(dtypes)
    }
    created = [data.draw(st.none() | st.integers(0, 9)) for _ in range(count)]
    moments = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "id": pa.array(range(count), pa.int64()),
            "event": pa.array(range(count), pa.int64()).cast(moments),
            "created": pa.array(created, pa.int64()).cast(moments),
            **arrays,
        }
    )
    counts = write_table(redis_server.client, "project", spec, table, write_us=7)
    assert counts == WriteCounts(won=count)
    codec = RowCodec(spec)
    values = {name: array.to_pylist() for name, array in arrays.items()}
    for row in range(count):
        expected = packed_row(
            codec,
            {name: column[row] for name, column in values.items()},
            event_us=row,
            created_us=created[row],
            write_us=7,
        )
        key = EntityKeys("project", spec.join_keys).of([[row]])[0]
        assert redis_server.client.get(key) == joined([expected])
