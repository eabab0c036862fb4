"""Serving's reader through Feast's SDK, on Feast's own stores, beside the reader of ours."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gated_store
import online_reads
import serving_scene as scene
from feast_stores import feast_store
from tallystick.clock import to_us
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import ContractError, InputError, UnavailableError
from tallystick.point_in_time.feature_status import Status
from tallystick_serving.feast_sdk_reader import SDKStoreClient

NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
NOW_US = to_us(NOW)
HOUR = timedelta(hours=1)
KINDS = ("sqlite", "redis", "gated_store.GatedSqliteOnlineStore")


def definitions(folder, *, ttl=HOUR, without=()):
    from feast import Entity, FeatureView, Field, FileSource, ValueType
    from feast import types as t

    every = [
        Field(name="int32", dtype=t.Int32),
        Field(name="int64", dtype=t.Int64),
        Field(name="float32", dtype=t.Float32),
        Field(name="float64", dtype=t.Float64),
        Field(name="flag", dtype=t.Bool),
        Field(name="text", dtype=t.String),
        Field(name="raw", dtype=t.Bytes),
        Field(name="moment", dtype=t.UnixTimestamp),
        Field(name="tags", dtype=t.Array(t.String)),
        Field(name="vector", dtype=t.Array(t.Float32)),
        Field(name="moments", dtype=t.Array(t.UnixTimestamp)),
        Field(name="facts", dtype=t.Map),
    ]
    columns = {"id": [1], "town": ["A"], "day": [NOW], "event": [NOW], "created": [NOW]}
    columns |= {field.name: pa.nulls(1) for field in every}
    rows = folder / "rows.parquet"
    pq.write_table(pa.table(columns), rows)
    source = FileSource(
        name="rows", path=str(rows), timestamp_field="event", created_timestamp_column="created"
    )
    shop = Entity(name="shop", join_keys=["id"], value_type=ValueType.INT64)
    town = Entity(name="town", join_keys=["town"], value_type=ValueType.STRING)
    day = Entity(name="day", join_keys=["day"], value_type=ValueType.UNIX_TIMESTAMP)
    number = Field(name="number", dtype=t.Int64)
    views = [
        FeatureView(name="shop", entities=[shop], schema=every, source=source, ttl=ttl),
        FeatureView(
            name="pair", entities=[town, shop], schema=[number], source=source, ttl=timedelta(0)
        ),
        FeatureView(name="day", entities=[day], schema=[number], source=source, ttl=timedelta(0)),
        FeatureView(name="world", entities=[], schema=[number], source=source, ttl=timedelta(0)),
    ]
    return [shop, town, day, *(view for view in views if view.name not in without)]


def open_store(folder, online):
    return feast_store(folder, project="any", online=online)


def online_of(kind, folder, redis_server):
    if kind == "redis":
        return {
            "type": "redis",
            "connection_string": f"localhost:1,unix_socket_path={redis_server.socket}",
        }
    return {"type": kind, "path": str(folder / "online.db")}


def ours_of(redis_server):
    return {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": redis_server.connection_string,
    }


@pytest.fixture(params=KINDS)
def store(request, tmp_path, redis_server):
    found = open_store(tmp_path, online_of(request.param, tmp_path, redis_server))
    found.apply(definitions(tmp_path))
    return found


@pytest.fixture
def sqlite(tmp_path):
    found = open_store(tmp_path, {"type": gated_store.TYPE, "path": str(tmp_path / "online.db")})
    found.apply(definitions(tmp_path))
    return found


def put(store, view, keys, values, *, event=NOW):
    """Write one row as Feast does, in its own protobuf values."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    table = store.registry.get_feature_view(view, store.project)
    types = {
        field.name: field.dtype.to_value_type() for field in (*table.entity_columns, *table.schema)
    }
    assert all(isinstance(dtype, ValueType) for dtype in types.values())

    def proto(name, value):
        return python_values_to_proto_values([value], types[name])[0]

    entity = EntityKey(
        join_keys=list(keys), entity_values=[proto(name, value) for name, value in keys.items()]
    )
    row = {name: proto(name, value) for name, value in values.items()}
    store.provider.online_write_batch(
        store.config, table, [(entity, row, event, event)], progress=None
    )


