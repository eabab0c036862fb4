from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from contracts import small_contract
from tallystick.clock import from_us, to_us
from tallystick.errors import ContractError, DamagedError
from tallystick.online_store.view_decoder import ViewRows
from tallystick.prediction_log.compactor import MERGED_FILES, Retention, compact
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.log_reader import day_versions, first_time, read_labels, read_log
from tallystick.prediction_log.log_writer import LabelLog, PredictionLog
from tallystick.prediction_log.manifest import read_manifests
from tallystick.prediction_log.record import Predictions
from tallystick.prediction_log.sent_labels import LabelRow
from tallystick.prediction_log.streams import PREDICTIONS, log_location
from tallystick.settings import Settings

START = datetime(2013, 7, 1, tzinfo=UTC)
CONTRACT = small_contract()
DAY = timedelta(days=1)


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
    return PredictionLog(folder, Settings(**{"log_window_s": 60.0} | changes))


@pytest.fixture(params=["segments", "parquet"])
def settled(request):
    """What is done with a closed log before it is read: nothing, or it is compacted."""
    return compact if request.param == "parquet" else lambda _: None


def read_all(folder):
    return read_log(folder, CONTRACT.model, start=START, end=START + timedelta(days=1))


def test_what_was_logged_is_read_back_exactly(tmp_path, settled):
    log = open_log(tmp_path)
    for number in range(3):
        assert log.append(CONTRACT, predictions(number, moment=START + timedelta(minutes=number)))
    log.close()
    settled(tmp_path)
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


def test_only_the_requested_time_is_read(tmp_path, settled):
    log = open_log(tmp_path)
    for hour in (0, 1, 2):
        log.append(CONTRACT, predictions(hour, moment=START + timedelta(hours=hour)))
    log.close()
    settled(tmp_path)
    one = timedelta(hours=1)
    (part,) = read_log(tmp_path, CONTRACT.model, start=START + one, end=START + 2 * one)
    assert set(part.table["prediction_id"].to_pylist()) == {"1-0", "1-1"}
    assert first_time(tmp_path, CONTRACT.model) == START


def test_the_version_of_a_day_changes_with_its_rows_only(tmp_path):
    log = open_log(tmp_path)
    versions = []
    for number, day in enumerate((0, 1, 0)):
        log.append(CONTRACT, predictions(number, moment=START + timedelta(days=day)))
        log.flush()
        versions.append(day_versions(tmp_path, CONTRACT.model))
        (part,) = read_log(
            tmp_path, CONTRACT.model, start=START + timedelta(days=day), end=START + 2 * DAY
        )
        assert f"{number}-0" in part.table["prediction_id"].to_pylist()
    log.close()
    first, second, third = versions
    assert list(first) == ["2013-07-01"]
    assert list(second) == list(third) == ["2013-07-01", "2013-07-02"]
    assert second["2013-07-01"] == first["2013-07-01"] != third["2013-07-01"]
    assert third["2013-07-02"] == second["2013-07-02"]


def test_the_ledger_adds_up_and_the_buffer_is_bounded(tmp_path):
    log = open_log(tmp_path, log_buffer_rows_max=5)
    taken = [log.append(CONTRACT, predictions(number)) for number in range(4)]
    assert taken == [True, True, False, False]
    ledger = log.ledger
    assert (ledger.accepted, ledger.dropped, ledger.in_flight, ledger.durable) == (8, 4, 4, 0)
    log.close()
    ledger = log.ledger
    assert (ledger.accepted, ledger.dropped, ledger.in_flight, ledger.durable) == (8, 4, 0, 4)


def test_a_write_that_fails_keeps_the_rows(tmp_path):
    (tmp_path / "wal").write_text("a file where the folder should be")
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    with pytest.raises(OSError, match="wal"):
        log.flush()
    assert log.ledger.in_flight == 2
    (tmp_path / "wal").unlink()
    log.close()
    assert log.ledger.durable == 2


def test_the_thread_writes_by_itself(tmp_path):
    log = open_log(tmp_path, log_window_s=0.01)
    log.append(CONTRACT, predictions(0))
    give_up = time.monotonic() + 10
    while log.ledger.durable == 0 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert log.ledger.durable == 2
    log.close()


