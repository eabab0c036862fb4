"""Bringing history online: what was noted holds for the store that it was noted of."""

from __future__ import annotations

import sys
from datetime import timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.materialization.materializer import Materializer
from tallystick.online_store.row_writer import delete_view
from tiny_repo import END, make_tiny_repo


@pytest.fixture
def repo(tmp_path, redis_server):
    path = make_tiny_repo(tmp_path / "repo")
    settings = path / "feature_store.yaml"
    store = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": redis_server.connection_string,
    }
    settings.write_text(
        yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"online_store": store})
    )
    opened = open_repo(path)
    apply(opened)
    return opened


def written(repo):
    done = Materializer(repo).run(until=END)
    return {view.view: view.won for view in done}


def test_a_second_run_writes_nothing_new(repo):
    first = written(repo)
    assert min(first.values()) > 0
    assert set(written(repo).values()) == {0}


def test_an_emptied_store_is_filled_again(repo, redis_server):
    first = written(repo)
    redis_server.client.flushall()
    assert written(repo) == first


def test_a_removed_view_is_filled_again(repo, redis_server):
    first = written(repo)
    delete_view(redis_server.client, repo.project, "shop_stats")
    assert written(repo)["shop_stats"] == first["shop_stats"]


def test_a_changed_definition_is_filled_again(repo):
    first = written(repo)
    file = repo.path / "tiny_definitions.py"
    file.write_text(file.read_text().replace("ttl=timedelta(days=2)", "ttl=timedelta(days=3)"))
    del sys.modules["tiny_definitions"]  # as in a new process
    changed = open_repo(repo.path)
    apply(changed)
    again = written(changed)
    assert again["item_stats"] == first["item_stats"]
    assert again["shop_stats"] == 0


def test_a_view_without_entities_goes_online(repo):
    with (repo.path / "tiny_definitions.py").open("a") as file:
        file.write(
            'site = FeatureView(name="site", entities=[], ttl=timedelta(0), '
            'schema=[Field(name="visits", dtype=Int64)], source=source("site"))\n'
        )
    times = pa.array([END - timedelta(days=2), END - timedelta(days=1)], pa.timestamp("us", "UTC"))
    table = {"visits": [1, 2], "event_time": times, "created_time": times}
    pq.write_table(pa.table(table), repo.path / "data" / "site.parquet")
    del sys.modules["tiny_definitions"]  # as in a new process
    changed = open_repo(repo.path)
    apply(changed)
    assert written(changed)["site"] == 1
    requested = {"features": ["site:visits"], "entity_rows": {"any": [0]}}
    assert changed.store.get_online_features(**requested).to_dict()["visits"] == [2]


@pytest.mark.filterwarnings("ignore:Stream feature views are experimental")
def test_a_stream_feature_view_goes_online_and_feeds_a_model(repo):
    with (repo.path / "tiny_definitions.py").open("a") as file:
        file.write(
            "from feast import KafkaSource\n"
            "from feast.data_format import JsonFormat\n"
            "from feast.stream_feature_view import StreamFeatureView\n"
            'visits = StreamFeatureView(name="visits", entities=[shop], ttl=timedelta(0), '
            'schema=[Field(name="visits", dtype=Int64)], source=KafkaSource(name="kafka", '
            'timestamp_field="event_time", batch_source=source("visits"), '
            'kafka_bootstrap_servers="nowhere", topic="visits", '
            'message_format=JsonFormat("visits long")), timestamp_field="event_time", '
            'aggregations=[], mode="python")\n'
            'streamed = FeatureService(name="streamed", features=[visits])\n'
        )
    times = pa.array([END - timedelta(days=2), END - timedelta(days=1)], pa.timestamp("us", "UTC"))
    table = {"shop": ["a", "a"], "visits": [1, 2], "event_time": times, "created_time": times}
    pq.write_table(pa.table(table), repo.path / "data" / "visits.parquet")
    del sys.modules["tiny_definitions"]  # as in a new process
    changed = open_repo(repo.path)
    apply(changed)
    assert written(changed)["visits"] == 1
    requested = {"features": ["visits:visits"], "entity_rows": {"shop": ["a"]}}
    assert changed.store.get_online_features(**requested).to_dict()["visits"] == [2]
    inputs = changed.service_inputs(changed.feature_service("streamed"))
    assert [feature.name for feature in inputs.features] == ["visits__visits"]