def use_of(store, view, **changes):
    return online_reads.use_of(ViewSpec.from_feast(store.get_feature_view(view)), **changes)


def contract_of(*uses):
    return scene.contract().model_copy(update={"views": uses})


def retrieved(store, uses, *requests, at_us=NOW_US):
    """What a reader through the SDK gives for each of some requests."""

    async def ask():
        readers = SDKStoreClient(store, timeout_s=5)
        await readers.open()
        try:
            reader = await asyncio.to_thread(readers.reader, contract_of(*uses))
            return [await reader.read(keys, request_time_us=at_us) for keys in requests]
        finally:
            await readers.close()

    return asyncio.run(ask())


def ours_retrieved(server, uses, keys, *, at_us=NOW_US):
    return online_reads.read_online(
        "any", uses, keys, at_us=at_us, connection_string=server.connection_string
    )


FULL = {
    "int32": -(2**31),
    "int64": 2**60 + 1,
    "float32": 0.1,
    "float64": 0.1,
    "flag": False,
    "text": "",
    "raw": b"\x00\xff",
    "moment": NOW - HOUR,
    "tags": ["a", ""],
    "vector": [0.1, 2.0],
    "moments": [NOW],
    "facts": {"a": 1, "b": "two"},
}


def test_every_type_is_read_as_from_our_store(store, tmp_path, redis_server):
    rows = {1: FULL, 2: dict.fromkeys(FULL), 3: FULL | {"text": "é", "flag": True, "float64": -0.0}}
    for each in (store, open_store(tmp_path, ours_of(redis_server))):
        for number, row in rows.items():
            put(each, "shop", {"id": number}, row, event=NOW - timedelta(minutes=number))
    keys = {"id": [3, 1, None, 2, 4, 1, 3]}
    (got,) = retrieved(store, [use_of(store, "shop")], keys)
    ours = ours_retrieved(redis_server, [use_of(store, "shop")], keys)
    assert repr(got["shop"].values) == repr(ours["shop"].values)
    assert got["shop"].status == ours["shop"].status
    assert got["shop"].event_us == ours["shop"].event_us
    assert got["shop"].values["float32"][0] == pytest.approx(0.1)
    assert got["shop"].values["float32"][0] != 0.1
    assert got["shop"].values["moment"][1] == NOW - HOUR
    for stamps in (got["shop"].created_us, got["shop"].write_us, got["shop"].definition):
        assert stamps == [None] * 7


def test_statuses_and_the_ends_of_the_ttl(store):
    put(store, "shop", {"id": 1}, {"int64": 7})
    put(store, "shop", {"id": 2}, {"int64": None})
    put(store, "shop", {"id": 3}, {"int64": 9}, event=NOW - timedelta(seconds=1))
    put(store, "pair", {"town": "A", "id": 1}, {"number": 5}, event=NOW - 1000 * HOUR)
    uses = [use_of(store, "shop", columns=["int64"]), use_of(store, "pair")]
    keys = {"id": [1, 2, 3, 4, 1], "town": ["A", "A", "A", "A", None]}
    end_us = NOW_US + 3_600_000_000
    (got,) = retrieved(store, uses, keys, at_us=end_us)
    present, old, absent = Status.PRESENT, Status.OUTSIDE_MAX_AGE, Status.NOT_FOUND
    assert got["shop"].status == [present, present, old, absent, present]
    assert got["shop"].values == {"int64": [7, None, None, None, 7]}
    assert got["shop"].event_us == [NOW_US, NOW_US, NOW_US - 1_000_000, None, NOW_US]
    assert got["pair"].status == [present, absent, absent, absent, absent]
    assert got["pair"].values == {"number": [5, None, None, None, None]}
    (later,) = retrieved(store, uses, keys, at_us=end_us + 1)
    assert later["shop"].status == [old, old, old, absent, old]
    assert later["shop"].values == {"int64": [None] * 5}
    assert later["pair"].status[0] is present
    (before,) = retrieved(store, uses, keys, at_us=0)
    assert before["shop"].status == [present, present, present, absent, present]


