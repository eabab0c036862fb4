"""Workers and compactors that are killed: each row once, and all that was acknowledged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest

from log_processes import forge, wait_until
from log_rows import CONTRACTS, ids_of, read_ids, request, rows_of
from tallystick.prediction_log.compactor import DAMAGED, MERGED_FILES, compact
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.manifest import read_manifest
from tallystick.prediction_log.streams import (
    PREDICTIONS,
    log_location,
    site_of,
    stream_dir,
    wal_dir,
)
from tallystick.prediction_log.write_ahead_log import OPEN, segments_in
from tallystick.settings import Settings

KILLS = int(os.environ.get("LOG_KILLS", "20"))
SEED = int(os.environ.get("LOG_SEED", "1"))


@pytest.fixture(scope="module")
def forger(tmp_path_factory):
    with forge(tmp_path_factory.mktemp("reports")) as made:
        yield made


def manifest_of(state):
    return read_manifest(log_location(state), PREDICTIONS.name, site_of(state))


def rows_by_worker(ids):
    """Worker → the numbers of its rows."""
    found = {}
    for row_id in ids:
        worker, _, row = map(int, row_id.split("/"))
        found.setdefault(worker, set()).add(row)
    return found


def check(forger, state, pids):
    """What was acknowledged is there, and of each worker all but the end."""
    # Before the log is read: it only grows.
    reports = [forger.report(pid) for pid in pids]
    found = rows_by_worker(read_ids(state))
    for report in reports:
        rows = found.get(report["worker"], set())
        assert rows == set(range(len(rows))), report
        acknowledged = sum(map(rows_of, range(report["acknowledged"])))
        assert len(rows) >= max(acknowledged, report["durable"]), report
        if report["closed"]:
            assert len(rows) == report["durable"]
    return found


def check_ledger(forger, state, pids):
    """The manifest says what became of each worker's rows."""
    manifest = manifest_of(state)
    found = rows_by_worker(read_ids(state))
    past = manifest.past
    assert manifest.rows == sum(map(len, found.values()))
    assert manifest.rows == past.rows + sum(each.rows for each in manifest.workers.values())
    assert past.totals.accepted == past.rows + past.totals.dropped + past.lost
    assert (past.lost, past.damages, past.totals.dropped) == (0, 0, 0)
    named = {int(name.split("-")[0]): rows for name, rows in manifest.workers.items()}
    assert len(named) == len(manifest.workers)
    for pid in pids:
        report = forger.report(pid)
        rows = named.get(pid)
        if rows is None:  # it never wrote, or it has ended and is among the past
            assert len(found.get(report["worker"], ())) >= report["durable"]
            assert report["closed"] or report["acknowledged"] == report["durable"] == 0
            continue
        assert (rows.lost, rows.damages, rows.totals.dropped) == (0, 0, 0)
        assert rows.rows == rows.after == len(found.get(report["worker"], ()))
        assert rows.totals.accepted >= rows.rows
        if report["closed"]:
            assert rows.totals.accepted == rows.rows
            assert rows.is_closed


def check_nothing_is_left(state):
    """After a compaction of all: no segment, no plan, and no file that no manifest names."""
    assert segments_in(stream_dir(state, PREDICTIONS)) == []
    assert list(stream_dir(state, PREDICTIONS).glob("*-*")) == []
    assert list(stream_dir(state, PREDICTIONS).glob("plan.json")) == []
    manifest = manifest_of(state)
    named = {file.path for file in manifest.files} | set(manifest.garbage)
    there = {str(path.relative_to(state / "log")) for path in (state / "log").rglob("*.parquet*")}
    assert there == named


