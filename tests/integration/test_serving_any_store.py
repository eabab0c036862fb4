"""The loop on online stores of Feast's own: trained, materialized by Feast, served, audited."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import gated_store
import serving_scene as scene
from tallystick.cli.commands import main
from tallystick.clock import to_us
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.errors import DefinitionError
from tallystick.online_store import embedded_redis
from tallystick.settings import Settings
from tallystick_monitoring.audit.audit_run import audit
from tallystick_serving.server_metrics import ServerMetrics
from tallystick_serving.server_state import open_state
from tallystick_serving.store_config import read_store_config
from tallystick_training import train_command
from tiny_repo import MODEL, START, make_tiny_repo

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
NOW = START + 22 * DAY + 6 * HOUR
SQLITE = "{type: sqlite, path: data/online.db}"
NONE_YET = "{type: tallystick.online_store.RedisOnlineStore, connection_string: unix:///nowhere/redis.sock}"
PREDICT = f"/v1/models/{MODEL}:predict"
ORDER = {"shop": "shop-b", "item": 12, "quantity": 2}
BODY = {"instances": [ORDER], "parameters": {"features": True}}


def make_repo(path):
    """The tiny repo with a view without entities, of odd microseconds, a push source and nulls.

    Its online store is one that ``apply`` does not touch: Feast's registry remembers SQLite's by
    its path, also in a copy.
    """
    make_tiny_repo(path)
    settings_file = path / "feature_store.yaml"
    text = settings_file.read_text()
    assert SQLITE in text
    settings_file.write_text(text.replace(SQLITE, NONE_YET))
    file = path / "tiny_definitions.py"
    text = file.read_text()
    text = text.replace("import Entity,", "import Entity, PushSource,").replace(
        "features=[shop_stats,", "features=[site_stats, shop_stats,"
    )
    text = text.replace(
        'source=source("shop_stats"),',
        'source=PushSource(name="shop_push", batch_source=source("shop_stats")),',
    ).replace(
        "@on_demand_feature_view",
        'site_stats = FeatureView(name="site_stats", entities=[], ttl=timedelta(days=1), '
        'schema=[Field(name="visits", dtype=Int64)], source=source("site_stats"))\n\n\n'
        "@on_demand_feature_view",
    )
    file.write_text(text)
    first, moment = to_us(START - DAY) + 345_678, pa.timestamp("us", tz="UTC")
    times = pa.array(first + 12 * 3_600_000_000 * np.arange(100)).cast(moment)
    site = pa.table({"visits": pa.array(range(100)), "event_time": times, "created_time": times})
    pq.write_table(site, path / "data" / "site_stats.parquet")
    items = pq.read_table(path / "data" / "item_stats.parquet")
    lacks = [row["shop"] == "shop-b" and row["item"] == 12 for row in items.to_pylist()]
    position = items.schema.get_field_index("stock")
    stock = pa.array(items["stock"].to_pylist(), mask=np.array(lacks))
    pq.write_table(items.set_column(position, "stock", stock), path / "data" / "item_stats.parquet")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A repo with a champion; nothing is online yet."""
    path = make_repo(tmp_path_factory.mktemp("any") / "repo")
    repo = open_repo(path)
    apply(repo)
    train_command.train(repo, MODEL, end=NOW, promote=True)
    return path


@pytest.fixture
def clock(simulated_clock):
    """The process's simulated clock, at NOW."""
    simulated_clock.set(NOW)
    return simulated_clock


@pytest.fixture
def copied(trained, tmp_path):
    """Makes copies of the trained repo with an online store of choice."""

    def copy(online):
        path = shutil.copytree(trained, tmp_path / "repo")
        file = path / "feature_store.yaml"
        file.write_text(file.read_text().replace(NONE_YET, online))
        repo = open_repo(path)
        apply(repo)
        return repo

    return copy


@pytest.fixture(params=["sqlite", "redis"])
def repo(request, copied, redis_server, clock):  # noqa: ARG001 - the time is NOW
    online = {
        "sqlite": SQLITE,
        "redis": "{type: redis, connection_string: "
        f"'localhost:1,unix_socket_path={redis_server.socket}'}}",
    }
    return copied(online[request.param])


def materialize(repo, *, until=NOW, views=None):
    repo.store.materialize(START - 10 * DAY, until, feature_views=views)


@contextmanager
def served(repo, **limits):
    with scene.running(read_store_config(repo.path), **limits) as client:
        scene.wait_for(lambda: client.get(f"/v1/models/{MODEL}").is_success)
        yield client


def orders(*, shops="abcdefz", items=(11, 12, 13, 14, 15)):
    return [
        {"shop": f"shop-{shop}", "item": item, "quantity": quantity}
        for shop in shops
        for item in items
        for quantity in (1, 3)
    ]


