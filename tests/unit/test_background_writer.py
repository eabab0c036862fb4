from __future__ import annotations

import threading
import time

import pytest

from tallystick.storage.background_writer import BackgroundWriter


def test_many_threads_lose_nothing():
    written = []
    writer = BackgroundWriter(
        written.extend,
        name="test",
        rows_max=10**6,
        flush_rows=7,
        interval_s=0.001,
    )
    threads = [
        threading.Thread(target=lambda base=base: [writer.append(base + i, 1) for i in range(1000)])
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

    writer = BackgroundWriter(
        write,
        name="test",
        rows_max=10,
        flush_rows=1,
        interval_s=0.005,
    )
    writer.append("row", 1)
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

    writer = BackgroundWriter(
        write,
        group_of=lambda item: item[0],
        name="test",
        rows_max=10,
        flush_rows=10,
        interval_s=60.0,
    )
    answers = []
    for item in ("a1", "b1", "a2", "c1"):
        writer.append(item, 1, lambda is_written, item=item: answers.append((item, is_written)))
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert written == ["a1", "a2", "c1"]
    assert (writer.ledger.durable, writer.ledger.in_flight) == (3, 1)
    assert sorted(answers) == [("a1", True), ("a2", True), ("b1", False), ("c1", True)]
    writer.append("b2", 1)
    writer.append("d1", 1)
    with pytest.raises(OSError, match="disk full"):
        writer.flush()
    assert written == ["a1", "a2", "c1", "d1"]
    disk_full[0] = False
    writer.close()
    assert written == ["a1", "a2", "c1", "d1", "b1", "b2"]


def test_rows_beyond_the_bound_are_dropped_and_counted_by_reason():
    writer = BackgroundWriter(lambda _: None, name="test", rows_max=3, interval_s=60.0)
    assert [writer.append("item", 2) for _ in range(2)] == [True, False]
    assert writer.drop(5, "budget") is False
    writer.close()
    assert writer.append("item", 1) is False
    ledger = writer.ledger
    assert (ledger.accepted, ledger.durable, ledger.in_flight) == (10, 2, 0)
    assert ledger.dropped_by == {"full": 2, "budget": 5, "refused": 1}
