"""How things stand with a repo, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator

from tallystick.bundle import read_champion
from tallystick.check import ONLINE_STORE
from tallystick.clock import from_us
from tallystick.errors import TallystickError
from tallystick.materialize import marks_path, read_marks
from tallystick.prediction_log.writer import log_dir
from tallystick.records import Decision, Incident, MonitorReport, load_records
from tallystick.repo import Repo


def status(repo: Repo) -> Iterator[str]:
    """Describe stores, and for each model its champion, log, incidents and last decision."""
    yield f"repo {repo.path} (project {repo.project}), state in {repo.state_dir}"
    yield from _online(repo)
    for name in sorted(repo.models):
        yield f"model {name}"
        for line in _model(repo, name):
            yield f"  {line}"


def _online(repo: Repo) -> Iterator[str]:
    kind = str(getattr(repo.store.config.online_store, "type", None))
    if kind != ONLINE_STORE:
        yield f"online store: {kind}, which Feast fills; nobody notes up to when"
        return
    marks = read_marks(marks_path(repo.state_dir))
    if not marks:
        yield "online store: nothing materialized yet; run  tally materialize"
        return
    for view, mark in sorted(marks.items()):
        yield f"online view {view}: known until {from_us(mark.until_us).isoformat()}"


def _model(repo: Repo, name: str) -> Iterator[str]:
    try:
        champion = read_champion(repo.state_dir, name)
        yield f"champion: version {champion.version}, contract {champion.contract_hash[:12]}"
    except TallystickError as error:
        yield str(error).replace("\n", " ")
    files = list((log_dir(repo.state_dir) / name).glob("*/[!.]*.parquet"))
    size = sum(file.stat().st_size for file in files)
    yield f"log: {len(files):,} files, {size / 1e6:.1f} MB"
    looks = load_records(repo.state_dir, MonitorReport, model=name)
    if looks:
        parity = looks[-1].parity
        yield (
            f"last look {looks[-1].at.isoformat()}: {parity.equal:,} of {parity.values:,} values "
            f"equal, {parity.unexplained} unexplained"
        )
    for incident in load_records(repo.state_dir, Incident, model=name):
        state = "open" if incident.is_open else "closed"
        yield (
            f"incident ({state}): {incident.view} {incident.cause} from "
            f"{incident.start.isoformat()} to {incident.end.isoformat()}"
        )
    decisions = load_records(repo.state_dir, Decision, model=name)
    if decisions:
        last = decisions[-1]
        yield f"last decision {last.at.isoformat()}: {last.outcome}: {last.reason}"
