"""tally check --parity: what matches passes, what really does not is named; nothing is touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

import gated_store
from live_processes import is_alive
from parity_repos import make_faulty_repo, make_manifold_repo, with_stores
from tallystick.cli.commands import main
from tallystick.clock import to_us
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.model_bundle.bundle import bundle_dir, load_bundle, read_champion, write_bundle
from tallystick.server_process import wait_until
from tallystick.settings import settings
from tallystick_monitoring.parity_check import scratch_cleaner
from tallystick_monitoring.parity_check.key_sampling import draw_keys
from tallystick_training import train_command
from tiny_repo import END, MODEL, START, copy_tiny_repo, make_tiny_repo

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OUR_TYPE = "tallystick.online_store.RedisOnlineStore"
OURS = "{type: tallystick.online_store.RedisOnlineStore, connection_string: 'nowhere:1'}"
FEASTS_REDIS = "{type: redis, connection_string: 'nowhere:1'}"
REMOTE = "{type: remote, path: 'http://localhost:1'}"
KINDS = {"view", "on-demand view", "feature service"}
IN_GAP = (START + 20 * DAY).strftime("%Y-%m-%d")
"""Some pairs of shop and item have had no row for longer than the ttl."""


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch) -> Iterator[None]:
    """Settings read anew, and a folder for temporary files in which to look for what stays."""
    # Not pytest's, whose long name leaves too little of the 107 bytes of a socket's path.
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        settings.cache_clear()
        yield
        assert left_behind() == []
        settings.cache_clear()


def left_behind() -> list[Path]:
    return [*Path(tempfile.gettempdir()).glob("tallystick-*")]


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def checked(repo: Path, *arguments: str, code: int = 0) -> dict:
    """Run the check, see that it leaves the repo alone, and give its report."""
    before = hashes(repo)
    report = repo.parent / "report.json"
    options = ["check", "--parity", "--sample", "40", "--json", str(report), *arguments]
    done = CliRunner().invoke(main, ["--repo", str(repo), *options])
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert hashes(repo) == before
    return {**json.loads(report.read_text()), "text": done.output}


def refused(repo: Path) -> str:
    before = hashes(repo)
    done = CliRunner().invoke(main, ["--repo", str(repo), "check", "--parity"])
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 1
    assert hashes(repo) == before
    return done.output


def of(report: dict, name: str) -> dict:
    (found,) = [one for one in report["compared"] if one["name"] == name]
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The tiny repo with a champion, on an online store that nobody reaches."""
    path = with_stores(make_tiny_repo(tmp_path_factory.mktemp("trained") / "repo"), online=OURS)
    repo = open_repo(path)
    apply(repo)
    train_command.train(repo, MODEL, end=END, promote=True)
    return path


@pytest.fixture
def unapplied(tmp_path):
    return make_tiny_repo(tmp_path / "repo")


def test_a_repo_that_was_never_applied_passes(unapplied):
    report = checked(unapplied, "--seed", "3")
    assert report["store"] == report["configured"] == "sqlite"
    assert report["moment"] > "2024-02-29"
    assert "near the end of history" in report["moment_reason"]
    kinds = {one["name"]: one["kind"] for one in report["compared"]}
    assert kinds == {
        "item_stats": "view",
        "shop_stats": "view",
        "order_value": "on-demand view",
        "demo_features": "feature service",
    }
    items = of(report, "item_stats")
    assert items["ways"] == ["offline", "online", "API"]
    assert items["kinds"] == {"current": 30, "unknown": 4}
    assert items["values"] == items["equal"] == 2 * 34
    assert items["present"] == 2 * 30
    assert of(report, "order_value")["present"] > 0
    assert "✓ parity: " in report["text"]
    assert report["seed"] == 3
    assert report["repo"] == str(unapplied)


