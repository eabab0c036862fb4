"""What audits keep: killed, damaged, on a full disk, two at once; other clocks, and far ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import timedelta

import pyarrow.parquet as pq
import pytest

from served_log import Faults, serve
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import DataError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.compactor import compact, forget_file
from tallystick_monitoring.audit import audit_state
from tallystick_monitoring.audit.audit_run import Audited, audit
from tallystick_monitoring.audit.audit_state import folder_of
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
MIDDLE = BEGIN + timedelta(days=2, hours=5, minutes=7)
END = BEGIN + timedelta(days=4)
KNOWLEDGE = VisibilityClock.KNOWLEDGE


def faults() -> Faults:
    return Faults(value=lambda name, each: 0 if each is None and name.endswith("stock") else each)


@pytest.fixture
def served(champion_repo: Repo) -> Repo:
    contract = champion_contract(champion_repo, MODEL)
    serve(champion_repo, contract, start=BEGIN, end=MIDDLE, faults=faults())
    compact(champion_repo.state_dir)
    serve(champion_repo, contract, start=MIDDLE, end=END, faults=faults())
    return champion_repo


def whole(repo: Repo, **options) -> Audited:
    return audit(repo, MODEL, start=BEGIN, end=END, **options)


def state_files(repo: Repo) -> list[str]:
    folder = folder_of(repo.state_dir, MODEL, KNOWLEDGE)
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_findings_are_a_data_set_of_their_own(served: Repo) -> None:
    found = whole(served).findings
    folder = folder_of(served.state_dir, MODEL, KNOWLEDGE) / "findings"
    table = pq.read_table(folder)
    assert table.num_rows == found.num_rows > 4
    assert set(found.column_names) | {"day"} == set(table.column_names)
    # What has been replaced is gone, and nothing is left under way.
    whole(served, again=True)
    assert pq.read_table(folder).num_rows == found.num_rows


def test_a_span_is_part_of_the_whole(served: Repo) -> None:
    first = audit(served, MODEL, start=BEGIN, end=MIDDLE)
    second = audit(served, MODEL, start=MIDDLE, end=END)
    both = whole(served)
    assert both.report.read == 0
    for name in ("requests", "values", "equal"):
        halves = [getattr(each.report, name) for each in (first, second)]
        assert min(halves) > 0
        assert sum(halves) == getattr(both.report, name)
    assert first.findings.num_rows + second.findings.num_rows == both.findings.num_rows
    assert sum(hour.values for hour in both.report.hours.values()) == both.report.values
    assert sum(hour.unequal for hour in both.report.hours.values()) == both.findings.num_rows
    assert {each.values for each in both.report.features.values()} == {both.report.requests}


@pytest.mark.parametrize("damage", ["", "{}", "no json", "flipped"])
def test_a_damaged_state_is_made_again(served: Repo, damage: str) -> None:
    found = whole(served)
    path = folder_of(served.state_dir, MODEL, KNOWLEDGE) / "state.json"
    path.write_text(damage or path.read_text().replace('"days"', '"dayz"', 1))
    if damage == "flipped":
        path.write_bytes(b"\xff\x00")
    again = whole(served)
    assert again.report.read == found.report.requests
    assert again.findings.equals(found.findings)


def test_a_lost_file_is_made_again_and_a_damaged_one_is_said(served: Repo) -> None:
    found = whole(served)
    folder = folder_of(served.state_dir, MODEL, KNOWLEDGE)
    next(folder.glob("findings/*/*.parquet")).unlink()
    assert whole(served).findings.equals(found.findings)
    path = next(folder.glob("units/*.parquet"))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="--again"):
        whole(served)
    assert whole(served, again=True).findings.equals(found.findings)
    assert whole(served).report.read == 0


DYING = """
import os, signal, sys
from datetime import datetime
from pathlib import Path
from tallystick.definitions.feature_repo import open_repo
from tallystick_monitoring.audit import audit_run, audit_state

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

owner = audit_state if sys.argv[2] == "write_text" else audit_state.AuditState
setattr(owner, sys.argv[2], die)
start, end = (datetime.fromisoformat(each) for each in sys.argv[3:])
audit_run.audit(open_repo(Path(sys.argv[1])), "demo_model", start=start, end=end)
"""
AUDITING = DYING.replace("setattr(owner, sys.argv[2], die)", "")


def started(repo: Repo, code: str, step: str = "_sweep") -> subprocess.Popen[bytes]:
    span = (BEGIN.isoformat(), END.isoformat())
    return subprocess.Popen([sys.executable, "-c", code, str(repo.path), step, *span])


@pytest.mark.parametrize("step", ["write_text", "_sweep"])
def test_killed_while_it_commits(served: Repo, step: str) -> None:
    audit(served, MODEL, start=BEGIN, end=MIDDLE)
    before = state_files(served)
    assert started(served, DYING, step).wait(60) == -signal.SIGKILL
    assert len(state_files(served)) > len(before)
    found = whole(served)
    assert found.findings.equals(whole(served, again=True).findings)
    # One file of units for each day, one of history for each view, the state and its lock.
    names = [name.split("/")[0] for name in state_files(served)]
    assert names.count("units") == 4
    assert names.count("history") == 2
    assert {"state.json", "lock"} <= set(names)


def test_two_at_once(served: Repo) -> None:
    others = [started(served, AUDITING) for _ in range(2)]
    found = whole(served)
    assert [other.wait(60) for other in others] == [0, 0]
    assert whole(served).report.read == 0
    assert whole(served).findings.equals(found.findings)


def test_a_full_disk_is_said_and_what_was_known_stays(served: Repo, monkeypatch) -> None:
    first = audit(served, MODEL, start=BEGIN, end=MIDDLE)
    before = state_files(served)

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(audit_state, "write_text", full)
        with pytest.raises(DataError, match="No space left on device"):
            whole(served)
    assert audit(served, MODEL, start=BEGIN, end=MIDDLE).findings.equals(first.findings)
    assert set(before) <= set(state_files(served))


def test_what_is_forgotten_of_the_log_is_forgotten(served: Repo) -> None:
    compact(served.state_dir)
    found = whole(served)
    (day, *_) = sorted((served.state_dir / "log").rglob("date=*/*.parquet"))
    rows = pq.ParquetFile(day).metadata.num_rows
    forget_file(served.state_dir, str(day.relative_to(served.state_dir / "log")))
    less = whole(served)
    assert less.report.requests == found.report.requests - rows
    assert less.findings.num_rows < found.findings.num_rows


def test_clocks_have_states_of_their_own(served: Repo) -> None:
    known = whole(served)
    by_event = whole(served, clock=VisibilityClock.EVENT)
    assert by_event.report.clock == "event"
    assert by_event.report.causes["late_arrival"] > 0
    assert set(by_event.report.causes) == {"late_arrival", "type_or_precision"}
    assert whole(served).findings.equals(known.findings)
    assert "late_arrival" not in known.report.causes


def test_nothing_and_far_away(served: Repo) -> None:
    for start, end in (
        (BEGIN - timedelta(days=4_000), BEGIN - timedelta(days=3_999)),
        (END + timedelta(days=4_000), END + timedelta(days=4_001)),
        (END, BEGIN),
    ):
        empty = audit(served, MODEL, start=start, end=end)
        assert (empty.report.requests, empty.report.values, empty.findings.num_rows) == (0, 0, 0)
        assert empty.report.effect is None
    always = audit(
        served, MODEL, start=BEGIN - timedelta(days=40_000), end=END + timedelta(days=40_000)
    )
    assert always.findings.num_rows > 0
