from __future__ import annotations

import shutil
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest

from contracts import small_contract
from tallystick.clock import from_us, to_us
from tallystick.errors import ContractError, DamagedError
from tallystick.online_store.decoder import ViewRows
from tallystick.prediction_log.labels import LabelLog, LabelRow
from tallystick.prediction_log.reader import has_records, read_labels, read_log
from tallystick.prediction_log.record import Predictions
from tallystick.prediction_log.writer import BufferedWriter, PredictionLog

START = datetime(2013, 7, 1, tzinfo=UTC)
CONTRACT = small_contract()


def predictions(number, rows=2, moment=START):
    return Predictions(
        prediction_id=[f"{number}-{row}" for row in range(rows)],
        request_us=to_us(moment),
        model_version="1",
        keys={"driver": [2**53 + number] * rows, "amount": [None] * rows},
        views={
            "stats": ViewRows(
                status=["PRESENT"] * rows,
                event_us=[to_us(moment)] * rows,
                created_us=[to_us(moment)] * rows,
                write_us=[None] * rows,
                definition=["ab"] * rows,
                values={},
            )
        },
        values={"stats__trips": [2**60 + 1] * rows, "stats__rate": [0.1] * rows},
        prediction=[0.25] * rows,
        latency_us=100,
    )


def open_log(folder, **changes):
    given = {"rows_max": 1000, "flush_rows": 1000, "flush_s": 60.0}
    return PredictionLog(folder, **given | changes)


def read_all(folder):
    return read_log(folder, CONTRACT.model, start=START, end=START + timedelta(days=1))


def test_what_was_logged_is_read_back_exactly(tmp_path):
    log = open_log(tmp_path)
    for number in range(3):
        assert log.append(CONTRACT, predictions(number, moment=START + timedelta(minutes=number)))
    log.buffer.close()
    (part,) = read_all(tmp_path)
    assert part.contract == CONTRACT
    rows = part.table.to_pylist()
    assert [row["prediction_id"] for row in rows] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert rows[2]["entity.driver"] == 2**53 + 1
    assert rows[0]["request.amount"] is None
    assert rows[0]["feature.stats__trips"] == 2**60 + 1
    assert rows[0]["feature.stats__rate"] != 0.1  # float32, as declared
    assert rows[0]["view.stats.write_time"] is None
    assert rows[0]["request_time"] == START


def test_only_the_time_asked_for_is_read(tmp_path):
    log = open_log(tmp_path)
    for hour in (0, 1, 2):
        log.append(CONTRACT, predictions(hour, moment=START + timedelta(hours=hour)))
    log.buffer.close()
    one = timedelta(hours=1)
    (part,) = read_log(tmp_path, CONTRACT.model, start=START + one, end=START + 2 * one)
    assert set(part.table["prediction_id"].to_pylist()) == {"1-0", "1-1"}
    assert has_records(tmp_path, CONTRACT.model, start=START, end=START + one)
    assert not has_records(tmp_path, CONTRACT.model, start=START - one, end=START)


def test_the_ledger_adds_up_and_the_buffer_is_bounded(tmp_path):
    log = open_log(tmp_path, rows_max=5)
    taken = [log.append(CONTRACT, predictions(number)) for number in range(4)]
    assert taken == [True, True, False, False]
    ledger = log.buffer.ledger
    assert (ledger.accepted, ledger.dropped, ledger.in_flight, ledger.durable) == (8, 4, 4, 0)
    log.buffer.close()
    ledger = log.buffer.ledger
    assert (ledger.accepted, ledger.dropped, ledger.in_flight, ledger.durable) == (8, 4, 0, 4)


def test_a_write_that_fails_keeps_the_rows(tmp_path):
    (tmp_path / "log").write_text("a file where the folder should be")
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    with pytest.raises(OSError, match="log"):
        log.buffer.flush()
    assert log.buffer.ledger.in_flight == 2
    (tmp_path / "log").unlink()
    log.buffer.close()
    assert log.buffer.ledger.durable == 2


