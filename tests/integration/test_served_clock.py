"""A repo whose online writes are noted: what was read from its store is what the clock tells."""

from __future__ import annotations

from datetime import timedelta

import pandas as pd
import pytest
import yaml

from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.materialization.materializer import Materializer
from tallystick.online_store.journal.write_journal import BufferedJournal, journal_in_use
from tiny_repo import ITEMS, SHOPS, START, make_tiny_repo

FEATURES = ["shop_stats:load", "shop_stats:orders", "item_stats:price", "item_stats:stock"]


@pytest.fixture
def repo(tmp_path, redis_server, simulated_clock):
    simulated_clock.set(START)
    path = make_tiny_repo(tmp_path / "repo")
    settings = path / "feature_store.yaml"
    changed = yaml.safe_load(settings.read_text())
    changed["online_store"] = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": redis_server.connection_string,
        "journal": True,
    }
    changed["offline_store"]["clock"] = "served"
    settings.write_text(yaml.safe_dump(changed))
    opened = open_repo(path)
    apply(opened)
    return opened


def pushed(repo, at, load):
    rows = {
        "shop": [SHOPS[0]],
        "load": [load],
        "orders": [7],
        "event_time": [at],
        "created_time": [at],
    }
    repo.store.write_to_online_store("shop_stats", pd.DataFrame(rows))


def test_a_dataset_under_the_served_clock_is_what_was_read_online(repo, simulated_clock):
    entities = [{"shop": shop, "item": item} for shop in SHOPS for item in ITEMS[:2]]
    buffered = BufferedJournal(repo.state_dir, rows_max=100, flush_rows=100, interval_s=60)
    reads = []

    def look(at):
        simulated_clock.set(at)
        answer = repo.store.get_online_features(FEATURES, entities, full_feature_names=True)
        reads.append((at, answer.to_dict()))

    day = timedelta(days=1)
    simulated_clock.set(START)
    Materializer(repo).run()
    look(START + day / 4)
    simulated_clock.set(START + day / 3)
    pushed(repo, START + day / 3, 0.125)
    look(START + day / 2)
    simulated_clock.set(START + day / 2 + timedelta(microseconds=1))
    with journal_in_use(repo.state_dir, buffered):
        pushed(repo, START + day / 2, 0.5)
        pushed(repo, START + day / 5, -1.0)  # out of order
    look(START + 2 * day)
    simulated_clock.set(START + 2 * day + timedelta(microseconds=1))
    Materializer(repo).run()
    look(START + 2 * day + timedelta(seconds=1))
    look(START + 6 * day)
    buffered.buffer.close()
    assert buffered.buffer.ledger.durable == 2

    entity_rows = pd.DataFrame(
        [{**entity, "event_timestamp": at} for at, _ in reads for entity in entities]
    )
    retrieved = repo.store.get_historical_features(
        entity_rows, FEATURES, full_feature_names=True
    ).to_arrow()
    for feature in FEATURES:
        name = feature.replace(":", "__")
        assert retrieved[name].to_pylist() == [
            value for _, answer in reads for value in answer[name]
        ]
    first = retrieved["shop_stats__load"].to_pylist()[:: len(entities)]
    assert first[1:3] == [0.125, 0.5]
    assert None in retrieved["item_stats__price"].to_pylist()  # past its ttl


def test_a_teardown_ends_what_was_served(repo, simulated_clock):
    Materializer(repo).run()
    gone = START + timedelta(hours=1)
    simulated_clock.set(gone)
    repo.store.teardown()
    entity_rows = pd.DataFrame({"shop": [SHOPS[0]] * 2, "event_timestamp": [START, gone]})
    apply(repo)
    retrieved = repo.store.get_historical_features(entity_rows, ["shop_stats:load"]).to_arrow()
    before, after = retrieved["load"].to_pylist()
    assert before is not None
    assert after is None
