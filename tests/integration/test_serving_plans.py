"""What is answered without Feast is what Feast answers, and changes when the registry does."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

import serving_scene as scene
from tallystick.online_store.redis_connection import connect_for_reads
from tallystick_serving.feast_server import FeastStore, OnlineFeaturesRequest, _online_features
from tallystick_serving.online_features import make_plan

NOW = datetime.now(UTC).replace(microsecond=0)
TYPES = {
    "whole": ("Int64", [2**60 + 1, None, -7]),
    "small": ("Int32", [1, 2, None]),
    "half": ("Float32", [0.1, float("nan"), None]),
    "real": ("Float64", [1e300, float("inf"), -0.0]),
    "truth": ("Bool", [True, None, False]),
    "text": ("String", ["", None, "é\n"]),
    "raw": ("Bytes", [b"", b"\xff\x00", None]),
    "moment": ("UnixTimestamp", [NOW, None, NOW - timedelta(days=40_000)]),
    "numbers": ("Array(Int64)", [[1, 2**60], [], None]),
    "parts": ("Array(Float64)", [[0.5], [1e-300, 2.0], None]),
}
# Whole seconds, milliseconds and microseconds; protobuf writes each with other digits.
EVENTS = [
    NOW - timedelta(minutes=5),
    NOW - timedelta(minutes=5, milliseconds=500),
    NOW - timedelta(minutes=5, microseconds=1),
]
FEATURES = [*(f"kinds:{name}" for name in TYPES), "pairs:score"]


def definitions(folder, *, more=False):
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType, types

    source = FileSource(
        name="rows",
        path=str(folder / "rows.parquet"),
        timestamp_field="event",
        created_timestamp_column="created",
    )
    row = {name: values for name, (_, values) in TYPES.items()}
    frame = pd.DataFrame({"id": [1, 2, 3], "score": [0.5, 1.5, 2.5], "town": ["A", "B", "C"]})
    frame.assign(event=EVENTS, created=NOW).to_parquet(folder / "rows.parquet")
    shop = Entity(name="shop", join_keys=["id"], value_type=ValueType.INT64)
    town = Entity(name="town", join_keys=["town"], value_type=ValueType.STRING)
    kinds = FeatureView(
        name="kinds",
        entities=[shop],
        schema=[
            Field(name=name, dtype=eval(kind, vars(types))) for name, (kind, _) in TYPES.items()
        ],
        source=source,
        ttl=timedelta(hours=1),
    )
    pairs = FeatureView(
        name="pairs",
        entities=[town, shop],
        schema=[Field(name="score", dtype=types.Float64)],
        source=source,
        ttl=timedelta(hours=1),
    )
    renamed = pairs.with_name("other_pairs").with_join_key_map({"id": "other"})
    service = FeatureService(
        name="all",
        features=[kinds[["whole", *(["text"] if more else [])]], pairs.with_name("own"), renamed],
    )
    return [shop, town, kinds, pairs, service], row


@pytest.fixture
def repo(tmp_path, redis_server):
    from feast import FeatureStore
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast.type_map import python_values_to_proto_values

    scene.write_store_yaml(tmp_path, redis_server.connection_string)
    store = FeatureStore(str(tmp_path))
    objects, row = definitions(tmp_path)
    store.apply(objects)
    kinds = store.get_feature_view("kinds")
    dtypes = {field.name: field.dtype.to_value_type() for field in kinds.features}
    protos = {
        name: [
            Value() if value is None else python_values_to_proto_values([value], dtypes[name])[0]
            for value in values
        ]
        for name, values in row.items()
    }
    data = [
        (
            EntityKey(join_keys=["id"], entity_values=[Value(int64_val=row + 1)]),
            {name: values[row] for name, values in protos.items()},
            event,
            NOW,
        )
        for row, event in enumerate(EVENTS)
    ]
    store._get_provider().online_write_batch(store.config, kinds, data, None)
    score = [
        (
            EntityKey(
                join_keys=["town", "id"],
                entity_values=[Value(string_val=town), Value(int64_val=number)],
            ),
            {"score": Value(double_val=value)},
            NOW - timedelta(minutes=1),
            None,
        )
        for town, number, value in [("A", 1, 0.5), ("B", 2, 1.5)]
    ]
    score.append((score[0][0], {"score": Value(double_val=9)}, NOW - timedelta(hours=9), None))
    late = EntityKey(
        join_keys=["town", "id"], entity_values=[Value(string_val="C"), Value(int64_val=3)]
    )
    score.append((late, {"score": Value(double_val=9)}, NOW - timedelta(hours=1, minutes=1), None))
    store._get_provider().online_write_batch(
        store.config, store.get_feature_view("pairs"), score, None
    )
    return store


ENTITIES = {"id": [1, 2, 3, 4, 1, None], "town": ["A", "B", "C", "A", None, "A"]}


def answers(repo, request, entities):
    """Ours and Feast's, by feature."""
    client = connect_for_reads(repo.config.online_store)

    async def ask():
        plan = make_plan(repo, client, request)
        assert plan is not None
        try:
            return await plan.answer(entities, request_us=int(datetime.now(UTC).timestamp() * 1e6))
        finally:
            await client.aclose()

    ours = json.loads(asyncio.run(ask()))
    service, features, full = request
    theirs = _online_features(
        repo,
        OnlineFeaturesRequest(
            entities=entities,
            feature_service=service,
            features=list(features),
            full_feature_names=full,
        ),
    )
    theirs = json.loads(json.dumps(theirs))
    return [
        dict(zip(one["metadata"]["feature_names"], one["results"], strict=True))
        for one in (ours, theirs)
    ]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("times", [1, 4])
