from __future__ import annotations

import threading
import time

import pytest

from tallystick.storage.background_writer import BufferedWriter


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