@pytest.mark.parametrize(
    ("online", "store"), [(REMOTE, OUR_TYPE), (FEASTS_REDIS, "redis")], ids=["remote", "redis"]
)
def test_a_trained_repo_passes_on_a_store_that_can_be_local(trained, tmp_path, online, store):
    path = copy_tiny_repo(trained, tmp_path / "repo")
    file = path / "feature_store.yaml"
    file.write_text(file.read_text().replace(OURS, online))
    report = checked(path, "--at", "2024-02-10T06:00:00")
    assert report["store"] == store
    assert ("in place of remote" in report["text"]) == (online == REMOTE)
    model = of(report, MODEL)
    assert model["ways"] == ["offline", "API"]
    # Two stored features each, one on demand, and the prediction.
    assert model["values"] == model["equal"] == 6 * 40
    assert of(report, "item_stats")["values"] > 0


def test_the_ttl_is_named_where_the_own_store_does_not_enforce_it(unapplied):
    report = checked(unapplied, "--at", IN_GAP, code=1)
    items = of(report, "item_stats")
    assert items["kinds"]["expired"] > 0
    assert items["differences"] == {"offline to online": 2 * items["kinds"]["expired"]}
    (hint,) = items["hints"]
    assert "does not enforce the ttl" in hint
    assert {example["offline"] for example in items["examples"]} == {"null"}
    # What is computed of a wrong input is counted with the input.
    assert of(report, "order_value")["differences"] == {}
    assert of(report, "shop_stats")["equal"] == of(report, "shop_stats")["values"]
    with_stores(unapplied, online=OURS)
    report = checked(unapplied, "--at", IN_GAP)
    assert of(report, "item_stats")["kinds"]["expired"] > 0


def test_every_fault_is_named_where_it_is(tmp_path):
    report = checked(make_faulty_repo(tmp_path / "repo"), "--fail-over", "0.9")
    assert report["store"] == "faulty_store.FaultyOnlineStore"
    hints = {one["name"]: " ".join(one["hints"]) for one in report["compared"] if one["hints"]}
    assert hints.keys() == {"dropped", "rounded", "big", "cut", "among_others", "by_chance"}
    differing = {one["name"]: [*one["differences"]] for one in report["compared"]}
    assert differing["dropped"] == differing["rounded"] == ["offline to online"]
    assert differing["big"] == differing["cut"] == ["offline to online"]
    assert "has no row of that key" in hints["dropped"]
    (example,) = of(report, "dropped")["examples"]
    assert example["keys"] == {"shop": "shop-c"}
    assert example["online"] == "null"
    assert "changes what it is given" in hints["rounded"]
    assert "equal after a cast" in hints["big"]
    assert "equal after a cast" in hints["cut"]
    assert differing["among_others"] == ["online to API"]
    assert "which rows come together" in hints["among_others"]
    assert "chance" in hints["by_chance"]
    assert of(report, "shop_stats")["equal"] == of(report, "shop_stats")["values"]
    assert 0 < report["values"] - report["equal"] < report["values"]
    assert "✗ parity: " in report["text"]


def test_all_that_feast_can_declare_passes(tmp_path):
    path = with_stores(make_manifold_repo(tmp_path / "repo"), online=OURS)
    report = checked(path)
    assert report["store"] == report["configured"] == OUR_TYPE
    unserved = of(report, "not_served")
    assert "view archive is not online" in " ".join(unserved["notes"])
    report["compared"].remove(unserved)
    assert {one["kind"] for one in report["compared"]} == KINDS
    for one in report["compared"]:
        assert one["present"] > 0, one
        ways = ["offline", "online"] if one["name"] == "at_hour" else ["offline", "online", "API"]
        assert one["ways"] == ways
    (note,) = of(report, "at_hour")["notes"]
    assert "due (UNIX_TIMESTAMP)" in note
    assert of(report, "site")["values"] == 1
    assert of(report, "kinds")["present"] == 7 * 6 - 8
    assert of(report, "two_shops")["requests"] >= 6


