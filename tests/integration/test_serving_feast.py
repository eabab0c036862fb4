"""Feast's own ``remote`` online store, and its SDK's pushes, against our server."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pyarrow.parquet as pq
import pytest
from feast.data_source import PushMode

import serving_scene as scene
from feast_stores import DUCKDB, feast_store

FEATURES = ["shops:n", "shops:share", "towns:mood"]


def definitions(folder):
    from feast import (
        Entity,
        FeatureService,
        FeatureView,
        Field,
        FileSource,
        PushSource,
        ValueType,
    )
    from feast.types import Float32, Float64, Int64

    now = datetime.now(UTC).replace(microsecond=0)
    rows = pd.DataFrame(
        {
            "id": [1, 2],
            "town": ["A", "B"],
            "n": [2**60 + 1, 7],
            "share": pd.Series([0.5, None], dtype="float32"),
            "mood": [0.25, 0.75],
            "event_timestamp": [now - timedelta(minutes=9)] * 2,
            "created": [now - timedelta(minutes=9)] * 2,
        }
    )
    rows.to_parquet(folder / "rows.parquet")
    source = FileSource(
        name="rows",
        path=str(folder / "rows.parquet"),
        timestamp_field="event_timestamp",
        created_timestamp_column="created",
    )
    shop = Entity(name="shop", join_keys=["id"], value_type=ValueType.INT64)
    town = Entity(name="town", join_keys=["town"], value_type=ValueType.STRING)
    shops = FeatureView(
        name="shops",
        entities=[shop],
        schema=[Field(name="n", dtype=Int64), Field(name="share", dtype=Float32)],
        source=PushSource(name="shops_push", batch_source=source),
        ttl=timedelta(hours=1),
    )
    towns = FeatureView(
        name="towns",
        entities=[town],
        schema=[Field(name="mood", dtype=Float64)],
        source=source,
        ttl=timedelta(hours=1),
    )
    service = FeatureService(name="both", features=[shops, towns])
    return [shop, town, shops, towns, service]


def store(folder, online, offline=None):
    return feast_store(folder, project=scene.PROJECT, online=online, offline=offline)


@pytest.fixture
def repo(tmp_path, redis_server):
    scene.write_store_yaml(tmp_path, redis_server.connection_string)
    return scene.project(tmp_path, redis_server.connection_string)


@pytest.fixture
def ours(repo):
    online = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": repo.redis.connection_string,
    }
    found = store(repo.path, online)
    found.apply(definitions(repo.path))
    now = datetime.now(UTC)
    found.materialize(now - timedelta(hours=1), now)
    return found


def test_feasts_remote_store_reads_and_writes_through_it(repo, ours):
    entities = [{"id": 1, "town": "A"}, {"id": 2, "town": "nowhere"}]
    with scene.running(repo) as client:
        remote = store(repo.path, {"type": "remote", "path": str(client.base_url).rstrip("/")})
        got = remote.get_online_features(FEATURES, entities).to_dict()
        assert got == ours.get_online_features(FEATURES, entities).to_dict()
        assert got["n"] == [2**60 + 1, 7]
        assert got["share"] == [0.5, None]
        assert got["mood"] == [0.25, None]

        service = remote.get_feature_service("both")
        full = remote.get_online_features(service, entities, full_feature_names=True).to_dict()
        assert full["towns__mood"] == [0.25, None]

        now = datetime.now(UTC)
        row = {"id": [3], "n": [9], "share": [1.0], "event_timestamp": [now], "created": [now]}
        remote.write_to_online_store("shops", pd.DataFrame(row))
        assert remote.get_online_features(["shops:n"], [{"id": 3}]).to_dict()["n"] == [9]


@pytest.mark.usefixtures("ours")
def test_the_answer_is_feasts(repo):
    body = {"features": FEATURES, "entities": {"id": [1, 4], "town": ["A", "B"]}}
    with scene.running(repo) as client:
        answer = client.post("/get-online-features", json=body).json()
        columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
        assert columns["n"]["values"] == [2**60 + 1, None]
        assert columns["n"]["statuses"] == ["PRESENT", "NOT_FOUND"]
        assert columns["n"]["event_timestamps"][0].endswith("Z")
        assert columns["id"]["values"] == [1, 4]

        for bad, status in [
            ({"feature_service": "none", "entities": {"id": [1]}}, 404),
            ({"features": ["nope:n"], "entities": {"id": [1]}}, 404),
            ({"features": FEATURES, "entities": {"id": [1]}}, 422),
            ({"features": FEATURES, "entities": {"id": [1], "town": []}}, 422),
            ({"features": FEATURES, "entities": {}}, 422),
            ({"features": FEATURES}, 422),
            ({"features": ["n"], "entities": {"id": [1]}}, 422),
            (body | {"entities": {"id": [1] * 1001, "town": ["A"] * 1001}}, 413),
        ]:
            refused = client.post("/get-online-features", json=bad)
            assert refused.status_code == status, (bad, refused.text)
            assert refused.headers["content-type"] == "application/problem+json"


def test_pushes_go_to_the_requested_stores(repo, ours):
    now = datetime.now(UTC).replace(microsecond=0)

    def body(number, to):
        row = {"id": [number], "n": [number], "share": [0.5], "town": ["C"], "mood": [0.5]}
        row |= {"event_timestamp": [now.isoformat()], "created": [now.isoformat()]}
        return {"push_source_name": "shops_push", "df": row, "to": to}

    with scene.running(repo) as client:
        for number, to in [(11, "online"), (12, "offline"), (13, "online_and_offline")]:
            answer = client.post("/push", json=body(number, to))
            assert answer.status_code == 200, answer.text
        assert client.post("/push", json=body(14, "nowhere")).status_code == 422
        unknown = body(15, "online") | {"push_source_name": "none"}
        assert client.post("/push", json=unknown).status_code == 422
        misfit = body(17, "online")
        misfit["df"]["n"] = ["many"]
        assert client.post("/push", json=misfit).status_code == 422
        uneven = body(16, "online")
        uneven["df"]["n"] = [1, 2]
        assert client.post("/push", json=uneven).status_code == 422
    got = ours.get_online_features(["shops:n"], [{"id": n} for n in (11, 12, 13)]).to_dict()
    assert got["n"] == [11, None, 13]
    history = pd.read_parquet(repo.path / "rows.parquet")
    assert sorted(history["id"]) == [1, 2, 12, 13]


@pytest.mark.usefixtures("ours")
def test_pushes_to_a_server_are_journaled_at_its_end_at_the_latest(repo):
    noted = replace(
        repo,
        redis=repo.redis.model_copy(update={"journal": True}),
        state_dir=repo.path / ".tallystick",
    )
    now = datetime.now(UTC).isoformat()
    row = {"id": [77], "n": [5], "share": [0.5], "event_timestamp": [now], "created": [now]}
    with scene.running(noted) as client:
        answer = client.post("/push", json={"push_source_name": "shops_push", "df": row})
        assert answer.status_code == 200
        files = (noted.state_dir / "journal" / "shops").glob("*/*.parquet")
        assert list(files) == []
    (file,) = (noted.state_dir / "journal" / "shops").glob("*/*.parquet")
    (entry,) = pq.read_table(file).to_pylist()
    assert (entry["key::id"], entry["n:INT64"], entry["share:FLOAT"]) == (77, 5, 0.5)


@pytest.fixture
def all_ours(repo):
    """A store of which both halves are ours, as the server's feature_store.yaml has them."""
    settings = repo.path / "feature_store.yaml"
    text = settings.read_text()
    assert "offline_store: {type: file}" in text
    offline = "offline_store: {type: tallystick.offline_store.DuckDBOfflineStore}"
    settings.write_text(text.replace("offline_store: {type: file}", offline))
    online = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": repo.redis.connection_string,
    }
    found = store(repo.path, online, DUCKDB)
    found.apply(definitions(repo.path))
    return found


