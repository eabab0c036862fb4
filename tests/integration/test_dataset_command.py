"""``tally dataset`` as it is run: killed, stopped, without room, under every clock."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from tallystick.cli.commands import main
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.materialization.materializer import Materializer
from tallystick.online_store.journal.write_journal import BufferedJournal, journal_in_use
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import build_dataset
from tiny_repo import END, ITEMS, MODEL, SHOPS, START, copy_tiny_repo, make_tiny_repo

DAY = timedelta(days=1)
KNOWN = END + 30 * DAY
WINDOW = ("--end", END.strftime("%Y-%m-%d"), "--known-until", KNOWN.strftime("%Y-%m-%d"))

# Prints each step, and waits for a line before it goes on.
STEPWISE = """
import sys
from datetime import datetime
from pathlib import Path
from tallystick.definitions.feature_repo import open_repo
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import write_dataset

def tell(text, share):
    print(text, flush=True)
    sys.stdin.readline()

repo = open_repo(Path(sys.argv[1]))
start, end, known_until = map(datetime.fromisoformat, sys.argv[3:])
write_dataset(
    repo,
    repo.model("demo_model"),
    RowSelection(start=start, end=end, known_until=known_until),
    out=Path(sys.argv[2]),
    batch_rows=700,
    progress=tell,
)
"""

# As the command, but no file may grow beyond some bytes.
LIMITED = """
import resource, sys
from pathlib import Path
from tallystick.errors import TallystickError
from tallystick.definitions.feature_repo import open_repo
from tallystick_training.train_command import dataset

repo = open_repo(Path(sys.argv[1]))
repo.store
bytes_max = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
try:
    dataset(repo, "demo_model", out=Path(sys.argv[2]))
except TallystickError as error:
    sys.exit(str(error))
"""


def run(repo, *arguments):
    """What the command says, and with which status it ends."""
    done = CliRunner().invoke(main, ["--repo", str(repo.path), "dataset", MODEL, *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output, done.exit_code


def written(repo, out, *arguments):
    """The table that the command writes."""
    output, status = run(repo, "--out", str(out), *WINDOW, *arguments)
    assert (status, output[:5]) == (0, "Wrote"), output
    return pq.read_table(out)


def whole(repo):
    return build_dataset(
        repo, repo.model(MODEL), RowSelection(start=START, end=END, known_until=KNOWN)
    ).table


def until(process, expected):
    """Let a stepwise run go on to a step."""
    for text in process.stdout:
        if text.startswith(expected):
            return
        process.stdin.write("\n")
        process.stdin.flush()
    raise AssertionError(f"no step {expected}")


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_that_is_killed_leaves_the_old_file_and_the_next_removes_the_rest(
    tiny_repo, tmp_path
):
    out = tmp_path / "out" / "set.parquet"
    out.parent.mkdir()
    out.write_bytes(b"old")
    for step in ("requests", "view item_stats", "700 of", "1,9"):
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", STEPWISE, str(tiny_repo.path), str(out)),
                *(moment.isoformat() for moment in (START, END, KNOWN)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        until(process, step)
        left = names_in(out.parent)
        # The folder and its lock; once rows are written, a draft as well. Nothing of earlier runs.
        assert len(left) == (4 if step[0].isdigit() else 3), left
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()
        assert out.read_bytes() == b"old"
    done = subprocess.run(
        [*tally(tiny_repo), "--out", str(out), *WINDOW], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Wrote")
    assert done.stderr == ""
    assert names_in(out.parent) == ["set.parquet"]
    assert pq.read_table(out).equals(whole(tiny_repo))


def tally(repo):
    return [sys.executable, "-m", "tallystick", "--repo", str(repo.path), "dataset", MODEL]


@pytest.fixture
def slow_repo(tmp_path):
    """A repo whose on-demand view takes its time."""
    path = make_tiny_repo(tmp_path / "repo")
    file = path / "tiny_definitions.py"
    text = file.read_text().replace(
        "def order_value(inputs):\n",
        'def order_value(inputs):\n    import time\n\n    if len(inputs["price"]) > 100:\n'
        "        time.sleep(600)\n",
    )
    file.write_text(text)
    repo = open_repo(path)
    apply(repo)
    return repo


def until_answered(process, out):
    """Wait until the last view is answered: what follows is the on-demand view."""
    folder = out.parent
    while not list(folder.glob(".*/answer-1.parquet")) or list(folder.glob(".*/keys-1.parquet")):
        assert process.poll() is None
        time.sleep(0.01)


def heard():
    """Have signals heard that whoever runs these tests in the background may have ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 128 + 15), (signal.SIGHUP, 129)]
)
def test_a_run_that_is_stopped_removes_its_files(slow_repo, tmp_path, number, status):
    out = tmp_path / "out" / "set.parquet"
    out.parent.mkdir()
    out.write_bytes(b"old")
    process = subprocess.Popen(
        [*tally(slow_repo), "--out", str(out), *WINDOW],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,  # noqa: PLW1509 there are no threads yet
    )
    until_answered(process, out)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == status
    assert "Traceback" not in said
    assert names_in(out.parent) == ["set.parquet"]
    assert out.read_bytes() == b"old"


