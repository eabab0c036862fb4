"""The whole loop on a small repo: three weeks on a simulated clock, with an outage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta

import pyarrow.parquet as pq
import pytest
import yaml

from tiny_repo import START, make_tiny_repo

SCENARIO = """
from datetime import timedelta

from tallystick_simulation.scenario import Outage, Scenario

START = {start!r}

SCENARIO = Scenario(
    model="demo_model",
    train_until=START + timedelta(days=28),
    days=tuple((START + timedelta(days=day)).date() for day in range(28, 49)),
    refresh={{"shop_stats": timedelta(minutes=30), "item_stats": timedelta(minutes=30)}},
    push={{}},
    outage=Outage(
        view="shop_stats", start=START + timedelta(days=36), end=START + timedelta(days=38)
    ),
    watch_every=timedelta(hours=3),
    batch_by="shop",
)
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    repo = make_tiny_repo(folder / "repo")
    settings = repo / "feature_store.yaml"
    redis = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": "embedded",
    }
    settings.write_text(
        yaml.safe_dump(yaml.safe_load(settings.read_text()) | {"online_store": redis})
    )
    (repo / "scenario.py").write_text("import datetime\n" + SCENARIO.format(start=START))
    out = folder / "out"
    done = subprocess.run(
        [sys.executable, "-m", "tallystick", "--repo", str(repo), "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
        env={name: value for name, value in os.environ.items() if not name.startswith("TALLY")},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return repo, out, done.stdout, json.loads((out / "summary.json").read_text())


def test_every_request_was_answered_and_logged(played):
    repo, _, _, summary = played
    first, last = START + timedelta(days=28), START + timedelta(days=49)
    times = pq.read_table(repo / "data" / "requests.parquet")["event_time"].to_pylist()
    expected = sum(first <= time < last for time in times)
    assert summary["requests"] == summary["logged"] == expected > 0


def test_every_mismatch_has_a_cause(played):
    parity = played[3]["parity"]
    assert parity["unexplained"] == 0
    assert parity["values"] == parity["equal"] + sum(parity["causes"].values())


def test_the_outage_is_found_named_and_no_reason_to_retrain(played):
    incident = played[3]["incident"]
    assert incident["found"]
    assert incident["cause"] == "materialization_lag"
    assert 0 < incident["found_after_minutes"] < 2 * 24 * 60
    assert incident["retrained"] is False


def test_there_is_a_decision_for_every_week(played):
    summary = played[3]
    assert [decision["week"] for decision in summary["decisions"]] == [
        "2024-W05",
        "2024-W06",
        "2024-W07",
    ]


def test_report_and_pictures_are_there(played):
    _, out, printed, summary = played
    assert f"{summary['requests']:,} predictions" in printed
    for picture in ("performance.png", "parity.png"):
        assert (out / picture).read_bytes()[:4] == b"\x89PNG"


def test_a_folder_that_no_replay_made_is_left_alone(played, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    command = [sys.executable, "-m", "tallystick", "--repo", str(played[0])]
    done = subprocess.run(
        [*command, "demo", "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "thesis.txt" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