def test_values_statuses_and_times_are_feasts(repo, full, times):
    """Four times as many rows are decoded and written by other means than a few."""
    entities = {name: values * times for name, values in ENTITIES.items()}
    ours, theirs = answers(repo, (None, tuple(FEATURES), full), entities)
    assert ours == theirs
    name = "kinds__whole" if full else "whole"
    assert ours[name]["values"][:3] == [2**60 + 1, None, -7]
    assert ours[name]["statuses"][:4] == ["PRESENT", "NULL_VALUE", "PRESENT", "NOT_FOUND"]
    score = ours["pairs__score" if full else "score"]
    assert score["statuses"][:3] == ["PRESENT", "PRESENT", "OUTSIDE_MAX_AGE"]


def test_a_service_with_an_alias_and_other_keys_is_feasts(repo):
    entities = ENTITIES | {"other": [2, 1, 1, None, 1, 1]}
    ours, theirs = answers(repo, ("all", (), True), entities)
    assert ours == theirs
    assert {"own__score", "other_pairs__score"} <= ours.keys()


def test_a_plan_needs_no_feast_until_the_registry_changes(repo, monkeypatch):
    calls = []
    ask_feast = FeastStore.online_features

    async def counted(self, request):
        calls.append(request)
        return await ask_feast(self, request)

    monkeypatch.setattr(FeastStore, "online_features", counted)
    project = scene.project(repo.repo_path, repo.config.online_store.connection_string)
    entities = {"id": [1, 2], "town": ["A", "B"], "other": [1, 2]}
    body = {"feature_service": "all", "entities": entities}
    body["full_feature_names"] = True
    with scene.running(project) as client:
        answers = [client.post("/get-online-features", json=body).json() for _ in range(3)]
        assert len(calls) == 1
        names = [sorted(answer["metadata"]["feature_names"]) for answer in answers]
        assert names[0] == names[1] == names[2]
        # A key of another type is for Feast to judge, which takes it.
        text = client.post(
            "/get-online-features", json=body | {"entities": entities | {"id": ["1", "2"]}}
        )
        assert text.status_code == 200
        assert len(calls) == 2
        repo.apply(definitions(repo.repo_path, more=True)[0])
        scene.wait_for(
            lambda: (
                "kinds__text"
                in client.post("/get-online-features", json=body).json()["metadata"][
                    "feature_names"
                ]
            )
        )
        assert len(calls) == 2