def test_many_threads_lose_nothing():
    written = []
    writer = BufferedWriter(
        write=written.extend,
        group_of=lambda _: 0,
        rows_of=lambda _: 1,
        rows_max=10**6,
        flush_rows=7,
        flush_s=0.001,
    )
    threads = [
        threading.Thread(target=lambda base=base: [writer.append(base + i) for i in range(1000)])
        for base in range(0, 4000, 1000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert sorted(written) == list(range(4000))


def test_the_thread_outlives_a_failure():
    written, failures = [], iter([ValueError("a bug"), OSError("disk full")])

    def write(items):
        failure = next(failures, None)
        if failure is not None:
            raise failure
        written.extend(items)

    writer = BufferedWriter(
        write=write,
        group_of=lambda _: 0,
        rows_of=lambda _: 1,
        rows_max=10,
        flush_rows=1,
        flush_s=0.005,
    )
    writer.append("row")
    give_up = time.monotonic() + 10
    while not written and time.monotonic() < give_up:
        time.sleep(0.005)
    writer.close()
    assert written == ["row"]


def test_what_is_written_is_settled_whatever_becomes_of_the_rest():
    written, disk_full = [], [True]

    def write(items):
        if items[0].startswith("b") and disk_full[0]:
            raise OSError("disk full")
        written.extend(items)

    writer = BufferedWriter(
        write=write,
        group_of=lambda item: item[0],
        rows_of=lambda _: 1,
        rows_max=10,
        flush_rows=10,
        flush_s=60.0,
    )
    for item in ("a1", "b1", "a2", "c1"):
        writer.append(item)
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert written == ["a1", "a2", "c1"]
    assert (writer.ledger.durable, writer.ledger.in_flight) == (3, 1)
    disk_full[0] = False
    writer.close()
    assert written == ["a1", "a2", "c1", "b1"]


def test_the_thread_writes_by_itself(tmp_path):
    log = open_log(tmp_path, flush_s=0.01)
    log.append(CONTRACT, predictions(0))
    give_up = time.monotonic() + 10
    while log.buffer.ledger.durable == 0 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert log.buffer.ledger.durable == 2
    log.buffer.close()


def test_a_damaged_file_is_named(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.buffer.close()
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedError, match=path.name):
        read_all(tmp_path)


def test_a_file_of_other_columns_is_refused_with_every_difference(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.buffer.close()
    (path,) = tmp_path.rglob("*.parquet")
    table = pq.read_table(path)
    changed = table.drop_columns(["feature.stats__rate"]).append_column(
        "feature.extra", table["prediction"]
    )
    pq.write_table(changed, path)
    with pytest.raises(ContractError) as caught:
        read_all(tmp_path)
    assert "column feature.extra: expected absent, got double" in str(caught.value)
    assert "column feature.stats__rate: expected float, got absent" in str(caught.value)


def test_labels_known_later_are_not_read(tmp_path):
    log = LabelLog(tmp_path, rows_max=10, flush_rows=10, flush_s=60.0)
    early, late = to_us(START), to_us(START + timedelta(hours=1))
    log.append(CONTRACT, [LabelRow(1, early, prediction_id="a"), LabelRow(0, late, "a")])
    log.append(CONTRACT, [LabelRow(0, early, keys={"driver": 2**53 + 1}, request_us=to_us(START))])
    log.buffer.close()
    labels = read_labels(tmp_path, CONTRACT.model, known_until=from_us(late - 1))
    assert labels is not None
    assert sorted(labels["value"].to_pylist()) == [0, 1]
    assert set(labels["key.driver"].to_pylist()) == {None, 2**53 + 1}
    everything = read_labels(tmp_path, CONTRACT.model, known_until=from_us(late))
    assert everything is not None
    assert everything.num_rows == 3


def test_some_columns_can_be_read_alone(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.buffer.close()
    end = START + timedelta(days=1)
    names = ["request_time", "entity.driver"]
    (part,) = read_log(tmp_path, CONTRACT.model, start=START, end=end, columns=lambda _: names)
    assert part.table.column_names == names
    assert part.table["entity.driver"].to_pylist() == [2**53] * 2


def test_no_labels_is_none(tmp_path):
    assert read_labels(tmp_path, CONTRACT.model, known_until=START) is None


def test_the_contract_is_written_again_when_the_log_was_cleared_away(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.buffer.flush()
    shutil.rmtree(tmp_path / "log")
    log.append(CONTRACT, predictions(1))
    log.buffer.close()
    (part,) = read_all(tmp_path)
    assert part.table["prediction_id"].to_pylist() == ["1-0", "1-1"]


def test_a_folder_that_has_no_file_yet_is_no_damage(tmp_path):
    (tmp_path / "log" / CONTRACT.model / CONTRACT.contract_hash).mkdir(parents=True)
    assert read_all(tmp_path) == []


def test_small_and_large_requests_lie_in_one_file(tmp_path):
    log = open_log(tmp_path)
    many = predictions(7, rows=20)
    whole = predictions(8, rows=20, moment=START + timedelta(minutes=1))
    whole.values = {"stats__trips": np.arange(20) + 2**60, "stats__rate": np.full(20, 0.25)}
    read = whole.views["stats"]
    read.event_us = read.created_us = np.full(20, to_us(START))
    few, some = predictions(0, rows=1), predictions(1, rows=3)
    for part in (few, some, many):
        part.values["stats__rate"] = [0.25] * len(part.prediction_id)
    for part in (few, whole, some, many):
        assert log.append(CONTRACT, part)
    log.buffer.close()
    (part,) = read_all(tmp_path)
    rows = {row["prediction_id"]: row for row in part.table.to_pylist()}
    assert len(rows) == 1 + 20 + 3 + 20
    assert {row["feature.stats__rate"] for row in rows.values()} == {0.25}
    assert [rows[f"8-{row}"]["feature.stats__trips"] for row in range(20)] == [
        2**60 + row for row in range(20)
    ]
    assert {row["view.stats.event_time"] for row in rows.values()} == {START}
    assert rows["1-2"]["entity.driver"] == 2**53 + 1