@pytest.mark.timeout(120 + 3 * KILLS)
def test_killed_at_random_under_load(forger, tmp_path):
    chance = random.Random(SEED)
    state = tmp_path / "state"
    workers = iter(range(10**9))
    pids = []

    def start(durable):
        pid = forger.start("work", state=str(state), worker=next(workers), durable=durable)
        pids.append(pid)
        return pid

    def start_compactor(_):
        return forger.start("compact_on", state=str(state))

    running = [(start(durable), start, durable) for durable in (False, True)]
    # Two at once: one of them finds the other at work.
    running += [(start_compactor(None), start_compactor, None) for _ in range(2)]
    for kill in range(1, KILLS + 1):
        time.sleep(chance.uniform(0.01, 0.3))
        index = chance.randrange(len(running))
        pid, start_again, how = running[index]
        # Some end as a server that is started again does.
        forger.stop(pid, signal.SIGTERM if chance.random() < 0.15 else signal.SIGKILL)
        running[index] = (start_again(how), start_again, how)
        if kill % max(5, KILLS // 10) == 0:
            check(forger, state, pids)
    for pid, _, _ in running:
        forger.stop(pid, signal.SIGKILL)
    before = check(forger, state, pids)
    compact(state)
    assert check(forger, state, pids) == before
    check_ledger(forger, state, pids)
    check_nothing_is_left(state)
    assert sum(map(len, before.values())) > KILLS


def test_workers_restart_during_compaction(forger, tmp_path):
    state = tmp_path / "state"
    compactors = [forger.start("compact_on", state=str(state), pause_s=0) for _ in range(2)]
    pids = []
    for worker in range(8):
        pids.append(forger.start("work", state=str(state), worker=worker, durable=bool(worker % 2)))
        if worker:
            forger.stop(pids[-2], signal.SIGTERM)
        time.sleep(0.1)
        check(forger, state, pids)
    forger.stop(pids[-1], signal.SIGTERM)
    for pid in compactors:
        forger.stop(pid, signal.SIGTERM)
    compact(state)
    check(forger, state, pids)
    check_ledger(forger, state, pids)
    check_nothing_is_left(state)
    assert all(forger.report(pid)["closed"] for pid in pids)


WORKER_STEPS = {
    "contract": ("tallystick.prediction_log.write_ahead_log:write_text", ("before", "after")),
    "folder": ("pathlib:Path.mkdir", ("before", "after")),
    "open": ("os:open", ("before", "after")),
    "lock": ("fcntl:flock", ("before", "after")),
    "rename": ("pathlib:Path.rename", ("before", "after")),
    "names": ("tallystick.prediction_log.write_ahead_log:sync", ("before", "after")),
    "write": ("os:write", ("before", "half", "after")),
    "sync": ("os:fdatasync", ("before", "after")),
    "close": ("os:close", ("before", "after")),
}
"""Each step by which a worker opens, writes and seals segments: a function, killed at each call."""


@pytest.mark.parametrize("step", WORKER_STEPS)
def test_worker_killed_at_every_step(forger, tmp_path, step):
    function, whens = WORKER_STEPS[step]
    requests = 4
    for when in whens:
        call, is_over = 0, False
        while not is_over:
            call += 1
            state = tmp_path / f"{when}{call}"
            given = {"state": str(state), "worker": 1, "durable": True, "requests": requests}
            # A segment is full with two requests.
            options = {"log_window_s": 0.001, "log_segment_bytes": 700}
            killed = {"function": function, "call": call, "when": when}
            pid = forger.start("work", **given, options=options, kill_at=killed, pause_s=0)
            ending = forger.reports / f"{pid}.status"
            wait_until(ending.exists)
            is_over = int(ending.read_text()) == 0
            assert is_over or int(ending.read_text()) == -signal.SIGKILL
            check(forger, state, [pid])
            compact(state)
            found = check(forger, state, [pid]).get(1, set())
            check_ledger(forger, state, [pid])
            check_nothing_is_left(state)
            if is_over:
                assert found == set(range(sum(map(rows_of, range(requests)))))
            ending.unlink()
            (forger.reports / f"{pid}.log").unlink()
        assert call > 1, "no worker was killed: the step is not one any more"


COMPACTOR_STEPS = {
    "read a segment": ("tallystick.prediction_log.compactor:read_segment", ("before",)),
    "put aside": ("pathlib:Path.hardlink_to", ("after",)),
    "plan": ("tallystick.prediction_log.compactor:write_text", ("after",)),
    "text": ("pathlib:Path.write_text", ("half",)),
    "bytes": ("pathlib:Path.write_bytes", ("half",)),
    "rows": ("tallystick.prediction_log.compactor:write_rows", ("before",)),
    "Parquet": ("pyarrow.parquet:write_table", ("half",)),
    "footer": ("tallystick.prediction_log.compactor:footer_of", ("after",)),
    "rename": ("pathlib:Path.replace", ("before",)),
    "remove from the log": ("tallystick.storage.locations:Location.remove", ("before",)),
    "commit": ("tallystick.prediction_log.compactor:write_manifest", ("before", "after")),
    "unlink": ("pathlib:Path.unlink", ("after",)),
    "read a file": ("tallystick.prediction_log.compactor:read_file", ("before",)),
    "remove a folder": ("pathlib:Path.rmdir", ("after",)),
}
"""Each step of a compaction: a function, killed at each of its calls."""


def append(state, worker, requests, *, seals=False):
    log = PredictionLog(state, Settings(log_window_s=60.0))
    for number in requests:
        assert log.append(CONTRACTS[worker % 2], request(worker, number))
        log.seal() if seals else log.flush()
    log.close()


def segment_of(state, known):
    (path,) = set(segments_in(stream_dir(state, PREDICTIONS))) - known
    return path


def make_scene(state):
    """A state folder with everything that a compaction can meet; gives the ids that it has to keep.

    Files that are merged next, files that were replaced, a segment that was committed but not
    removed, a damaged one, one of a killed worker with a torn end, and two whole ones.
    """
    for worker in range(MERGED_FILES - 2):
        append(state, 2 * worker, [0])
        compact(state)
    expected = set().union(*(ids_of(2 * worker, 1) for worker in range(MERGED_FILES - 2)))
    append(state, 50, [0])
    committed = segment_of(state, set())
    saved = committed.read_bytes()
    compact(state)
    committed.parent.mkdir()
    committed.write_bytes(saved)
    expected |= ids_of(50, 1)

    append(state, 52, [0, 2])
    damaged = segment_of(state, {committed})
    content = bytearray(damaged.read_bytes())
    content[100] ^= 1  # within the payload of the first request
    damaged.write_bytes(content)
    expected |= set(request(52, 2).prediction_id)

    append(state, 54, [0])
    torn = segment_of(state, {committed, damaged})
    whole = torn.read_bytes()
    torn.unlink()
    torn = torn.with_suffix(OPEN)
    torn.write_bytes(whole + whole[:150])
    expected |= ids_of(54, 1)

    append(state, 55, [0, 2, 6], seals=True)
    return expected.union(*(request(55, number).prediction_id for number in (0, 2, 6)))


@pytest.fixture(scope="session")
def scene(tmp_path_factory):
    state = tmp_path_factory.mktemp("log") / "state"
    return state, make_scene(state)


@pytest.mark.parametrize("step", COMPACTOR_STEPS)
def test_compactor_killed_at_every_step(forger, tmp_path, scene, step):
    prepared, expected = scene
    function, whens = COMPACTOR_STEPS[step]
    for when in whens:
        call, status = 0, -signal.SIGKILL
        while status:
            call += 1
            state = tmp_path / f"{when}{call}"
            shutil.copytree(prepared, state)
            status = forger.run(
                "compact_once",
                state=str(state),
                kill_at={"function": function, "call": call, "when": when},
            )
            assert status in (0, -signal.SIGKILL)
            assert read_ids(state) == expected
            compact(state)
            assert read_ids(state) == expected
            check_nothing_is_left(state)
            check_scene_ledger(state, len(expected))
            shutil.rmtree(state)
        assert call > 1, "no compactor was killed: the step is not one any more"


def check_scene_ledger(state, rows):
    manifest = manifest_of(state)
    every = [*manifest.workers.values(), manifest.past]
    assert manifest.rows == sum(each.rows for each in every) == rows
    assert [each.lost for each in every if each.lost] == [rows_of(0)]
    for each in every:
        assert each.totals.accepted == each.rows + each.lost + each.totals.dropped
    assert len([*(wal_dir(state) / DAMAGED).rglob("*.sealed")]) == 1


def test_a_compactor_waits_for_no_other(forger, tmp_path, scene):
    prepared, expected = scene
    state = tmp_path / "state"
    shutil.copytree(prepared, state)
    pids = [forger.start("compact_once", state=str(state)) for _ in range(4)]
    wait_until(lambda: all((forger.reports / f"{pid}.status").exists() for pid in pids))
    assert {(forger.reports / f"{pid}.status").read_text() for pid in pids} == {"0"}
    assert read_ids(state) == expected
    compact(state)
    check_nothing_is_left(state)
    check_scene_ledger(state, len(expected))
