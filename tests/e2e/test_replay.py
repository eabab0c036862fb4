"""The whole loop on a small repo: three weeks on a simulated clock, with an outage."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import timedelta

import pyarrow.parquet as pq
import pytest
import yaml

from tallystick.online_store import embedded_redis
from tallystick.records.record_store import Incident, MonitorReport, load_records
from tallystick.server_process import wait_until as wait_for
from tiny_repo import START, copy_tiny_repo, make_tiny_repo

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


def demo(repo, out):
    return [sys.executable, "-m", "tallystick", "--repo", str(repo), "demo", "--out", str(out)]


def environment():
    return {name: value for name, value in os.environ.items() if not name.startswith("TALLY")}


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
        demo(repo, out), capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return repo, out, done.stdout, json.loads((out / "summary.json").read_text())


def test_every_request_was_answered_and_logged(played):
    repo, _, _, summary = played
    first, last = START + timedelta(days=28), START + timedelta(days=49)
    times = pq.read_table(repo / "data" / "requests.parquet")["event_time"].to_pylist()
    expected = sum(first <= time < last for time in times)
    assert summary["requests"] == summary["logged"] == expected > 0


def test_every_request_is_in_exactly_one_look(played):
    _, out, _, summary = played
    looks = load_records(out / "state", MonitorReport, model="demo_model")
    assert sum(look.parity.requests for look in looks) == summary["requests"]
    served_each = 5  # values: four stored and one computed
    assert summary["parity"]["values"] == served_each * summary["requests"]


def test_nothing_of_the_view_goes_online_while_it_is_out(played):
    folder = played[1] / "state" / "log" / "predictions"
    stopped, resumed = START + timedelta(days=36), START + timedelta(days=38)
    written = {"shop_stats": [], "item_stats": []}
    for path in folder.rglob("*.parquet"):
        for view, times in written.items():
            names = ["request_time", f"view.{view}.write_time"]
            table = pq.read_table(path, columns=names, partitioning=None)
            times += [
                row[f"view.{view}.write_time"]
                for row in table.to_pylist()
                if stopped <= row["request_time"] < resumed
            ]
    assert max(time for time in written["shop_stats"] if time) <= stopped
    assert max(time for time in written["item_stats"] if time) > stopped + timedelta(days=1)


def test_every_mismatch_has_a_cause(played):
    parity = played[3]["parity"]
    assert parity["unexplained"] == 0
    assert parity["values"] == parity["equal"] + sum(parity["causes"].values())


def test_the_outage_is_found_and_explained_and_does_not_retrain(played):
    incident = played[3]["incident"]
    assert incident["found"]
    assert incident["cause"] == "materialization_lag"
    assert 0 < incident["found_after_minutes"] < 2 * 24 * 60
    assert incident["retrained"] is False


def test_the_report_counts_every_incident(played):
    _, out, printed, summary = played
    found = load_records(out / "state", Incident, model="demo_model")
    assert summary["incidents"] == len(found)
    assert f"{len(found) - 1} other incidents" in printed


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


def test_a_folder_of_another_origin_is_refused(played, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    done = subprocess.run(demo(played[0], tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "thesis.txt" in done.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_mistake_does_not_cost_the_earlier_replay(played, tmp_path):
    _, out, _, summary = played
    done = subprocess.run(demo(tmp_path, out), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not a Feast repo" in done.stderr
    assert json.loads((out / "summary.json").read_text()) == summary


def test_replays_side_by_side_leave_no_server_behind_when_they_are_ended(played, tmp_path):
    # Ctrl-C, what a supervisor sends, and what no process can clean up after.
    signals = {
        tmp_path / "one": signal.SIGINT,
        tmp_path / "two": signal.SIGTERM,
        tmp_path / "three": signal.SIGKILL,
    }
    replays = {}
    for out in signals:
        # Each has a repo of its own: Feast's registry is one file, which it writes unguarded.
        repo = copy_tiny_repo(played[0], tmp_path / f"{out.name}-repo")
        with (tmp_path / f"{out.name}.txt").open("w") as output:
            replays[out] = subprocess.Popen(
                demo(repo, out),
                stdout=output,
                stderr=output,
                env=environment(),
                # Whoever runs these tests in the background has Ctrl-C ignored, which children
                # inherit.
                preexec_fn=lambda: signal.signal(  # noqa: PLW1509 there are no threads yet
                    signal.SIGINT, signal.default_int_handler
                ),
            )
    try:
        for out, replay in replays.items():
            output = tmp_path / f"{out.name}.txt"
            wait_until(lambda log=out / "server.log": "answers now" in said(log), replay, output)
            assert embedded_redis.is_running(out / "state")
        # Both at once: while one ends, the other might come to its end by itself.
        for out, replay in replays.items():
            replay.send_signal(signals[out])
        for out, replay in replays.items():
            assert replay.wait(60) != 0
            (server,) = re.findall(r"Started server process \[(\d+)\]", said(out / "server.log"))
            # A process whose parent is gone stays visible until the system has removed it.
            assert wait_for(lambda pid=int(server): not is_running(pid), timeout_s=60)
            if signals[out] == signal.SIGKILL:
                embedded_redis.stop(out / "state")
            assert not embedded_redis.is_running(out / "state")
            assert not (out / "summary.json").exists()
    finally:
        for replay in replays.values():
            replay.kill()
            replay.wait()


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def said(log):
    return log.read_text() if log.exists() else ""


def wait_until(is_so, replay, output, *, seconds=240):
    give_up = time.monotonic() + seconds
    while not is_so():
        assert replay.poll() is None, said(output)
        assert time.monotonic() < give_up, said(output)
        time.sleep(0.05)
