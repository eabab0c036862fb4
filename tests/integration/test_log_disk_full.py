"""A disk that is full, or fails: nothing is half-written, and every row is accounted for."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from log_processes import wait_until
from log_rows import CONTRACTS, ids_of, read_ids, request, rows_of
from tallystick.errors import DataError
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.manifest import read_manifest
from tallystick.prediction_log.streams import PREDICTIONS, log_location, site_of, stream_dir
from tallystick.prediction_log.write_ahead_log import CONTRACTS as CONTRACTS_FOLDER
from tallystick.prediction_log.write_ahead_log import segments_in
from tallystick.settings import Settings

CONTRACT = CONTRACTS[0]


def in_a_process(name, state, *arguments):
    """Run a function of this file where the size of files can be limited, and give its answer."""
    done = subprocess.run(
        [sys.executable, __file__, name, str(state), *map(str, arguments)],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return json.loads(done.stdout)


def limit(size):
    """Let no file of this process become larger: a write beyond it fails as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def unlimit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def ledger_of(log):
    ledger = log.ledger
    assert ledger.accepted == ledger.durable + ledger.dropped + ledger.in_flight
    return [ledger.durable, ledger.dropped, ledger.in_flight]


def fill_segments(state, size):
    """Append under a limit of so many bytes, then without; gives the answers, and the ledger."""
    log = PredictionLog(state, Settings(log_window_s=0.01))
    answers = []
    log.append(CONTRACT, request(0, 0))
    log.flush()
    limit(size)
    ledgers = []
    for number in range(1, 6):
        log.append(CONTRACT, request(0, number), on_written=answers.append)
        with_error = False
        try:
            log.flush()
        except OSError as error:
            with_error = error.errno == errno.EFBIG
        ledgers.append([with_error, *ledger_of(log)])
    unlimit()
    log.close()
    return {"answers": answers, "full": ledgers, "end": ledger_of(log)}


def fill_contracts(state):
    limit(10)
    log = PredictionLog(state, Settings(log_window_s=60.0))
    answers = []
    log.append(CONTRACT, request(0, 0), on_written=answers.append)
    code = 0
    try:
        log.flush()
    except OSError as error:
        code = error.errno
    full = ledger_of(log)
    unlimit()
    log.close()
    return {"answers": answers, "code": code, "full": full, "end": ledger_of(log)}


def fill_sink(state, size):
    """Compact under a limit, and give the message; then without."""
    limit(size)
    message = ""
    try:
        compact(state)
    except DataError as error:
        message = str(error)
    unlimit()
    before = sorted(read_ids(state))
    left = len(segments_in(stream_dir(state, PREDICTIONS)))
    drafts = [str(path) for path in state.rglob(".*.tmp")]
    compact(state)
    return {"message": message, "before": before, "left": left, "drafts": drafts}


@pytest.mark.parametrize("more", [0, 1, 76, 150])
def test_full_for_segments(tmp_path, more):
    probe = PredictionLog(tmp_path / "probe", Settings(log_window_s=60.0))
    probe.append(CONTRACT, request(0, 0))
    probe.flush()
    (path,) = segments_in(stream_dir(tmp_path / "probe", PREDICTIONS))
    size = path.stat().st_size + more
    probe.close()
    # The contract's file is there already, and is larger than all segments.
    answer = in_a_process("fill_segments", tmp_path / "state", size)
    first, rest = rows_of(0), sum(map(rows_of, range(1, 6)))
    assert answer["answers"] == [False] * 5
    held = 0
    for number, (with_error, durable, dropped, in_flight) in enumerate(answer["full"], 1):
        held += rows_of(number)
        assert (with_error, durable, dropped, in_flight) == (True, first, 0, held)
    assert answer["end"] == [first + rest, 0, 0]
    assert read_ids(tmp_path / "state") == ids_of(0, 6)
    done = compact(tmp_path / "state")[PREDICTIONS.name]
    assert (done.rows, done.lost, done.damages) == (first + rest, 0, [])


def test_full_for_contracts(tmp_path):
    answer = in_a_process("fill_contracts", tmp_path)
    rows = rows_of(0)
    assert answer == {
        "answers": [False],
        "code": errno.EFBIG,
        "full": [0, 0, rows],
        "end": [rows, 0, 0],
    }
    assert list((stream_dir(tmp_path, PREDICTIONS) / CONTRACTS_FOLDER).glob(".*")) == []
    assert read_ids(tmp_path) == ids_of(0, 1)


@pytest.mark.parametrize("full_for", ["manifest", "Parquet"])
def test_full_for_the_sink(tmp_path, full_for):
    # A manifest of many workers is larger than a file of few rows, and the other way round.
    workers, requests = (100, 1) if full_for == "manifest" else (1, 400)
    for worker in range(workers):
        log = PredictionLog(tmp_path, Settings(log_window_s=60.0))
        for number in range(requests):
            assert log.append(CONTRACT, request(worker, number))
        log.close()
    expected = set().union(*(ids_of(worker, requests) for worker in range(workers)))
    size = 11_500 if full_for == "manifest" else 12_000
    answer = in_a_process("fill_sink", tmp_path, size)
    ending = {"manifest": ".json", "Parquet": ".parquet"}[full_for]
    first, hint = answer["message"].splitlines()
    assert f"{ending} cannot be written: " in first
    assert hint.startswith("Make room on the disk")
    assert set(answer["before"]) == expected
    assert (answer["left"], answer["drafts"]) == (workers, [])
    assert read_ids(tmp_path) == expected
    assert segments_in(stream_dir(tmp_path, PREDICTIONS)) == []
    named = {file.path for file in manifest_of(tmp_path).files}
    there = {str(path.relative_to(tmp_path / "log")) for path in tmp_path.rglob("*.parquet")}
    assert there == named