def test_a_damaged_file_is_named(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.close()
    compact(tmp_path)
    (path,) = tmp_path.rglob("*.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DamagedError, match=path.name):
        read_all(tmp_path)


def test_a_file_of_other_columns_is_refused_with_every_difference(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.close()
    compact(tmp_path)
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


def test_labels_known_later_are_not_read(tmp_path, settled):
    log = LabelLog(tmp_path)
    early, late = to_us(START), to_us(START + timedelta(hours=1))
    log.append(CONTRACT, [LabelRow(1, early, prediction_id="a"), LabelRow(0, late, "a")])
    log.append(CONTRACT, [LabelRow(0, early, keys={"driver": 2**53 + 1}, request_us=to_us(START))])
    log.close()
    settled(tmp_path)
    labels = read_labels(tmp_path, CONTRACT.model, known_until=from_us(late - 1))
    assert labels is not None
    assert sorted(labels["value"].to_pylist()) == [0, 1]
    assert set(labels["key.driver"].to_pylist()) == {None, 2**53 + 1}
    everything = read_labels(tmp_path, CONTRACT.model, known_until=from_us(late))
    assert everything is not None
    assert everything.num_rows == 3


def test_some_columns_can_be_read_alone(tmp_path, settled):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.close()
    settled(tmp_path)
    end = START + timedelta(days=1)
    names = ["request_time", "entity.driver"]
    (part,) = read_log(tmp_path, CONTRACT.model, start=START, end=end, columns=lambda _: names)
    assert part.table.column_names == names
    assert part.table["entity.driver"].to_pylist() == [2**53] * 2


def test_no_labels_is_none(tmp_path):
    assert read_labels(tmp_path, CONTRACT.model, known_until=START) is None


def test_small_and_large_requests_lie_in_one_file(tmp_path, settled):
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
    log.close()
    settled(tmp_path)
    (part,) = read_all(tmp_path)
    rows = {row["prediction_id"]: row for row in part.table.to_pylist()}
    assert len(rows) == 1 + 20 + 3 + 20
    assert {row["feature.stats__rate"] for row in rows.values()} == {0.25}
    assert [rows[f"8-{row}"]["feature.stats__trips"] for row in range(20)] == [
        2**60 + row for row in range(20)
    ]
    assert {row["view.stats.event_time"] for row in rows.values()} == {START}
    assert rows["1-2"]["entity.driver"] == 2**53 + 1


def test_of_a_share_of_the_entities_all_is_logged_and_of_others_nothing(tmp_path):
    log = PredictionLog(tmp_path, Settings(log_window_s=60.0, log_share=0.3))
    for number in range(200):
        for row in range(2):
            one = predictions(number, rows=1)
            one.prediction_id = [f"{number}-{row}"]
            assert log.append(CONTRACT, one)
    many = predictions(0, rows=200)
    many.keys = {"driver": [2**53 + number for number in range(200)], "amount": [None] * 200}
    many.prediction_id = [f"{number}-many" for number in range(200)]
    log.append(CONTRACT, many)
    log.close()
    (part,) = read_all(tmp_path)
    rows = {}
    for row in part.table.to_pylist():
        rows.setdefault(row["entity.driver"] - 2**53, set()).add(row["prediction_id"])
    assert 30 < len(rows) < 90
    assert all(ids == {f"{n}-0", f"{n}-1", f"{n}-many"} for n, ids in rows.items())
    assert log.ledger.accepted == part.table.num_rows


def test_old_days_are_removed_and_counted(tmp_path):
    log = open_log(tmp_path)
    for day in range(4):
        log.append(CONTRACT, predictions(day, moment=START + timedelta(days=day)))
    log.close()
    compact(tmp_path)
    sizes = read_manifests(log_location(tmp_path), "predictions").popitem()[1].bytes
    age = datetime.now(UTC) - START - timedelta(hours=1)
    compact(tmp_path, retention=Retention(time=age))
    assert first_time(tmp_path, CONTRACT.model) == START + timedelta(days=1)
    compact(tmp_path, retention=Retention(bytes=sizes // 2))
    assert first_time(tmp_path, CONTRACT.model) == START + timedelta(days=2)
    ledger = ledger_of(tmp_path, PREDICTIONS)
    assert (ledger.accepted, ledger.in_parquet, ledger.expired, ledger.missing) == (8, 4, 4, 0)
    compact(tmp_path)
    assert len(list((tmp_path / "log").rglob("*.parquet"))) == 2


def test_small_files_of_a_day_are_merged(tmp_path):
    for number in range(MERGED_FILES):
        log = open_log(tmp_path)
        log.append(CONTRACT, predictions(number, moment=START + timedelta(minutes=number)))
        log.close()
        compact(tmp_path)
    compact(tmp_path)
    assert len(list((tmp_path / "log").rglob("*.parquet"))) == 1
    (part,) = read_all(tmp_path)
    assert part.table["prediction_id"].to_pylist() == [
        f"{number}-{row}" for number in range(MERGED_FILES) for row in range(2)
    ]


def test_a_waiting_caller_is_notified_once_it_is_on_disk(tmp_path):
    log = open_log(tmp_path)
    answers = []
    written = threading.Event()

    def on_written(is_written):
        (part,) = read_all(tmp_path)
        answers.append((is_written, part.table.num_rows))
        written.set()

    assert log.append(CONTRACT, predictions(0), on_written=on_written)
    assert written.wait(10)
    assert answers == [(True, 2)]
    log.close()
    assert log.append(CONTRACT, predictions(1), on_written=on_written) is False
    assert log.ledger.dropped_by == {"full": 0, "budget": 0, "refused": 2}


def test_rows_that_no_column_takes_keep_nothing_else_from_parquet(tmp_path):
    log = open_log(tmp_path)
    log.append(CONTRACT, predictions(0))
    log.flush()
    odd = predictions(1)
    odd.model_version = 5
    log.append(CONTRACT, odd)
    log.flush()
    log.append(CONTRACT, predictions(2))
    log.close()
    done = compact(tmp_path)["predictions"]
    assert (done.rows, done.lost, len(done.damages)) == (4, 2, 1)
    (part,) = read_all(tmp_path)
    assert part.table["prediction_id"].to_pylist() == ["0-0", "0-1", "2-0", "2-1"]
    ledger = ledger_of(tmp_path, PREDICTIONS)
    assert (ledger.accepted, ledger.in_parquet, ledger.lost, ledger.missing) == (6, 4, 2, 0)
    assert len(list((tmp_path / "wal" / "damaged").rglob("*.sealed"))) == 1


def test_workers_that_have_ended_are_summed_up(tmp_path):
    for number in range(3):
        log = open_log(tmp_path, log_buffer_rows_max=2)
        log.append(CONTRACT, predictions(number))
        log.append(CONTRACT, predictions(number))
        log.seal()
        log.close()
        compact(tmp_path)
    (manifest,) = read_manifests(log_location(tmp_path), "predictions").values()
    assert len(manifest.workers) == 1
    past = manifest.past
    assert (past.rows, past.totals.accepted, past.totals.full) == (4, 8, 4)
    ledger = ledger_of(tmp_path, PREDICTIONS)
    assert (ledger.accepted, ledger.in_parquet, ledger.dropped["full"]) == (12, 6, 6)
    assert (ledger.missing, ledger.died) == (0, 0)


def test_duckdb_reads_the_log_by_the_documented_query(tmp_path):
    for number in range(MERGED_FILES + 1):
        log = open_log(tmp_path)
        log.append(CONTRACT, predictions(number, moment=START + timedelta(days=number % 2)))
        log.close()
        compact(tmp_path)
    text = Path(__file__).parents[2].joinpath("docs", "prediction-log.md").read_text("utf-8")
    query = text.split("```sql\n")[1].split("```")[0].replace("'STATE/log'", f"'{tmp_path}/log'")
    *statements, select = (each for each in query.split(";\n") if each.strip())
    with duckdb.connect() as connection:
        for statement in statements:
            connection.execute(statement)
        ids = [row[0] for row in connection.sql(f"SELECT prediction_id FROM ({select})").fetchall()]
    (part,) = read_log(tmp_path, CONTRACT.model, start=START, end=START + timedelta(days=2))
    assert sorted(ids) == sorted(part.table["prediction_id"].to_pylist())
    assert len(list((tmp_path / "log").rglob("*.parquet"))) > 2  # replaced ones are still there
