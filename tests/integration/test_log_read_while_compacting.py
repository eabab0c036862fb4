"""A log that is compacted while others look at it."""

from __future__ import annotations

import fcntl

import pytest

from log_rows import CONTRACTS, END, MODEL, START, ids_of, read_ids, request
from tallystick.errors import DamagedError
from tallystick.prediction_log import log_reader
from tallystick.prediction_log.compactor import MERGED_FILES, compact
from tallystick.prediction_log.log_reader import read_labels, read_log
from tallystick.prediction_log.log_writer import LabelLog, PredictionLog
from tallystick.prediction_log.sent_labels import LabelRow
from tallystick.prediction_log.streams import LABELS, PREDICTIONS, stream_dir
from tallystick.prediction_log.write_ahead_log import segments_in
from tallystick.settings import Settings


def append(state, worker, requests=2):
    log = PredictionLog(state, Settings(log_window_s=60.0))
    for number in range(requests):
        assert log.append(CONTRACTS[0], request(worker, number))
        log.seal()
    log.close()
    return ids_of(worker, requests)


def test_a_locked_segment_is_not_skipped(tmp_path):
    expected = append(tmp_path, 0, requests=3)
    held = segments_in(stream_dir(tmp_path, PREDICTIONS))[1]
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        compact(tmp_path)
        assert segments_in(stream_dir(tmp_path, PREDICTIONS))[0] == held
        assert read_ids(tmp_path) == expected
    compact(tmp_path)
    assert segments_in(stream_dir(tmp_path, PREDICTIONS)) == []
    assert read_ids(tmp_path) == expected


def test_a_reading_that_is_overtaken_at_every_file_ends(tmp_path, monkeypatch):
    expected = set()
    for worker in range(MERGED_FILES - 1):
        expected |= append(tmp_path, worker)
        compact(tmp_path)
    expected |= append(tmp_path, 100)
    read_file = log_reader.read_file
    workers = iter(range(101, 10**6))

    def slow(*arguments, **named):
        table = read_file(*arguments, **named)
        compact(tmp_path)
        expected.update(append(tmp_path, next(workers)))
        return table

    monkeypatch.setattr(log_reader, "read_file", slow)
    before = set(expected)
    parts = read_log(tmp_path, MODEL, start=START, end=END)
    found = [row for part in parts for row in part.table["prediction_id"].to_pylist()]
    assert len(found) == len(set(found))
    assert before <= set(found) <= expected


def test_a_damaged_file_keeps_no_label_from_being_compacted(tmp_path):
    expected = set()
    for worker in range(MERGED_FILES):
        if worker == 1:
            (path, *_) = (tmp_path / "log").rglob("*.parquet")
            path.write_bytes(path.read_bytes()[:-20])
        if worker == MERGED_FILES - 1:
            labels = LabelLog(tmp_path, Settings(log_window_s=60.0))
            assert labels.append(CONTRACTS[0], [LabelRow(1, request(0, 0).request_us, "a")])
            labels.close()
        expected |= append(tmp_path, worker)
        if worker < MERGED_FILES - 1:
            compact(tmp_path)
    for _ in range(2):
        with pytest.raises(DamagedError, match=path.name):
            compact(tmp_path)
        assert segments_in(stream_dir(tmp_path, PREDICTIONS)) == []
        assert segments_in(stream_dir(tmp_path, LABELS)) == []
    table = read_labels(tmp_path, MODEL, known_until=END)
    assert table is not None
    assert table["prediction_id"].to_pylist() == ["a"]