def test_a_row_of_unknown_age_is_used_only_without_a_ttl(sqlite):
    put(sqlite, "shop", {"id": 1}, {"int64": 7})
    put(sqlite, "pair", {"town": "A", "id": 1}, {"number": 5})
    uses = [use_of(sqlite, "shop", columns=["int64"]), use_of(sqlite, "pair")]
    with gated_store.timeless():
        (got,) = retrieved(sqlite, uses, {"id": [1, 2], "town": ["A", "A"]})
    assert got["shop"].status == [Status.OUTSIDE_MAX_AGE, Status.NOT_FOUND]
    assert got["shop"].values == {"int64": [None, None]}
    assert got["pair"].status == [Status.PRESENT, Status.NOT_FOUND]
    assert got["pair"].values == {"number": [5, None]}
    assert got["pair"].event_us == [None, None]


def test_aliases_key_maps_times_as_keys_and_no_keys_at_all(store):
    put(store, "shop", {"id": 1}, {"int64": 1, "text": "one"})
    put(store, "shop", {"id": 2}, {"int64": 2, "text": "two"})
    put(store, "pair", {"town": "A", "id": 2}, {"number": 22})
    put(store, "day", {"day": NOW}, {"number": 366})
    put(store, "world", {"__dummy_id": ""}, {"number": 99})
    uses = [
        use_of(store, "shop", key_map={"id": "buyer"}, columns=["int64"], name="buyers"),
        use_of(store, "shop", key_map={"id": "seller"}, columns=["text"], name="sellers"),
        use_of(store, "pair", key_map={"id": "seller", "town": "place"}),
        use_of(store, "day"),
        use_of(store, "world"),
    ]
    keys = {"buyer": [1, 2], "seller": [2, 2], "place": ["A", "B"], "day": [NOW, NOW + HOUR]}
    (got,) = retrieved(store, uses, keys)
    assert list(got) == ["buyers", "sellers", "pair", "day", "world"]
    assert got["buyers"].values == {"int64": [1, 2]}
    assert got["sellers"].values == {"text": ["two", "two"]}
    assert got["pair"].values == {"number": [22, None]}
    assert got["day"].values == {"number": [366, None]}
    assert got["world"].values == {"number": [99, 99]}
    assert got["world"].status == [Status.PRESENT] * 2


def test_keys_are_checked(sqlite):
    uses = [use_of(sqlite, "pair"), use_of(sqlite, "shop"), use_of(sqlite, "day")]
    good = {"id": [1], "town": ["A"], "day": [NOW]}
    for key, bad in [("id", True), ("id", "1"), ("id", 2**63), ("id", 1.0), ("day", 5)]:
        with pytest.raises(InputError, match="wrong type"):
            retrieved(sqlite, uses, good | {key: [bad]})
    with pytest.raises(InputError) as refused:
        retrieved(sqlite, uses, {"id": [None, "x"], "town": ["A", b"B"], "day": [NOW, NOW]})
    found = [str(problem) for problem in refused.value.problems]
    assert found == [
        "town, row 1: expected STRING, got b'B'",
        "id, row 1: expected INT64, got 'x'",
    ]


def test_a_registry_that_has_other_views_is_refused(sqlite, tmp_path):
    uses = [use_of(sqlite, name) for name in ("shop", "pair", "world")]
    assert retrieved(sqlite, uses) == []
    sqlite.apply(
        definitions(tmp_path, ttl=2 * HOUR, without={"world"}),
        objects_to_delete=[sqlite.get_feature_view("world")],
        partial=False,
    )
    with pytest.raises(ContractError, match="does not fit the registry") as refused:
        retrieved(sqlite, uses)
    ours = [f"definition {use.spec.definition_hash}" for use in uses]
    theirs = f"definition {use_of(sqlite, 'shop').spec.definition_hash}"
    assert [(p.where, p.expected, p.got) for p in refused.value.problems] == [
        ("view shop", ours[0], theirs),
        ("view world", ours[2], "absent"),
    ]
    assert "tally train late" in str(refused.value)


