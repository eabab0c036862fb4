"""The log's Parquet files in an object store, against a real S3 server."""

from __future__ import annotations

import signal
from uuid import uuid4

import pytest

from log_processes import forge
from log_rows import CONTRACTS, ids_of, read_ids, request
from s3_server import free_port
from tallystick.errors import UnavailableError
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.manifest import read_manifests
from tallystick.prediction_log.streams import PREDICTIONS, log_location, stream_dir
from tallystick.prediction_log.write_ahead_log import segments_in
from tallystick.settings import Settings, settings


@pytest.fixture
def log_folder(bucket, monkeypatch, tmp_path):
    """A folder of the bucket, as the settings name it."""
    monkeypatch.setenv("TALLYSTICK_LOG_LOCATION", bucket.uri(f"log-{uuid4().hex[:8]}"))
    monkeypatch.setenv("TALLYSTICK_LOG_ENDPOINT", bucket.endpoint)
    settings.cache_clear()
    yield log_location(tmp_path)
    monkeypatch.undo()
    settings.cache_clear()


def append(state, worker, requests=3):
    log = PredictionLog(state, Settings(log_window_s=60.0))
    for number in range(requests):
        assert log.append(CONTRACTS[worker % 2], request(worker, number))
    log.close()
    return ids_of(worker, requests)


def segments(state):
    return segments_in(stream_dir(state, PREDICTIONS))


def files_of(log):
    """Parquet files that are there, and those that a manifest names."""
    manifests = read_manifests(log, PREDICTIONS.name).values()
    named = {file.path for each in manifests for file in each.files}
    named |= {path for each in manifests for path in each.garbage}
    there = {file.path.removeprefix(f"{log.path}/") for file in (log / PREDICTIONS.name).files()}
    return {name for name in there if name.endswith(".parquet")}, named


def test_what_was_compacted_is_read_back(log_folder, tmp_path):
    expected = set()
    for worker in range(9):  # enough for files to be merged
        expected |= append(tmp_path, worker)
        assert read_ids(tmp_path) == expected
        compact(tmp_path)
        assert segments(tmp_path) == []
        assert read_ids(tmp_path) == expected
    there, named = files_of(log_folder)
    assert there == named
    assert not (tmp_path / "log").exists()


def test_two_sites_into_one_sink(log_folder, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    one, other = append(here, 0), append(there, 1)
    compact(here)
    compact(there)
    later = append(here, 2)
    assert read_ids(there) == one | other
    assert read_ids(here) == one | other | later
    compact(here)
    assert read_ids(there) == one | other | later
    assert len(read_manifests(log_folder, PREDICTIONS.name)) == 2


KILLS = [
    ("tallystick.prediction_log.compactor:write_rows", "before"),
    ("tallystick.prediction_log.compactor:write_rows", "after"),
    ("tallystick.prediction_log.compactor:write_manifest", "before"),
    ("tallystick.prediction_log.compactor:write_manifest", "after"),
    ("tallystick.storage.locations:Location.files", "after"),
    ("tallystick.storage.locations:Location.write_bytes", "after"),
    ("pathlib:Path.unlink", "before"),
]


def test_a_killed_compactor(log_folder, tmp_path):
    expected = set()
    # The forge inherits the settings, and opens the store in each process anew.
    with forge(tmp_path / "reports") as forger:
        for worker, (function, when) in enumerate(KILLS):
            expected |= append(tmp_path, worker)
            killed = {"function": function, "call": 1, "when": when}
            assert (
                forger.run("compact_once", state=str(tmp_path), kill_at=killed) == -signal.SIGKILL
            )
            assert read_ids(tmp_path) == expected
    compact(tmp_path)
    assert read_ids(tmp_path) == expected
    assert segments(tmp_path) == []
    there, named = files_of(log_folder)
    assert there == named


@pytest.mark.usefixtures("log_folder")
def test_a_store_that_does_not_answer(tmp_path, monkeypatch):
    expected = append(tmp_path, 0)
    compact(tmp_path)
    expected |= append(tmp_path, 1)
    before = segments(tmp_path)
    with monkeypatch.context() as away:
        away.setenv("TALLYSTICK_LOG_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        settings.cache_clear()
        for use in (compact, read_ids):
            with pytest.raises(UnavailableError, match=r"The store of s3://.* did not answer"):
                use(tmp_path)
        assert segments(tmp_path) == before
    settings.cache_clear()
    assert read_ids(tmp_path) == expected
    compact(tmp_path)
    assert read_ids(tmp_path) == expected
    assert segments(tmp_path) == []
