"""How things stand with a repo, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tallystick.cli.check import ONLINE_STORE
from tallystick.clock import from_us
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import TallystickError
from tallystick.materialization.materializer import Materializer
from tallystick.model_bundle.bundle import read_champion
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.manifest import read_manifests
from tallystick.prediction_log.streams import PREDICTIONS, STREAMS, Stream, log_location
from tallystick.records.record_store import Decision, Incident, MonitorReport, load_records

_DROPPED: Final = {
    "full": "the buffer was full: the disk is full or slow",
    "budget": "the disk budget was used up: no compactor runs, or the log's location is down",
    "refused": "the server was ending",
}


def status(repo: Repo) -> Iterator[str]:
    """Describe stores, and for each model its champion, log, incidents and last decision."""
    yield f"repo {repo.path} (project {repo.project}), state in {repo.state_dir}"
    yield from _online(repo)
    for stream in STREAMS:
        yield from _log(repo, stream)
    for name in sorted(repo.models):
        yield f"model {name}"
        for line in _model(repo, name):
            yield f"  {line}"


def _online(repo: Repo) -> Iterator[str]:
    kind = str(getattr(repo.store.config.online_store, "type", None))
    if kind != ONLINE_STORE:
        yield f"online store: {kind}, which Feast materializes; it does not record up to when"
        return
    try:
        materializer = Materializer(repo)
        marks = materializer.marks()
    except TallystickError as error:
        yield "✗ online store: " + str(error).replace("\n", " ")
        return
    for view in sorted(materializer.views):
        mark = marks.get(view)
        if mark is None:
            yield f"online view {view}: not materialized yet; run  tally materialize"
            continue
        until = from_us(mark.until_us).isoformat()
        source = f"{mark.files:,} source files" if mark.files != 1 else "1 source file"
        if mark.table_version is not None:
            source = f"version {mark.table_version} of the Delta table"
        yield f"online view {view}: rows known until {until}, {source}"


def _log(repo: Repo, stream: Stream) -> Iterator[str]:
    """The ledger of a stream, and what is wrong with it."""
    try:
        ledger = ledger_of(repo.state_dir, stream)
    except TallystickError as error:
        yield f"✗ log of {stream.name}: " + str(error).replace("\n", " ")
        return
    parts = [
        f"{ledger.accepted:,} accepted",
        f"{ledger.in_parquet:,} in Parquet",
        f"{ledger.in_segments:,} in segments",
        f"{ledger.in_flight:,} in flight",
        f"{sum(ledger.dropped.values()):,} dropped",
    ]
    parts += [f"{ledger.imported:,} imported"] if ledger.imported else []
    parts += [f"{ledger.forgotten:,} forgotten"] if ledger.forgotten else []
    parts += [f"{ledger.expired:,} expired"] if ledger.expired else []
    yield f"log of {stream.name}: {', '.join(parts)}"
    for reason, rows in ledger.dropped.items():
        if rows:
            yield f"  ✗ {rows:,} dropped ({_DROPPED[reason]})"
    if ledger.died:
        yield (
            f"  ! {ledger.died:,} workers died, with {ledger.cut_off:,} rows in memory when they "
            "last wrote, and what came in the commit window after that"
        )
    if ledger.damages:
        yield (
            f"  ✗ {ledger.damages:,} damaged parts of segments, with {ledger.lost:,} rows in them"
        )
    if ledger.missing:
        yield f"  ✗ the ledger does not add up: {ledger.missing:+,} rows"


def _model(repo: Repo, name: str) -> Iterator[str]:
    try:
        champion = read_champion(repo.state_dir, name)
        yield f"champion: version {champion.version}, contract {champion.contract_hash[:12]}"
    except TallystickError as error:
        yield str(error).replace("\n", " ")
    files = [
        file
        for manifest in read_manifests(log_location(repo.state_dir), PREDICTIONS.name).values()
        for file in manifest.files
        if file.model == name
    ]
    rows, size = sum(file.rows for file in files), sum(file.bytes for file in files)
    yield f"log: {rows:,} predictions in {len(files):,} Parquet files, {size / 1e6:.1f} MB"
    looks = load_records(repo.state_dir, MonitorReport, model=name)
    if looks:
        parity = looks[-1].parity
        yield (
            f"last look {looks[-1].at.isoformat()}: {parity.equal:,} of {parity.values:,} values "
            f"equal, {parity.unexplained} unexplained"
        )
    for incident in load_records(repo.state_dir, Incident, model=name):
        yield (
            f"incident ({incident.status}): {incident.view} {incident.cause} from "
            f"{incident.start.isoformat()} to {incident.end.isoformat()}"
        )
    decisions = load_records(repo.state_dir, Decision, model=name)
    if decisions:
        last = decisions[-1]
        yield f"last decision {last.at.isoformat()}: {last.outcome}: {last.reason}"