def ask(client, instances):
    body = {"instances": instances, "parameters": {"features": True}}
    answer = client.post(PREDICT, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def newest(repo, view, until, **keys):
    """The row that should be online, the slow and obvious way."""
    rows = [
        row
        for row in pq.read_table(repo.path / "data" / f"{view}.parquet").to_pylist()
        if all(row[key] == value for key, value in keys.items())
        and max(row["event_time"], row["created_time"]) <= until
    ]
    return max(rows, key=lambda row: (row["event_time"], row["created_time"]))


def test_values_and_statuses_over_http(repo):
    materialize(repo)
    with served(repo) as client:
        assert client.get("/ready").status_code == 200
        known, empty, expired, unknown, keyless = ask(
            client,
            [
                {"shop": "shop-b", "item": 14, "quantity": 2},
                ORDER,
                {"shop": "shop-a", "item": 11, "quantity": 2},
                {"shop": "nowhere", "item": 11, "quantity": 2},
                {"shop": None, "item": 11, "quantity": 2},
            ],
        )
    shop = newest(repo, "shop_stats", NOW, shop="shop-b")
    item = newest(repo, "item_stats", NOW, shop="shop-b", item=14)
    site = newest(repo, "site_stats", NOW)
    assert known["features"] == {
        "site_stats__visits": site["visits"],
        "shop_stats__load": shop["load"],
        "shop_stats__orders": shop["orders"],
        "item_stats__price": item["price"],
        "item_stats__stock": item["stock"],
        "order_value__total": item["price"] * 2,
    }
    assert known["views"]["item_stats"] == {
        "status": "PRESENT",
        "event_time": item["event_time"].isoformat(),
        "created_time": None,
        "write_time": None,
        "definition": None,
    }
    assert empty["views"]["item_stats"]["status"] == "PRESENT"
    assert empty["features"]["item_stats__stock"] is None
    assert empty["features"]["item_stats__price"] > 0
    assert expired["views"]["item_stats"]["status"] == "OUTSIDE_MAX_AGE"
    assert expired["views"]["item_stats"]["event_time"] < (NOW - 2 * DAY).isoformat()
    assert expired["features"]["item_stats__price"] is None
    assert expired["features"]["order_value__total"] is None
    assert expired["features"]["shop_stats__load"] is not None
    for absent in (unknown, keyless):
        assert absent["views"]["item_stats"] == dict.fromkeys(known["views"]["item_stats"]) | {
            "status": "NOT_FOUND"
        }
        assert absent["features"]["shop_stats__load"] is None
        assert absent["features"]["site_stats__visits"] == site["visits"]
    assert 0 < known["probability"] < 1


def test_the_audit_of_clean_data_finds_nothing(repo, clock):
    with served(repo) as client:
        count = 0
        for step in range(4):
            moment = NOW + step * 12 * HOUR
            clock.set(moment)
            materialize(repo, until=moment)
            count += len(ask(client, orders()))
    report = audit(repo, MODEL, start=NOW, end=NOW + 3 * DAY).report
    assert (report.requests, report.values) == (count, count * 6)
    assert report.causes == {}, report.exemplars
    assert report.unstamped == ["item_stats", "shop_stats", "site_stats"]


def test_the_audit_finds_what_was_not_brought_online(repo, clock):
    with served(repo) as client:
        for step, views in enumerate([None, ["item_stats"], ["item_stats"]]):
            moment = NOW + step * 12 * HOUR
            clock.set(moment)
            materialize(repo, until=moment, views=views)
            ask(client, orders(shops="abcdef"))
    report = audit(repo, MODEL, start=NOW, end=NOW + 3 * DAY).report
    assert set(report.views) == {"shop_stats", "site_stats"}
    assert set(report.causes) == {"materialization_lag"}
    # Two rounds of sixty requests with two features of the shop and one of the site.
    assert report.causes["materialization_lag"] == 2 * 60 * 3


def test_the_audit_finds_the_corrections_that_feasts_store_refused(repo):
    """First versions go online, then what corrects them: Feast's Redis store does not take it."""
    path = repo.path / "data" / "item_stats.parquet"
    whole = pq.read_table(path)
    begun = NOW - 5 * HOUR
    pq.write_table(whole.filter(pc.less_equal(whole["created_time"], pa.scalar(begun))), path)
    materialize(repo, until=begun)
    pq.write_table(whole, path)
    materialize(repo)
    with served(repo) as client:
        requested = orders(shops="abcdef")
        ask(client, requested)
    corrected = {
        (row["shop"], row["item"])
        for row in whole.to_pylist()
        if row["event_time"] == NOW - 6 * HOUR and row["created_time"] > begun
    }
    report = audit(repo, MODEL, start=NOW, end=NOW + HOUR).report
    wrong = [order for order in requested if (order["shop"], order["item"]) in corrected]
    assert wrong
    if repo.store.config.online_store.type == "redis":
        assert report.causes == {"correction_not_propagated": len(wrong)}
        (shown, *_) = report.exemplars["correction_not_propagated"]
        assert shown.feature == "item_stats__stock"
        assert "corrects the row of" in shown.evidence
    else:
        assert report.causes == {}


def test_pushes_and_reads_go_through_feast(repo):
    materialize(repo)
    now = (NOW - HOUR).isoformat()
    row = {"shop": ["shop-new"], "load": [0.5], "orders": [7]}
    row |= {"event_time": [now], "created_time": [now]}
    body = {"push_source_name": "shop_push", "df": row, "to": "online"}
    with served(repo) as client:
        assert client.post("/push", json=body).status_code == 200
        (pushed,) = ask(client, [ORDER | {"shop": "shop-new"}])
        requested = {"features": ["shop_stats:orders"], "entities": {"shop": ["shop-new"]}}
        answer = client.post("/get-online-features", json=requested).json()
        body["df"] = row | {"orders": ["many"]}
        assert client.post("/push", json=body).status_code == 422
    assert pushed["features"]["shop_stats__orders"] == 7
    assert pushed["views"]["shop_stats"]["event_time"] == now
    assert answer["results"][-1]["values"] == [7]


def test_a_view_that_changed_is_refused_and_the_older_champion_stays(repo):
    materialize(repo)
    view = repo.store.get_feature_view("item_stats")
    with served(repo) as client:
        view.ttl = 3 * DAY
        repo.store.apply(view)
        pointer = repo.state_dir / "models" / MODEL / "champion.json"
        pointer.write_text(pointer.read_text().replace('"version": "1"', '"version": "2"'))
        scene.wait_for(lambda: client.get("/ready").json()["warnings"])
        (warning,) = client.get("/ready").json()["warnings"]
        assert "stays with version 1" in warning
        assert "view item_stats: expected definition" in warning
        assert len(ask(client, [ORDER])) == 1
        view.ttl = 2 * DAY
        repo.store.apply(view)
        scene.wait_for(lambda: client.get(f"/v1/models/{MODEL}").json()["version"] == "2")
        assert client.get("/ready").json()["warnings"] == []


def test_check_says_what_another_store_lacks(repo, caplog):
    kind = repo.store.config.online_store.type
    done = CliRunner().invoke(main, ["--repo", str(repo.path), "check"])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert any(
        line.startswith(f"! online_store is {kind}: it works, through Feast's SDK, and is slower")
        for line in lines
    )
    warnings = " ".join(line for line in lines if line.startswith(f"! online_store {kind}: "))
    for word in ("created time", "correction", "ttl", "definition", "feast materialize"):
        assert word in warnings
    assert f"✓ champion of {MODEL}: version 1 fits the repo" in lines
    status = CliRunner().invoke(main, ["--repo", str(repo.path), "status"])
    assert f"online store: {kind}, which Feast materializes" in status.output
    with served(repo):
        pass
    warned = [r.getMessage() for r in caplog.records if "tally check" in r.getMessage()]
    assert len(warned) == 1
    assert warned[0].startswith(f"online_store is {kind}: features are read through Feast's SDK")


def test_feasts_redis_dies_and_comes_back(copied, clock):  # noqa: ARG001 - the time is NOW
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        state = Path(folder)
        socket = embedded_redis.start(state)
        repo = copied(
            f"{{type: redis, connection_string: 'localhost:1,unix_socket_path={socket}'}}"
        )
        materialize(repo)
        with served(repo, request_timeout_s=0.5) as client:
            before = ask(client, [ORDER])
            embedded_redis.stop(state)
            for _ in range(3):
                answer = client.post(PREDICT, json=BODY)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["type"] == "urn:tallystick:problem:unavailable"
                assert "Feast's online store (redis)" in answer.json()["detail"]
            assert client.get("/ready").status_code == 503
            requested = {"features": ["shop_stats:orders"], "entities": {"shop": ["shop-b"]}}
            assert client.post("/get-online-features", json=requested).status_code == 503
            assert client.get("/health").status_code == 200
            embedded_redis.start(state)
            assert ask(client, [ORDER])[0]["features"] == before[0]["features"]
            assert client.get("/ready").status_code == 200
        embedded_redis.stop(state)


def test_a_store_that_hangs_times_out_and_does_not_block_the_server(
    copied,
    clock,  # noqa: ARG001 - the time is NOW
):
    repo = copied(f"{{type: {gated_store.TYPE}, path: data/online.db}}")
    materialize(repo)
    with gated_store.hanging() as store:
        with served(repo, request_timeout_s=0.2) as client:
            for _ in range(8):
                answer = client.post(PREDICT, json=BODY)
                assert answer.status_code == 503
                assert "no answer in 0.2 s" in answer.json()["detail"]
            ready = client.get("/ready")
            assert ready.status_code == 503
            assert any("did not answer in time" in reason for reason in ready.json()["reasons"])
            assert store.running == 16
        # The server has stopped, while the calls still hang.
        assert store.running == 16
    scene.wait_for(lambda: store.running == 0)
    with served(repo) as client:
        assert ask(client, [ORDER])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("nowhere.NoOnlineStore", "nowhere"), ("mystery", "mystery"), ("milvus", "milvus")],
)
def test_a_store_that_cannot_be_made_is_one_clear_sentence(trained, tmp_path, kind, reason):
    path = shutil.copytree(trained, tmp_path / "repo")
    file = path / "feature_store.yaml"
    file.write_text(file.read_text().replace(NONE_YET, f"{{type: {kind}}}"))

    async def start():
        async with open_state(read_store_config(path), Settings(), ServerMetrics()):
            raise AssertionError

    with pytest.raises(DefinitionError, match=reason):
        asyncio.run(start())
