"""An audit reads of history what is new: files that it knows are not read again."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audits import in_steps
from served_log import Faults, serve
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import DataError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.audit.audit_state import folder_of
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
SPAN = {"start": BEGIN, "end": BEGIN + timedelta(days=2)}
HOUR_NS = 3_600_000_000_000


@pytest.fixture
def source(champion_repo: Repo) -> Path:
    """The source of a view, as a folder of three files that were written an hour ago."""
    contract = champion_contract(champion_repo, MODEL)
    serve(champion_repo, contract, start=BEGIN, end=SPAN["end"], faults=Faults())
    folder = champion_repo.path / "data" / "shop_stats.parquet"
    table = pq.read_table(folder)
    folder.unlink()
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.parquet", part(table, number, 3))
    return folder


def part(table: pa.Table, number: int, of: int) -> pa.Table:
    return table.take(pa.array(np.arange(number, table.num_rows, of)))


def write(path: Path, table: pa.Table, *, age_ns: int = HOUR_NS) -> None:
    pq.write_table(table, path, compression="none", use_dictionary=False)
    written_ns = time.time_ns() - age_ns
    os.utime(path, ns=(written_ns, written_ns))


def hash_files(repo: Repo) -> list[Path]:
    folder = folder_of(repo.state_dir, MODEL, VisibilityClock.KNOWLEDGE)
    return sorted(folder.glob("history/*.parquet"))


def test_a_known_file_is_not_read_again(champion_repo: Repo, source: Path) -> None:
    found = audit(champion_repo, MODEL, **SPAN)
    assert found.report.read > 0
    path = source / "0.parquet"
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = audit(champion_repo, MODEL, **SPAN)
    assert again.report.read == 0
    assert again.findings.equals(found.findings)
    with pytest.raises(DataError, match="shop_stats"):
        audit(champion_repo, MODEL, again=True, **SPAN)


def test_files_that_are_merged_or_split_change_nothing(champion_repo: Repo, source: Path) -> None:
    audit(champion_repo, MODEL, **SPAN)
    table = pq.read_table(source)
    for path in source.iterdir():
        path.unlink()
    write(source / "all.parquet", table)
    assert audit(champion_repo, MODEL, **SPAN).report.read == 0
    (source / "all.parquet").unlink()
    for number in range(5):
        write(source / f"part-{number}.parquet", part(table, number, 5))
    assert audit(champion_repo, MODEL, **SPAN).report.read == 0


def test_a_new_file_reopens_what_its_rows_can_change(champion_repo: Repo, source: Path) -> None:
    first = audit(champion_repo, MODEL, **SPAN)
    late = pq.read_table(source / "0.parquet").filter(pa.compute.field("shop") == "shop-a")
    late = late.set_column(
        late.column_names.index("load"), "load", pa.array(late["load"].to_numpy() + 1)
    )
    created = late["created_time"].cast(pa.int64()).to_numpy() + 1
    created = pa.array(created).cast(late["created_time"].type)
    late = late.set_column(late.column_names.index("created_time"), "created_time", created)
    write(source / "late.parquet", late)
    found = in_steps(champion_repo, **SPAN)
    assert 0 < found.report.reopened < first.report.read
    assert found.report.causes["correction_not_propagated"] > 0
    (source / "late.parquet").unlink()
    gone = in_steps(champion_repo, **SPAN)
    assert gone.report.reopened == found.report.reopened
    assert gone.report.causes == first.report.causes


def test_many_new_files_do_not_make_many_files_of_state(champion_repo: Repo, source: Path) -> None:
    table = pq.read_table(source)
    audit(champion_repo, MODEL, **SPAN)
    for number in range(12):
        write(source / f"more-{number}.parquet", table[number : number + 1])
        audit(champion_repo, MODEL, **SPAN)
    assert len(hash_files(champion_repo)) <= 2 * 5
    before = hash_files(champion_repo)
    assert audit(champion_repo, MODEL, **SPAN).report.read == 0
    assert hash_files(champion_repo) == before


def test_a_file_that_was_just_written_is_hashed_again(champion_repo: Repo, source: Path) -> None:
    path = source / "0.parquet"
    table = pq.read_table(path)
    # Its time of change lies ahead, so it does not tell one change from the next.
    write(path, table, age_ns=-HOUR_NS)
    first = audit(champion_repo, MODEL, **SPAN)
    status = path.stat()
    load = pa.array(table["load"].to_numpy() + 0.25)
    write(path, table.set_column(table.column_names.index("load"), "load", load))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    found = in_steps(champion_repo, **SPAN)
    assert found.report.reopened > 0
    assert found.findings.num_rows > first.findings.num_rows