def test_a_run_that_outlives_its_terminal_goes_on(slow_repo, tmp_path):
    out = tmp_path / "out" / "set.parquet"
    process = subprocess.Popen(
        ["nohup", *tally(slow_repo), "--out", str(out), *WINDOW],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until_answered(process, out)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + 15


@pytest.mark.parametrize("bytes_max", [1_000, 20_000])
def test_a_full_disk_is_said_in_a_sentence_and_nothing_stays(tiny_repo, tmp_path, bytes_max):
    out = tmp_path / "out" / "set.parquet"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tiny_repo.path), str(out), str(bytes_max)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"There is no room left to write {out}, with its intermediate files in {out.parent} "
        "(File too large): make room, or name another folder with --spill-dir.\n"
    )
    assert names_in(out.parent) == []


def test_spilled_data_lies_in_the_spill_folder(tiny_repo, tmp_path):
    table = whole(tiny_repo)
    options = ("--memory-limit", "200MB", "--spill-dir", str(tmp_path / "aside"))
    assert written(tiny_repo, tmp_path / "out" / "set.parquet", *options).equals(table)
    assert names_in(tmp_path / "out") == ["set.parquet"]
    assert names_in(tmp_path / "aside") == []
    (tmp_path / "file").write_text("")
    said, status = run(
        tiny_repo, "--out", str(tmp_path / "x.parquet"), "--spill-dir", str(tmp_path / "file")
    )
    assert status == 2
    assert "is a file" in said


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("1MB", r"memory_limit \(1MB\) is too small to read .*\nRaise memory_limit"),
        ("much", r"DuckDB does not start with memory_limit=much"),
    ],
)
def test_a_memory_limit_of_no_use_is_refused(tiny_repo, tmp_path, limit, said):
    out = tmp_path / "out" / "set.parquet"
    output, status = run(tiny_repo, "--out", str(out), "--memory-limit", limit)
    assert status == 1
    assert re.search(said, output), output
    assert names_in(out.parent) == []


def test_limits_are_those_of_the_store_unless_others_are_given(tiny_repo, tmp_path):
    file = tiny_repo.path / "feature_store.yaml"
    changed = yaml.safe_load(file.read_text())
    changed["offline_store"] |= {"memory_limit": "1MB", "spill_dir": str(tmp_path / "aside")}
    file.write_text(yaml.safe_dump(changed))
    repo = open_repo(tiny_repo.path)
    out = tmp_path / "out" / "set.parquet"
    output, status = run(repo, "--out", str(out))
    assert status == 1
    assert "(1MB) is too small" in output
    assert written(repo, out, "--memory-limit", "1GB").num_rows > 1_000
    assert names_in(tmp_path / "aside") == []


def test_progress_is_shown_on_a_terminal(tiny_repo, tmp_path):
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*tally(tiny_repo), "--out", str(tmp_path / "set.parquet"), *WINDOW],
        stdout=subprocess.PIPE,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
        assert process.stdout.read().startswith(b"Wrote")
    os.close(ours)
    # What is drawn in between depends on how quick it goes.
    assert re.search(rb"([\d,]+) of \1 rows", shown)