ROADS = ["online", "offline", "online_and_offline"]
NOW = datetime.now(UTC).replace(microsecond=0)
PUSHED = {
    "id": [31],
    "n": [2**53 + 1],
    "share": [0.5],
    "town": ["C"],
    "mood": [0.5],
    "event_timestamp": [NOW.isoformat()],
    "created": [NOW.isoformat()],
}


def push(client, to, **changes):
    row = {name: value for name, value in (PUSHED | changes).items() if value is not None}
    return client.post("/push", json={"push_source_name": "shops_push", "df": row, "to": to})


def found_everywhere(store, path):
    """The pushed entity's value online, and its rows in history."""
    online = store.get_online_features(["shops:n"], [{"id": 31}]).to_dict()["n"]
    history = pq.read_table(path / "rows.parquet").to_pylist()
    return online, [row for row in history if row["id"] == 31]


@pytest.mark.parametrize("to", ROADS)
def test_a_push_is_exact_on_every_road(repo, all_ours, to):
    naive = NOW.replace(tzinfo=None).isoformat()
    with scene.running(repo) as client:
        answer = push(client, to, n=[float(2**53)], event_timestamp=[naive])
        assert answer.status_code == 200, answer.text
        (number,), rows = found_everywhere(all_ours, repo.path)
    assert number == (None if to == "offline" else 2**53)
    assert [row["n"] for row in rows] == ([] if to == "online" else [2**53])
    assert all(row["event_timestamp"].replace(tzinfo=UTC) == NOW for row in rows)


