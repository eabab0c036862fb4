"""Writers of one folder in processes of their own, while others read it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa

from tallystick.offline_store.sources.file_source import open_source
from tallystick.offline_store.sources.parquet_writer import append
from visible_rows import all_rows

WRITER = """
import sys
from types import SimpleNamespace
import pyarrow as pa
from tallystick.offline_store.sources.parquet_writer import append
path, first, times, rows = sys.argv[1], *map(int, sys.argv[2:])
for number in range(first, first + times):
    table = pa.table({"writer": [first] * rows, "number": [number] * rows})
    append(SimpleNamespace(path=path, field_mapping={}), table, repo_path=None)
    print(number, flush=True)
"""


def start(path, first, times, rows):
    arguments = [sys.executable, "-c", WRITER, str(path), *map(str, (first, times, rows))]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def numbers_in(path):
    """The numbers of whole appends that a reader sees; half of one fails."""
    files = open_source(SimpleNamespace(path=str(path)), None)
    return Counter(all_rows(files)["number"].to_pylist())


def seed(path):
    append(
        SimpleNamespace(path=str(path), field_mapping={}),
        pa.table({"writer": [0] * 50, "number": [0] * 50}),
        repo_path=None,
    )


def check_writers(path, *, read_meanwhile):
    seed(path)
    writers = [start(path, 1000 * number, 15, 50) for number in (1, 2, 3)]
    seen = 0
    while read_meanwhile and any(writer.poll() is None for writer in writers):
        found = numbers_in(path)
        assert set(found.values()) == {50}
        assert len(found) >= seen
        seen = len(found)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    every = {0} | {1000 * number + at for number in (1, 2, 3) for at in range(15)}
    assert numbers_in(path) == dict.fromkeys(every, 50)


def test_writers_of_a_folder_lose_nothing_and_readers_see_whole_appends(tmp_path):
    check_writers(tmp_path, read_meanwhile=True)


def test_writers_of_one_file_lose_nothing(tmp_path):
    check_writers(tmp_path / "rows.parquet", read_meanwhile=False)


def test_a_killed_writer_leaves_nothing_half_written(tmp_path):
    seed(tmp_path)
    written = {0}
    halves = 0
    for attempt in range(1, 30):
        writer = start(tmp_path, 1000 * attempt, 1000, 2_000_000)
        # Killed while its draft is there: it has begun and not ended.
        while not list(tmp_path.glob(".written-*.tmp")):
            assert writer.poll() is None
            time.sleep(0.001)
        os.kill(writer.pid, signal.SIGKILL)
        written |= {int(line) for line in writer.stdout}
        writer.stdout.close()
        writer.wait()
        found = numbers_in(tmp_path)
        assert written <= set(found)
        assert {rows for number, rows in found.items() if number} <= {2_000_000}
        halves = len(list(tmp_path.glob(".written-*.tmp")))
        for draft in tmp_path.glob(".written-*.tmp"):
            draft.unlink()
        if halves:
            break
    assert halves
