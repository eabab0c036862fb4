"""The store on each kind of Redis, and by a user who has no more permissions than it needs."""

from __future__ import annotations

from contextlib import closing

import pyarrow as pa
import pytest

from online_reads import read_online, use_of
from redis_servers import LIMITED_USER, MASTER, USER_PASSWORD
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.online_store.materialization_mark import Mark, begin_run, read_marks, save_mark
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.row_writer import WriteCounts, delete_project, delete_view
from tallystick.online_store.table_writer import write_table
from tallystick.point_in_time.feature_status import Status

# The rows here are of 1970, which Redis would have forgotten at once by its own clock.
pytestmark = pytest.mark.usefixtures("simulated_clock")
COUNT = 2_000
MOMENT = pa.timestamp("us", tz="UTC")


def view(name, ttl_us=None):
    return ViewSpec(
        name=name,
        join_keys=(Column(name="id", dtype="INT64"),),
        columns=(Column(name="x", dtype="INT64"), Column(name="s", dtype="STRING")),
        ttl_us=ttl_us,
        event_column="event",
        created_column=None,
    )


SHOP, BUYER = view("shop", ttl_us=3_600_000_000), view("buyer")


KINDS = [
    "one server",
    "one server with TLS and a user",
    "cluster",
    "cluster with TLS and a user",
    "sentinel",
]


@pytest.fixture(params=KINDS)
def address(request, certificates):
    """The arguments of connect."""
    ending = f",ssl=true,ssl_ca_certs={certificates.authority}"
    ending += f",username={LIMITED_USER},password={USER_PASSWORD}"
    match request.param:
        case "one server":
            text = request.getfixturevalue("redis_server").connection_string
        case "one server with TLS and a user":
            text = f"localhost:{request.getfixturevalue('tls_redis').port}{ending}"
        case "cluster":
            text = request.getfixturevalue("redis_cluster").connection_string
        case "cluster with TLS and a user":
            text = request.getfixturevalue("tls_cluster").connection_string + ending
        case "sentinel":
            text = request.getfixturevalue("sentinel_redis").connection_string
            return {
                "connection_string": text,
                "redis_type": "redis_sentinel",
                "sentinel_master": MASTER,
            }
    return {"connection_string": text}


@pytest.fixture
def client(address):
    with closing(connect(RedisOptions(**address))) as client:
        delete_project(client, "p")
        delete_project(client, "other")
        yield client


def write(client, spec, ids, *, event, project="p"):
    table = pa.table(
        {
            "id": ids,
            "x": [identity + event for identity in ids],
            "s": [f"{spec.name} {identity}" for identity in ids],
            "event": pa.array([event] * len(ids), pa.int64()).cast(MOMENT),
        }
    )
    return write_table(client, project, spec, table, write_us=event)


def read(address, specs, ids, project="p"):
    return read_online(project, [*map(use_of, specs)], {"id": ids}, at_us=10, **address)


def mark(epoch):
    return Mark(
        definition="d", epoch=epoch, until_us=1, files=2, table_version=None, rows_written=3
    )


def test_a_mark_goes_with_the_rows_of_its_view(client):
    start = begin_run(client, "p", "shop")
    assert (start.mark, start.covered) == (None, frozenset())
    assert save_mark(client, "p", "shop", mark(start.epoch), ["a", "b"])
    again = begin_run(client, "p", "shop")
    assert (again.mark, again.covered) == (mark(start.epoch), {"a", "b"})
    assert read_marks(client, "p", ["shop", "buyer"]) == {"shop": mark(start.epoch)}
    delete_view(client, "p", "shop")
    assert not save_mark(client, "p", "shop", mark(start.epoch), ["a", "b"])
    assert begin_run(client, "p", "shop").mark is None
    delete_project(client, "p")
    assert read_marks(client, "p", ["shop"]) == {}


def test_rows_are_written_read_and_removed(address, client):
    ids = list(range(COUNT))
    assert write(client, SHOP, ids, event=2) == WriteCounts(won=COUNT)
    assert write(client, BUYER, ids, event=2) == WriteCounts(won=COUNT)
    assert write(client, SHOP, ids, event=1) == WriteCounts(lost=COUNT)
    assert write(client, SHOP, ids, event=2) == WriteCounts(repeated=COUNT)
    assert write(client, SHOP, ids[:100], event=3) == WriteCounts(won=100)
    assert write(client, SHOP, ids[:10], event=1, project="other") == WriteCounts(won=10)
    requested = [*reversed(ids), COUNT, 7, 7]
    answer = read(address, [SHOP, BUYER], requested)
    expected = [*(number + (3 if number < 100 else 2) for number in reversed(ids)), None, 10, 10]
    assert answer["shop"].values["x"] == expected
    assert answer["buyer"].values["s"][:COUNT] == [f"buyer {number}" for number in reversed(ids)]
    assert answer["buyer"].status == [
        Status.NOT_FOUND if number == COUNT else Status.PRESENT for number in requested
    ]
    assert delete_view(client, "p", "shop") == COUNT
    left = read(address, [SHOP, BUYER], ids)
    assert set(left["shop"].status) == {Status.NOT_FOUND}
    assert set(left["buyer"].status) == {Status.PRESENT}
    assert delete_project(client, "p") >= COUNT
    assert set(read(address, [BUYER], ids)["buyer"].status) == {Status.NOT_FOUND}
    assert read(address, [SHOP], [3], project="other")["shop"].values["x"] == [4]
