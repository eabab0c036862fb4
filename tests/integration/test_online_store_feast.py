"""The plugin under Feast's own SDK: what is written is served, with the right status."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from feast_stores import store_config
from online_reads import read_online, use_of
from tallystick.clock import process_clock
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DataError, InputError, UnavailableError
from tallystick.online_store.entity_keys import definitions_key, entity_prefix, ttls_key
from tallystick.online_store.row_writer import WriteCounts

NOW = datetime(2024, 3, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FEATURES = ["shop:n", "shop:share", "shop:tags", "pair:text"]


@pytest.fixture
def clock(simulated_clock):
    """A simulated clock for the process, at NOW."""
    simulated_clock.set(NOW)
    return simulated_clock


def definitions(folder, *, extra=False):
    from feast import Entity, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.types import Array, Float32, Int64, String

    rows = pd.DataFrame(
        {
            "id": [1, 2],
            "town": ["A", "B"],
            "n": [2**60 + 1, 7],
            "share": pd.Series([0.1, 0.2], dtype="float32"),
            "tags": [["x", "y"], ["z"]],
            "text": ["", None],
            "event": [NOW - HOUR] * 2,
            "created": [NOW - HOUR] * 2,
        }
    )
    rows.to_parquet(folder / "rows.parquet")
    source = FileSource(
        name="rows",
        path=str(folder / "rows.parquet"),
        timestamp_field="event",
        created_timestamp_column="created",
    )
    shop = Entity(name="shop", join_keys=["id"], value_type=ValueType.INT64)
    town = Entity(name="town", join_keys=["town"], value_type=ValueType.STRING)
    more = [Field(name="more", dtype=Int64)] if extra else []
    return [
        shop,
        town,
        FeatureView(
            name="shop",
            entities=[shop],
            schema=[
                Field(name="n", dtype=Int64),
                Field(name="share", dtype=Float32),
                Field(name="tags", dtype=Array(String)),
                *more,
            ],
            source=PushSource(name="shop_push", batch_source=source),
            ttl=HOUR,
        ),
        FeatureView(
            name="pair",
            entities=[town, shop],
            schema=[Field(name="text", dtype=String)],
            source=source,
            ttl=timedelta(0),
        ),
    ]


@pytest.fixture(scope="module")
def applied(tmp_path_factory):
    """A folder with an applied registry; the address of Redis follows later."""
    from feast import FeatureStore

    folder = tmp_path_factory.mktemp("repo")
    store = FeatureStore(config=config_of(folder, "unix:///nowhere"))
    store.apply(definitions(folder))
    return folder


def config_of(folder, connection_string):
    online = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": connection_string,
        "connect_timeout_s": 0.2,
    }
    return store_config(folder, project="proj", online=online)


@pytest.fixture
def store(applied, redis_server, clock):  # noqa: ARG001 - the time is NOW
    from feast import FeatureStore

    return FeatureStore(config=config_of(applied, redis_server.connection_string))


def shop_rows(*rows):
    frame = pd.DataFrame(rows, columns=["id", "n", "share", "event", "created"])
    return frame.assign(tags=[["t"]] * len(frame), n=frame["n"].astype("Int64"))


def answer_of(store, features, rows, *, asynchronous=False):
    """Feature → list of (value, status)."""
    if asynchronous:

        async def ask():
            try:
                return await store.get_online_features_async(features, rows)
            finally:
                await store._get_provider().online_store.close()

        response = asyncio.run(ask())
    else:
        response = store.get_online_features(features, rows)
    values = response.to_dict()
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    names = response.proto.metadata.feature_names.val
    return {
        name: [
            (value, FieldStatus.Name(status))
            for value, status in zip(values[name], result.statuses, strict=True)
        ]
        for name, result in zip(names, response.proto.results, strict=True)
    }


@pytest.mark.parametrize("asynchronous", [False, True])
def test_materialized_rows_with_each_status(store, clock, asynchronous):
    store.materialize(NOW - 2 * HOUR, NOW, disable_event_timestamp=False)
    rows = [
        {"id": 2, "town": "B"},
        {"id": 1, "town": "A"},
        {"id": 3, "town": "A"},
        {"id": 1, "town": "A"},
    ]
    answer = answer_of(store, FEATURES, rows, asynchronous=asynchronous)
    one = (2**60 + 1, "PRESENT")
    assert answer["n"] == [(7, "PRESENT"), one, (None, "NOT_FOUND"), one]
    assert answer["tags"][:2] == [(["z"], "PRESENT"), (["x", "y"], "PRESENT")]
    assert answer["text"] == [
        (None, "NULL_VALUE"),
        ("", "PRESENT"),
        (None, "NOT_FOUND"),
        ("", "PRESENT"),
    ]
    clock.set(NOW + timedelta(microseconds=1))
    answer = answer_of(store, FEATURES, rows, asynchronous=asynchronous)
    late = (None, "OUTSIDE_MAX_AGE")
    assert answer["n"] == [late, late, (None, "NOT_FOUND"), late]
    assert answer["text"][1] == ("", "PRESENT")


def test_corrections_win_and_older_rows_lose(store):
    minute = timedelta(minutes=1)
    event = NOW - 10 * minute
    writes = [
        ((1, 10, 0.1, event, event), 10, WriteCounts(won=1)),
        ((1, 11, 0.1, event, event + minute), 11, WriteCounts(won=1)),
        ((1, 12, 0.1, event, event), 11, WriteCounts(lost=1)),
        ((1, 13, 0.1, event, event + minute), 11, WriteCounts(repeated=1)),
        ((1, 14, 0.1, event - minute, NOW), 11, WriteCounts(lost=1)),
        ((1, 15, 0.1, event + minute, event + minute), 15, WriteCounts(won=1)),
    ]
    total = WriteCounts()
    for number, (row, expected, counts) in enumerate(writes):
        if number % 2:
            store.push("shop_push", shop_rows(row))
        else:
            store.write_to_online_store("shop", shop_rows(row))
        total += counts
        assert answer_of(store, ["shop:n"], [{"id": 1}])["n"] == [(expected, "PRESENT")]
    assert store._get_provider().online_store.counts == total


def test_a_missing_created_time_is_the_event_time_and_a_missing_event_time_is_refused(store):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    online, view = store._get_provider().online_store, store.get_feature_view("shop")
    key = EntityKey(join_keys=["id"], entity_values=[Value(int64_val=1)])

    def write(value, event, created):
        row = (key, {"n": Value(int64_val=value)}, event, created)
        online.online_write_batch(store.config, view, [row], None)

    write(1, NOW, pd.NaT)
    write(2, NOW, NOW)
    write(3, NOW, None)
    assert online.counts == WriteCounts(won=1, repeated=2)
    for event in (None, pd.NaT):
        with pytest.raises(DataError, match="event: expected a time"):
            write(4, event, NOW)
    with pytest.raises(DataError, match="column n: expected INT64"):
        online.online_write_batch(
            store.config, view, [(key, {"n": Value(string_val="1")}, NOW, None)], None
        )


def test_numbers_are_taken_as_the_declared_type_if_they_fit(store):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    online, view = store._get_provider().online_store, store.get_feature_view("shop")
    key = EntityKey(join_keys=["id"], entity_values=[Value(int64_val=1)])
    row = {"n": Value(int32_val=7), "share": Value(double_val=0.1)}
    online.online_write_batch(store.config, view, [(key, row, NOW, NOW)], None)
    ((_, values),) = online.online_read(store.config, view, [key], ["n", "share"])
    assert values == {"n": Value(int64_val=7), "share": Value(float_val=0.1)}
    row = {"share": Value(double_val=1e300)}
    with pytest.raises(DataError, match="column share: expected FLOAT"):
        online.online_write_batch(store.config, view, [(key, row, NOW, NOW)], None)


def test_names_that_the_view_lacks_are_null_and_no_names_mean_all(store):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    store.write_to_online_store("shop", shop_rows((1, 5, 0.5, NOW, NOW)))
    online, view = store._get_provider().online_store, store.get_feature_view("shop")
    key = EntityKey(join_keys=["id"], entity_values=[Value(int64_val=1)])
    ((_, values),) = online.online_read(store.config, view, [key], ["n", "nope"])
    assert values == {"n": Value(int64_val=5), "nope": Value()}
    for every in ([], None):
        ((_, values),) = online.online_read(store.config, view, [key], every)
        assert values.keys() == {"n", "share", "tags"}


def test_a_view_that_is_not_registered_gets_its_keys_from_its_rows(store):
    from feast import FeatureView, Field
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.types import Int64

    online, shop = store._get_provider().online_store, store.get_feature_view("shop")
    loose = FeatureView(
        name="shop", entities=[], schema=[Field(name="n", dtype=Int64)], source=shop.batch_source
    )
    key = EntityKey(join_keys=["id"], entity_values=[Value(int64_val=1)])
    online.online_write_batch(
        store.config, loose, [(key, {"n": Value(int64_val=8)}, NOW, NOW)], None
    )
    assert answer_of(store, ["shop:n"], [{"id": 1}])["n"] == [(8, "PRESENT")]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_missing_join_key_is_the_error_that_feast_has_for_it(store, asynchronous):
    with pytest.raises(KeyError, match="Missing join key values") as caught:
        answer_of(store, ["pair:text"], [{"id": 1}], asynchronous=asynchronous)
    assert isinstance(caught.value, InputError)
    assert str(caught.value).endswith("town: expected a value in each row, got none")


@pytest.mark.usefixtures("clock")
def test_a_deleted_view_takes_its_versions_along_and_no_other_view(tmp_path, redis_server):
    from feast import FeatureStore
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    config = config_of(tmp_path, redis_server.connection_string)
    config.registry.enable_online_feature_view_versioning = True
    store = FeatureStore(config=config)
    objects = definitions(tmp_path)
    store.apply(objects)
    online = store._get_provider().online_store
    key = EntityKey(join_keys=["id"], entity_values=[Value(int64_val=1)])
    like = store.get_feature_view("shop")
    like.name = "shop_v2"
    shop = store.get_feature_view("shop")

    def write(view, version, number):
        view.current_version_number = version
        row = (key, {"n": Value(int64_val=number)}, NOW, NOW)
        online.online_write_batch(store.config, view, [row], None)

    def read(view, version):
        view.current_version_number = version
        ((_, values),) = online.online_read(store.config, view, [key], ["n"])
        return values and values["n"].int64_val

    write(shop, 0, 10)
    write(shop, 2, 12)
    write(like, 0, 99)
    assert (read(shop, 0), read(shop, 2), read(like, 0)) == (10, 12, 99)
    shop.current_version_number = 2
    online.update(store.config, [shop], [shop], [], [], partial=False)
    assert (read(shop, 0), read(shop, 2), read(like, 0)) == (10, None, 99)
    write(shop, 2, 12)
    online.update(store.config, [shop], [], [], [], partial=False)
    assert (read(shop, 0), read(shop, 2), read(like, 0)) == (None, None, 99)


def test_asynchronous_writes_are_served(store):
    async def write():
        row = shop_rows((5, 50, 0.5, NOW, NOW))
        await store.push_async("shop_push", row)
        await store._get_provider().online_store.close()

    asyncio.run(write())
    assert answer_of(store, ["shop:n"], [{"id": 5}])["n"] == [(50, "PRESENT")]


def test_reader_and_feast_agree(store, redis_server):
    store.materialize(NOW - 2 * HOUR, NOW, disable_event_timestamp=False)
    uses = [use_of(ViewSpec.from_feast(store.get_feature_view(name))) for name in ("shop", "pair")]
    keys = {"id": [1, 2, 3], "town": ["A", "B", "B"]}
    ours = read_online(
        "proj",
        uses,
        keys,
        at_us=process_clock().now_us(),
        connection_string=redis_server.connection_string,
    )
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*keys.values(), strict=True)]
    theirs = store.get_online_features(FEATURES, rows).to_dict()
    got = ours["shop"].values | ours["pair"].values  # noqa: PD011 - no data frames
    assert got == {name: theirs[name] for name in got}
    assert len(got) == len(FEATURES)
    assert ours["shop"].write_us[0] == process_clock().now_us()


def test_a_direct_read_hides_expired_rows(store, clock):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    store.materialize(NOW - 2 * HOUR, NOW, disable_event_timestamp=False)
    online = store._get_provider().online_store
    view = store.get_feature_view("shop")
    keys = [EntityKey(join_keys=["id"], entity_values=[Value(int64_val=k)]) for k in (1, 9)]
    (event, values), missing = online.online_read(store.config, view, keys, ["n"])
    assert event == NOW - HOUR
    assert values == {"n": Value(int64_val=2**60 + 1)}
    assert missing == (None, None)
    clock.set(NOW + HOUR)
    assert online.online_read(store.config, view, keys, ["n"]) == [(None, None)] * 2


@pytest.mark.usefixtures("clock")
def test_applying_a_change_and_deleting_a_view(tmp_path, redis_server):
    from feast import FeatureStore

    store = FeatureStore(config=config_of(tmp_path, redis_server.connection_string))
    store.apply(definitions(tmp_path))
    store.materialize(NOW - 2 * HOUR, NOW, disable_event_timestamp=False)
    changed = definitions(tmp_path, extra=True)
    store.apply(changed)
    answer = answer_of(store, ["shop:n", "shop:more"], [{"id": 1}])
    assert answer["n"] == [(2**60 + 1, "PRESENT")]
    assert answer["more"] == [(None, "NULL_VALUE")]
    other = replace_project(store, "myproj")
    other.apply(definitions(tmp_path))
    other.materialize(NOW - 2 * HOUR, NOW, disable_event_timestamp=False)
    store.apply([], objects_to_delete=[changed[2]], partial=False)
    pairs = entity_prefix("proj", ["town", "id"])
    assert sorted(redis_server.client.keys("ts3:proj:*")) == sorted(
        [definitions_key("proj"), ttls_key("proj"), pairs + b"i1;s1:A", pairs + b"i2;s1:B"]
    )
    store.teardown()
    assert not redis_server.client.keys("ts3:proj:*")
    assert len(redis_server.client.keys("ts3:myproj:*")) == 6


def replace_project(store, project):
    from feast import FeatureStore

    config = store.config.model_copy(
        update={"project": project, "registry_config": store.config.registry_config}
    )
    return FeatureStore(config=config)


@pytest.mark.usefixtures("clock")
def test_redis_down_is_unavailable(applied):
    from feast import FeatureStore

    store = FeatureStore(config=config_of(applied, "127.0.0.1:1,password=s3cret"))
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1") as caught:
        store.get_online_features(["shop:n"], [{"id": 1}])
    assert "s3cret" not in str(caught.value)
    with pytest.raises(UnavailableError):
        store.write_to_online_store("shop", shop_rows((1, 1, 0.1, NOW, NOW)))