@pytest.mark.parametrize("to", ROADS)
@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"n": [7.99]}, "n"),
        ({"n": [2**63]}, "n"),
        ({"n": ["7"]}, "n"),
        ({"id": [1.9]}, "id"),
        ({"id": [None]}, "id"),
        ({"id": None}, "id"),
        ({"share": [1e39]}, "share"),
        ({"share": None}, "share"),
        ({"event_timestamp": [1_700_000_000]}, "event_timestamp"),
        ({"event_timestamp": ["yesterday"]}, "event_timestamp"),
        ({"event_timestamp": [None]}, "event_timestamp"),
        ({"created": None}, "created"),
    ],
    ids=str,
)
def test_a_push_that_is_refused_has_written_nothing(repo, all_ours, to, changes, column):
    with scene.running(repo) as client:
        answer = push(client, to, **changes)
        assert answer.status_code == 422, answer.text
        assert f"column {column}" in answer.text
        (number,), rows = found_everywhere(all_ours, repo.path)
    assert number is None
    assert rows == []


@pytest.mark.parametrize("changes", [{"n": [7.99]}, {"id": [1.9]}, {"share": [1e39]}], ids=str)
def test_a_write_that_is_refused_has_written_nothing(repo, all_ours, changes):
    row = {name: PUSHED[name] for name in ("id", "n", "share", "event_timestamp", "created")}
    with scene.running(repo) as client:
        body = {"feature_view_name": "shops", "df": row | changes}
        assert client.post("/write-to-online-store", json=body).status_code == 422
        assert found_everywhere(all_ours, repo.path)[0] == [None]
        body = {"feature_view_name": "shops", "df": row}
        assert client.post("/write-to-online-store", json=body).status_code == 200
        assert found_everywhere(all_ours, repo.path)[0] == [2**53 + 1]


def test_a_filtered_frame_is_pushed_by_the_sdk(repo, all_ours):
    frame = pd.DataFrame({name: values * 2 for name, values in PUSHED.items()})
    frame["event_timestamp"] = frame["created"] = pd.to_datetime(frame["created"])
    all_ours.push("shops_push", frame[frame.index == 1], to=PushMode.ONLINE_AND_OFFLINE)
    online, rows = found_everywhere(all_ours, repo.path)
    assert online == [2**53 + 1]
    assert [row["n"] for row in rows] == [2**53 + 1]