def manifest_of(state):
    return read_manifest(log_location(state), PREDICTIONS.name, site_of(state))


def test_rows_beyond_the_budget_are_dropped_and_counted(tmp_path):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0, log_budget_bytes=2_000))
    answers = {number: [] for number in range(12)}
    for number in range(12):
        assert log.append(CONTRACT, request(0, number), on_written=answers[number].append)
        log.flush()
    written = [number for number in answers if answers[number] == [True]]
    dropped = [number for number in answers if answers[number] == [False]]
    assert written
    assert dropped
    assert sorted(written + dropped) == list(range(12))
    rows, lacking = (sum(map(rows_of, numbers)) for numbers in (written, dropped))
    assert ledger_of(log) == [rows, lacking, 0]
    assert log.ledger.dropped_by == {"full": 0, "budget": lacking, "refused": 0}
    log.close()
    compact(tmp_path)
    assert read_ids(tmp_path) == {
        row_id for number in written for row_id in request(0, number).prediction_id
    }
    (worker,) = manifest_of(tmp_path).workers.values()
    assert (worker.rows, worker.totals.budget, worker.lost) == (rows, lacking, 0)
    assert worker.totals.accepted == worker.rows + worker.totals.dropped


def test_drops_after_the_last_segment_are_counted_as_well(tmp_path):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0, log_budget_bytes=600))
    assert log.append(CONTRACT, request(0, 0))
    log.seal()
    assert log.append(CONTRACT, request(0, 6))
    log.close()
    compact(tmp_path)
    (worker,) = manifest_of(tmp_path).workers.values()
    assert (worker.rows, worker.totals.budget, worker.totals.accepted) == (
        rows_of(0),
        rows_of(6),
        rows_of(0) + rows_of(6),
    )


def failing(monkeypatch, name, times, code=errno.EIO):
    """Let the next calls of a function of ``os`` fail; gives how many still will."""
    original, left = getattr(os, name), [times]

    def fails(*arguments):
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return original(*arguments)

    monkeypatch.setattr(os, name, fails)
    return left


@pytest.mark.parametrize(("syncs", "cuts"), [(1, 0), (1, 1), (2, 0), (3, 0), (3, 1), (6, 0)])
def test_a_sync_that_fails(tmp_path, monkeypatch, syncs, cuts):
    log = PredictionLog(tmp_path, Settings(log_window_s=0.01))
    answers = []
    assert log.append(CONTRACT, request(0, 0), on_written=answers.append)
    wait_until(lambda: answers == [True])
    # Where cutting fails too, what was not synced stays in the segment and is written once more.
    failing(monkeypatch, "ftruncate", cuts)
    left = failing(monkeypatch, "fdatasync", syncs)
    assert log.append(CONTRACT, request(0, 1), on_written=answers.append)
    wait_until(lambda: len(answers) == 2)
    assert answers == [True, False]
    assert read_ids(tmp_path) >= ids_of(0, 1)
    wait_until(lambda: log.ledger.in_flight == 0)
    assert left == [0]
    assert log.append(CONTRACT, request(0, 2), on_written=answers.append)
    wait_until(lambda: len(answers) == 3)
    assert answers == [True, False, True]
    log.close()
    assert ledger_of(log) == [sum(map(rows_of, range(3))), 0, 0]
    assert read_ids(tmp_path) == ids_of(0, 3)
    done = compact(tmp_path)[PREDICTIONS.name]
    assert (done.rows, done.lost, done.damages) == (sum(map(rows_of, range(3))), 0, [])
    assert read_ids(tmp_path) == ids_of(0, 3)


def test_half_a_write_that_cannot_be_taken_back(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0))
    assert log.append(CONTRACT, request(0, 0))
    log.flush()
    write = os.write

    def half(handle, content):
        monkeypatch.setattr(os, "write", write)
        write(handle, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", half)
    failing(monkeypatch, "ftruncate", 1)
    assert log.append(CONTRACT, request(0, 1))
    with pytest.raises(OSError, match="No space"):
        log.flush()
    assert log.append(CONTRACT, request(0, 2))
    log.close()
    done = compact(tmp_path)[PREDICTIONS.name]
    assert (done.segments, done.lost, done.damages) == (2, 0, [])
    assert read_ids(tmp_path) == ids_of(0, 3)


def test_a_callback_that_fails_costs_no_row(tmp_path):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0, log_budget_bytes=1_000))

    def gone(is_written):
        raise RuntimeError(f"Event loop is closed; {is_written}")

    answers = []
    for number in range(4):
        assert log.append(CONTRACT, request(0, number), on_written=gone)
        assert log.append(CONTRACT, request(1, number), on_written=answers.append)
    log.flush()
    durable, dropped, in_flight = ledger_of(log)
    assert in_flight == 0
    assert durable
    assert dropped
    assert len(answers) == 4
    log.close()
    assert len(read_ids(tmp_path)) == durable


def test_a_folder_that_cannot_be_listed_costs_no_row(tmp_path, monkeypatch):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0))
    assert log.append(CONTRACT, request(0, 0))
    with monkeypatch.context() as patched:
        patched.setattr(
            "tallystick.prediction_log.write_ahead_log.segments_in",
            lambda _: (_ for _ in ()).throw(OSError(errno.EMFILE, "Too many open files")),
        )
        with pytest.raises(OSError, match="Too many"):
            log.flush()
    assert ledger_of(log) == [0, 0, rows_of(0)]
    log.close()
    assert read_ids(tmp_path) == ids_of(0, 1)


if __name__ == "__main__":
    name, state, *arguments = sys.argv[1:]
    sys.stdout.write(json.dumps(globals()[name](Path(state), *map(int, arguments))))
