from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tallystick.storage.atomic_files import (
    drafted,
    remove_abandoned,
    replacing,
    scratch_folder,
    write_text,
)

WRITER = """
import sys, time
from pathlib import Path
from tallystick.storage.atomic_files import replacing, scratch_folder

target = Path(sys.argv[1])
with scratch_folder(target) as folder, replacing(target) as draft:
    (folder / "part").write_text("half")
    draft.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
OTHER = """
import sys
from pathlib import Path
from tallystick.storage.atomic_files import write_text
write_text(Path(sys.argv[1]), "whole")
"""


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def started(target):
    """A writer that has a draft of ``target`` under way."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout.readline() == "writing\n"
    return writer


def killed(writer):
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()


def test_a_file_is_replaced_whole(tmp_path):
    write_text(tmp_path / "a" / "x.json", "one")
    write_text(tmp_path / "a" / "x.json", "two")
    assert (tmp_path / "a" / "x.json").read_text() == "two"
    assert names_in(tmp_path / "a") == ["x.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "x", "old")

    def fail():
        with replacing(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert (tmp_path / "x").read_text() == "old"
    assert names_in(tmp_path) == ["x"]


def test_a_scratch_folder_goes_with_what_is_in_it_and_may_stay(tmp_path):
    with scratch_folder(tmp_path / "x") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "part").write_text("")
        assert folder.parent == tmp_path
        assert folder.name.startswith(".x.")
    assert names_in(tmp_path) == []
    with scratch_folder(tmp_path / "x") as folder:
        (folder / "part").write_text("")
        folder.rename(tmp_path / "x")
    assert names_in(tmp_path) == ["x"]


def test_what_a_killed_writer_left_goes_with_the_next_process_that_writes_there(tmp_path):
    killed(started(tmp_path / "x"))
    assert len(names_in(tmp_path)) == 3
    subprocess.run([sys.executable, "-c", OTHER, str(tmp_path / "y")], check=True)
    assert names_in(tmp_path) == ["y"]


def test_drafts_of_living_writers_stay(tmp_path):
    (tmp_path / ".x.not-a-draft.tmp").write_text("")
    (tmp_path / ".12345678.tmp").write_text("")
    writer = started(tmp_path / "x")
    try:
        before = names_in(tmp_path)
        with replacing(tmp_path / "own") as draft:
            subprocess.run([sys.executable, "-c", OTHER, str(tmp_path / "y")], check=True)
            assert names_in(tmp_path) == sorted([*before, draft.name, "y"])
            draft.write_text("whole")
    finally:
        killed(writer)
    assert (tmp_path / "own").read_text() == "whole"
    remove_abandoned(tmp_path)
    assert names_in(tmp_path) == [".12345678.tmp", ".x.not-a-draft.tmp", "own", "y"]


def test_a_duplicate_holds_the_lock_beyond_the_draft(tmp_path):
    with drafted(tmp_path / "x") as (draft, lock):
        draft.write_text("whole")
        duplicate = os.dup(lock)
    draft = tmp_path / ".x.01234567.tmp"
    (tmp_path / "x").rename(draft)
    remove_abandoned(tmp_path)
    assert draft.exists()
    os.close(duplicate)
    remove_abandoned(tmp_path)
    assert not draft.exists()


def write_often(folder, number):
    for count in range(200):
        write_text(folder / f"{number}-{count}", "whole")


def test_no_writer_loses_its_draft_to_others_that_look_for_abandoned_ones(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_often, args=(tmp_path, each)) for each in range(2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        remove_abandoned(tmp_path)
        time.sleep(0)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(names_in(tmp_path)) == 400