def test_a_plain_feast_repo_passes(tmp_path):
    """The repo that feast init makes, as it is: dask, sqlite, and all rows created just now."""
    subprocess.run(
        [sys.executable, "-m", "feast.cli.cli", "init", "demo", "-t", "local"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of definitions that are not ours
        report = checked(tmp_path / "demo" / "feature_repo")
    assert report["filled_by"] == "feast materialize"
    assert report["moment_reason"] == ""
    drivers = of(report, "driver_hourly_stats")
    assert drivers["kinds"]["current"] == 5
    assert drivers["present"] == 5 * 6
    assert of(report, "transformed_conv_rate")["present"] > 0


def test_what_was_known_only_later_is_left_out_where_feast_fills_the_store(unapplied):
    report = checked(unapplied, "--at", (START + 30 * DAY).strftime("%Y-%m-%dT00:01:00"))
    notes = " ".join(of(report, "shop_stats")["notes"])
    assert "known only later" in notes
    assert of(report, "shop_stats")["requests"] < sum(of(report, "shop_stats")["kinds"].values())


def test_a_champion_that_no_longer_fits_is_named(trained, tmp_path):
    path = copy_tiny_repo(trained, tmp_path / "repo")
    file = path / "tiny_definitions.py"
    file.write_text(file.read_text().replace("ttl=timedelta(days=2)", "ttl=timedelta(days=3)"))
    report = checked(path, "--at", "2024-02-10T06:00:00", code=1)
    (failure,) = of(report, MODEL)["failures"]
    assert "no longer fits" in failure
    assert of(report, "item_stats")["equal"] == of(report, "item_stats")["values"] > 0


def test_requests_that_a_model_cannot_take_are_left_out(trained, tmp_path):
    path = copy_tiny_repo(trained, tmp_path / "repo")
    state = path / ".tallystick"
    contract_hash = read_champion(state, MODEL).contract_hash
    bundle = load_bundle(state, MODEL, contract_hash)
    shutil.rmtree(bundle_dir(state, MODEL, contract_hash))
    rows = np.random.default_rng(0).normal(size=(50, len(bundle.contract.features)))
    estimator = LogisticRegression().fit(rows, rows[:, 0] > 0)
    write_bundle(state, replace(bundle, estimator=estimator))
    report = checked(path, "--at", "2024-02-10T06:00:00")
    model = of(report, MODEL)
    (note,) = model["notes"]
    assert "Model 'demo_model' failed: ValueError: Input X contains NaN" in note
    assert model["equal"] == model["values"] == model["present"] > 100


def test_what_fails_fails_alone(unapplied):
    file = unapplied / "tiny_definitions.py"
    old = "None if price is None or quantity is None else price * quantity"
    file.write_text(file.read_text().replace(old, "price * quantity"))
    path = unapplied / "data" / "shop_stats.parquet"
    table = pq.read_table(path)
    text = pa.array(["much"] * table.num_rows)
    pq.write_table(table.set_column(table.schema.get_field_index("load"), "load", text), path)
    report = checked(unapplied, code=1)
    (failure,) = of(report, "shop_stats")["failures"]
    assert "View shop_stats does not fit its source" in failure
    assert of(report, "demo_features")["failures"] == ["view shop_stats cannot be compared"]
    assert of(report, "item_stats")["equal"] == of(report, "item_stats")["values"] > 0
    orders = of(report, "order_value")
    (note,) = orders["notes"]
    assert note.startswith("left out are ")
    assert "TypeError" in note
    assert orders["equal"] == orders["values"] == orders["present"] > 0


def test_keys_are_drawn_of_every_kind_and_the_same_for_the_same_seed(applied_tiny_repo):
    repo = open_repo(applied_tiny_repo)
    (use,) = [use for use in repo.inputs(repo.model(MODEL)).views if use.name == "item_stats"]
    at = START + 20 * DAY
    newest: dict[tuple, object] = {}
    for row in pq.read_table(applied_tiny_repo / "data" / "item_stats.parquet").to_pylist():
        key = (row["shop"], row["item"])
        known = max(row["event_time"], row["created_time"]) <= at
        newest[key] = max(filter(None, [newest.get(key), row["event_time"] if known else None]))
    expired = {key for key, event in newest.items() if event < at - 2 * DAY}
    assert expired
    drawn = draw_keys(repo, use, at_us=to_us(at), count=20, seed=1)
    assert drawn.kinds == {"current": 16, "expired": 2, "unknown": 2}
    assert len(expired & {*drawn.rows}) == 2
    assert len(newest.keys() & {*drawn.rows}) == 18
    assert draw_keys(repo, use, at_us=to_us(at), count=20, seed=1) == drawn
    assert draw_keys(repo, use, at_us=to_us(at), count=20, seed=2).rows != drawn.rows
    early = draw_keys(repo, use, at_us=to_us(START - 10 * DAY), count=20, seed=1)
    assert early.kinds == {"later": 2, "unknown": 2}


def test_an_option_that_would_go_unheeded_is_refused(unapplied):
    done = CliRunner().invoke(main, ["--repo", str(unapplied), "check", "--fail-over", "0.1"])
    assert done.exit_code == 2
    assert "--fail-over needs --parity" in done.output


def test_mistakes_are_one_clear_sentence(unapplied, tmp_path):
    assert "is not a Feast repo" in refused(tmp_path)
    for name in ("shop_stats", "item_stats"):
        path = unapplied / "data" / f"{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    output = refused(unapplied)
    assert "no view has history" in output
    assert "View item_stats has no rows in its source" in output
    (unapplied / "data" / "shop_stats.parquet").write_bytes(b"no parquet")
    assert "shop_stats" in refused(unapplied)
    with_stores(unapplied, online="{type: nowhere.NoOnlineStore}")
    assert "nowhere" in refused(unapplied)
    empty = make_tiny_repo(tmp_path / "empty")
    (empty / "tiny_definitions.py").write_text("")
    assert "defines no feature view that is online" in refused(empty)


def test_a_server_that_does_not_come_up_is_one_clear_sentence(unapplied):
    # The tests' folder is on this process's path, and not on the server's.
    with_stores(unapplied, online=f"{{type: {gated_store.TYPE}}}")
    output = refused(unapplied)
    assert "the server did not start" in output
    assert "gated_store" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_of_a_check_that_is_killed(unapplied, number):
    with_stores(unapplied, online=OURS)
    before = hashes(unapplied)
    with running(unapplied) as (process, folder):
        redis = pid_of_redis(folder)
        process.send_signal(number)
        assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    wait_for(lambda: not folder.exists())
    wait_for(lambda: not is_alive(redis))
    assert hashes(unapplied) == before


def test_the_next_check_removes_what_a_killed_keeper_left(unapplied):
    with_stores(unapplied, online=OURS)
    with running(unapplied) as (process, folder):
        redis = pid_of_redis(folder)
        (keeping,) = [
            child
            for child in children(process.pid)
            if scratch_cleaner.__name__ in Path(f"/proc/{child}/cmdline").read_text()
        ]
        os.kill(keeping, signal.SIGKILL)
        process.kill()
        process.wait()
    assert folder.exists()
    assert is_alive(redis)
    wait_for(lambda: removed(folder))
    wait_for(lambda: not is_alive(redis))


def pid_of_redis(folder: Path) -> int:
    return int((folder / scratch_cleaner.STATE / "redis" / "redis.pid").read_text())


def removed(folder: Path) -> bool:
    scratch_cleaner.remove_abandoned()
    return not folder.exists()


class running:  # noqa: N801 - read as: with running(repo)
    """A check in a process of its own that has brought something online and serves it."""

    def __init__(self, repo: Path) -> None:
        self._command = [sys.executable, "-m", "tallystick", "--repo", str(repo)]

    def __enter__(self) -> tuple[subprocess.Popen, Path]:
        self._process = subprocess.Popen(
            [*self._command, "check", "--parity", "--sample", "5000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (log,) = wait_for(
            lambda: [
                log
                for log in Path(tempfile.gettempdir()).glob(f"{scratch_cleaner.PREFIX}*/server.log")
                if "Application startup complete" in log.read_text()
            ]
        )
        return self._process, log.parent

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(child) for child in text.split()]


def wait_for(condition):
    found = wait_until(condition, timeout_s=120)
    assert found, "it did not happen in time"
    return found