@pytest.mark.parametrize("clock", ["event", "knowledge"])
def test_the_clock_is_the_requested_one(tiny_repo, tmp_path, clock):
    table = written(tiny_repo, tmp_path / "set.parquet", "--clock", clock)
    assert table.equals(whole(tiny_repo)) == (clock == "knowledge")


def test_without_a_journal_there_is_no_served_clock(tiny_repo, tmp_path):
    output, status = run(tiny_repo, "--out", str(tmp_path / "x.parquet"), "--clock", "served")
    assert status == 1
    assert "The online store has no journal" in output
    assert "journal: true" in output


@pytest.fixture
def journaled_repo(applied_tiny_repo, tmp_path, redis_server, simulated_clock):
    """A repo whose online writes are noted."""
    simulated_clock.set(START)
    path = copy_tiny_repo(applied_tiny_repo, tmp_path / "repo")
    settings = path / "feature_store.yaml"
    changed = yaml.safe_load(settings.read_text())
    changed["online_store"] = {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": redis_server.connection_string,
        "journal": True,
    }
    settings.write_text(yaml.safe_dump(changed))
    repo = open_repo(path)
    apply(repo)
    return repo


FEATURES = ["shop_stats:load", "shop_stats:orders", "item_stats:price", "item_stats:stock"]


def test_under_the_served_clock_it_is_what_was_served(journaled_repo, simulated_clock, tmp_path):
    repo = journaled_repo
    entities = [{"shop": shop, "item": item} for shop in SHOPS for item in ITEMS[:2]]
    buffered = BufferedJournal(repo.state_dir, rows_max=100, flush_rows=100, interval_s=60)
    served = []

    def serve(at):
        simulated_clock.set(at)
        answer = repo.store.get_online_features(FEATURES, entities, full_feature_names=True)
        for row, entity in enumerate(entities):
            values = {name: values[row] for name, values in answer.to_dict().items()}
            served.append({**entity, "at": at, "values": values})

    serve(START + timedelta(minutes=1))  # nothing is online yet
    simulated_clock.set(START + DAY / 24)
    Materializer(repo).run()
    serve(START + DAY / 4)
    serve(START + 2 * DAY)  # newer rows are known by now, and not online: materialization lag
    with journal_in_use(repo.state_dir, buffered):
        simulated_clock.set(START + 2 * DAY + DAY / 24)
        pushed = {"shop": [SHOPS[0]], "load": [0.125], "orders": [7]}
        times = {"event_time": [START + 2 * DAY], "created_time": [START + 2 * DAY]}
        repo.store.write_to_online_store("shop_stats", pd.DataFrame(pushed | times))
    serve(START + 2 * DAY + DAY / 12)
    simulated_clock.set(START + 3 * DAY)
    Materializer(repo).run()
    serve(START + 3 * DAY + DAY / 24)
    serve(START + 9 * DAY)  # past the ttl of one view
    buffered.buffer.close()

    requests = {
        "shop": pa.array([row["shop"] for row in served]),
        "item": pa.array([row["item"] for row in served]),
        "quantity": pa.array(np.arange(len(served))),
        "event_time": pa.array([row["at"] for row in served], pa.timestamp("us", tz="UTC")),
    }
    known = {"created_time": requests["event_time"]}
    data = repo.path / "data"
    pq.write_table(pa.table(requests | known), data / "requests.parquet")
    labels = {"returned": pa.array([row % 2 for row in range(len(served))])}
    pq.write_table(pa.table(requests | labels | known), data / "labels.parquet")

    out = tmp_path / "set.parquet"
    found = written(repo, out, "--clock", "served").to_pylist()
    by_row = sorted(found, key=lambda row: row["quantity"])
    names = [feature.replace(":", "__") for feature in FEATURES]
    assert [{name: row[name] for name in names} for row in by_row] == [
        {name: row["values"][name] for name in names} for row in served
    ]
    known = written(repo, out).to_pylist()
    late = [row["request_time"] == START + 2 * DAY for row in found]
    assert any(
        one["shop_stats__load"] != other["shop_stats__load"]
        for one, other, is_late in zip(found, known, late, strict=True)
        if is_late
    )
    assert all(row["item_stats__price"] is None for row in by_row[-len(entities) :])
    assert datetime.fromtimestamp(0, UTC) < found[0]["request_time"]