def test_a_value_of_another_type_is_null_and_logged_once(sqlite, caplog):
    put(sqlite, "shop", {"id": 1}, {"int64": 7, "text": "x"})
    use = use_of(sqlite, "shop", columns=["int64", "text"])
    retyped = [
        column.model_copy(update={"dtype": "DOUBLE"}) if column.name == "int64" else column
        for column in use.spec.columns
    ]
    table = sqlite.registry.get_feature_view("shop", sqlite.project)
    from tallystick_serving.feast_sdk_reader import SDKReader

    async def ask():
        calls = SDKStoreClient(sqlite, timeout_s=5, threads=1)
        spec = use.spec.model_copy(update={"columns": tuple(retyped)})
        reader = SDKReader(calls, [(use.model_copy(update={"spec": spec}), table)])
        got = [await reader.read({"id": [1]}, request_time_us=NOW_US) for _ in range(3)]
        await calls.close()
        return got

    for rows in asyncio.run(ask()):
        assert rows["shop"].values == {"int64": [None], "text": ["x"]}
    warnings = [record.getMessage() for record in caplog.records if "int64" in record.getMessage()]
    assert len(warnings) == 1
    assert "shop:int64 are stored online as INT64, not as DOUBLE" in warnings[0]


def test_what_a_store_says_is_logged_and_not_answered(sqlite, caplog):
    put(sqlite, "shop", {"id": 1}, {"int64": 7})
    uses = [use_of(sqlite, "shop", columns=["int64"]), use_of(sqlite, "world")]

    async def ask():
        readers = SDKStoreClient(sqlite, timeout_s=5)
        await readers.open()
        reader = await asyncio.to_thread(readers.reader, contract_of(*uses))
        await readers.ping()
        with gated_store.failing():
            for call in (reader.read({"id": [1]}, request_time_us=NOW_US), readers.ping()):
                with pytest.raises(UnavailableError) as failed:
                    await call
                assert str(failed.value).startswith(f"Feast's online store ({gated_store.TYPE}) ")
                assert "RuntimeError" in str(failed.value)
                assert gated_store.SECRET not in str(failed.value)
        await readers.ping()
        rows = await reader.read({"id": [1]}, request_time_us=NOW_US)
        await readers.close()
        return rows

    assert asyncio.run(ask())["shop"].values == {"int64": [7]}
    assert sum(gated_store.SECRET in record.getMessage() for record in caplog.records) == 1


def test_reads_that_hang_do_not_pile_up(sqlite):
    put(sqlite, "shop", {"id": 1}, {"int64": 7})
    uses = [use_of(sqlite, "shop", columns=["int64"])]
    before = threading.active_count()

    async def ask():
        readers = SDKStoreClient(sqlite, timeout_s=5)
        reader = await asyncio.to_thread(readers.reader, contract_of(*uses))
        threads = threading.active_count()
        with gated_store.hanging() as store:
            for _ in range(40):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await reader.read({"id": [1]}, request_time_us=NOW_US)
            assert store.running == 16
            assert threading.active_count() == threads
        rows = await reader.read({"id": [1]}, request_time_us=NOW_US)
        await readers.close()
        return rows

    assert asyncio.run(ask())["shop"].values == {"int64": [7]}
    scene.wait_for(lambda: threading.active_count() <= before + 1)


def test_feasts_remote_store_is_read_key_by_key(tmp_path, redis_server):
    """Its answer to several keys has the first one's event time only."""
    (tmp_path / "feature_store.yaml").write_text(
        "project: any\nprovider: local\nregistry: registry.db\noffline_store: {type: file}\n"
        "entity_key_serialization_version: 3\nonline_store:\n"
        "  type: tallystick.online_store.RedisOnlineStore\n"
        f"  connection_string: {redis_server.connection_string}\n"
    )
    ours = open_store(tmp_path, ours_of(redis_server))
    ours.apply(definitions(tmp_path, ttl=timedelta(0)))
    for number in (1, 2):
        values = {"int64": number, "float32": 0.5, "text": None}
        put(ours, "shop", {"id": number}, values, event=NOW - number * HOUR)
    project = scene.project(tmp_path, redis_server.connection_string)
    with scene.running(project) as client:
        remote = open_store(tmp_path, {"type": "remote", "path": str(client.base_url)})
        use = use_of(remote, "shop", columns=["int64", "float32", "text"])
        (got,) = retrieved(remote, [use], {"id": [2, 3, 1]})
    assert got["shop"].status == [Status.PRESENT, Status.NOT_FOUND, Status.PRESENT]
    assert got["shop"].values == {
        "int64": [2, None, 1],
        "float32": [0.5, None, 0.5],
        "text": [None] * 3,
    }
    assert got["shop"].event_us == [NOW_US - 2 * 3_600_000_000, None, NOW_US - 3_600_000_000]
