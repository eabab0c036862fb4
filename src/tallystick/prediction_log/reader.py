"""Reads the log back: what is in Parquet, and what still is in segments; each row once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tallystick.clock import from_us, to_us
from tallystick.contract import ModelContract
from tallystick.errors import DamagedError
from tallystick.prediction_log.files import read_file
from tallystick.prediction_log.manifest import LogFile, Manifest, WorkerRows, read_manifests
from tallystick.prediction_log.segment import read_segment
from tallystick.prediction_log.sink import Sink
from tallystick.prediction_log.streams import (
    LABELS,
    PREDICTIONS,
    Stream,
    known_site,
    local_contract,
    sink_contract,
    stream_dir,
)
from tallystick.prediction_log.wal import segments_in

if TYPE_CHECKING:
    import pyarrow as pa

Found = TypeVar("Found")
_ATTEMPTS: Final = 5


@dataclass(frozen=True)
class LogPart:
    """The logged predictions of one contract.

    Attributes:
        contract: The contract under which they were made.
        table: One row per prediction, by ``record.log_schema``, ordered by request time.
    """

    contract: ModelContract
    table: pa.Table


def read_log(
    state_dir: Path,
    model: str,
    *,
    start: datetime,
    end: datetime,
    columns: Callable[[ModelContract], Collection[str]] | None = None,
    sink: Sink | None = None,
) -> list[LogPart]:
    """Read the predictions requested in [start, end), one part per contract.

    Args:
        state_dir: The repo's state folder.
        model: Whose predictions.
        start: First request time, included.
        end: Last request time, excluded.
        columns: Which columns to read under a contract, ``request_time`` among them; all by
            default. What is not read costs nothing.
        sink: Where the files are; that of the settings by default.

    Raises:
        DamagedError: A file, manifest or segment cannot be read.
        ContractError: A file's columns are not those of the contract beside it.
        UnavailableError: The sink did not answer.
    """
    return _read(
        PREDICTIONS,
        state_dir,
        model,
        span=(to_us(start), to_us(end)),
        columns=columns,
        sink=sink or Sink.of(state_dir),
    )


def first_time(state_dir: Path, model: str, *, sink: Sink | None = None) -> datetime | None:
    """The first request time in a model's log; None if it is empty. Errors as for the log."""
    where = sink or Sink.of(state_dir)

    def look() -> datetime | None:
        segments, manifests = _found(PREDICTIONS, state_dir, where)
        firsts = [
            file.first_us
            for each in manifests.values()
            for file in each.files
            if file.model == model
        ]
        for _, table in _in_segments(PREDICTIONS, state_dir, model, segments, manifests):
            firsts += table[PREDICTIONS.time].cast("int64").to_pylist()
        return from_us(min(firsts)) if firsts else None

    return _steadily(look, model)


def has_records(state_dir: Path, model: str, *, start: datetime, end: datetime) -> bool:
    """Whether the log may hold predictions requested in [start, end): by its files, not by rows."""
    span = (to_us(start), to_us(end))
    where = Sink.of(state_dir)

    def look() -> bool:
        segments, manifests = _found(PREDICTIONS, state_dir, where)
        return any(True for each in manifests.values() for _ in _files(each, model, span)) or any(
            _between(table, PREDICTIONS.time, span).num_rows
            for _, table in _in_segments(PREDICTIONS, state_dir, model, segments, manifests)
        )

    return _steadily(look, model)


def read_labels(
    state_dir: Path, model: str, *, known_until: datetime, sink: Sink | None = None
) -> pa.Table | None:
    """Read the labels sent for a model that were known by ``known_until``; None if there are none.

    Columns: ``value``, ``known_time``, ``prediction_id``, ``request_time``, ``key.<name>``. Several
    rows for one prediction are corrections: the one known last counts. Errors as for the log.
    """
    import pyarrow as pa

    beginning = to_us(datetime.min.replace(tzinfo=known_until.tzinfo))
    parts = _read(
        LABELS,
        state_dir,
        model,
        span=(beginning, to_us(known_until) + 1),
        columns=None,
        sink=sink or Sink.of(state_dir),
    )
    if not parts:
        return None
    return pa.concat_tables([part.table for part in parts], promote_options="default")


def _read(
    stream: Stream,
    state_dir: Path,
    model: str,
    *,
    span: tuple[int, int],
    columns: Callable[[ModelContract], Collection[str]] | None,
    sink: Sink,
) -> list[LogPart]:
    read: dict[str, Any] = {}

    def look() -> list[LogPart]:
        return _read_once(
            stream, state_dir, model, span=span, columns=columns, sink=sink, read=read
        )

    return _steadily(look, model)


def _steadily(look: Callable[[], Found], model: str) -> Found:
    """What a look at the log gives, again where a compactor moved on meanwhile."""
    for _ in range(_ATTEMPTS):
        # What was found is compacted or merged now; where it is, is in a newer manifest.
        with suppress(FileNotFoundError):
            return look()
    raise DamagedError(
        f"A file of the log of model {model!r} that the manifest names is gone.",
        hint="Restore it from a backup; or take it out of the log:  tally log forget FILE",
    )


def _found(stream: Stream, state_dir: Path, sink: Sink) -> tuple[list[Path], dict[str, Manifest]]:
    """Segments and manifests; in this order, as a segment that goes in between is in the latter."""
    return segments_in(stream_dir(state_dir, stream)), read_manifests(sink, stream.name)


def _read_once(
    stream: Stream,
    state_dir: Path,
    model: str,
    *,
    span: tuple[int, int],
    columns: Callable[[ModelContract], Collection[str]] | None,
    sink: Sink,
    read: dict[str, Any],
) -> list[LogPart]:
    """Read the log by one listing.

    Args:
        stream: See :func:`_read`, as the others.
        state_dir: See there.
        model: See there.
        span: See there.
        columns: See there.
        sink: See there.
        read: File → its rows, of earlier looks, and then also of this one.

    Raises:
        FileNotFoundError: A compactor has moved on since the listing.
    """
    import pyarrow as pa

    segments, manifests = _found(stream, state_dir, sink)
    found: dict[str, tuple[ModelContract, list[Any]]] = {}
    # Before files, and of these the newest first: what will be gone soon, is read soon.
    for contract, table in _in_segments(stream, state_dir, model, segments, manifests):
        kept = table if columns is None else table.select(list(columns(contract)))
        found.setdefault(contract.contract_hash, (contract, []))[1].append(kept)
    files = [file for each in manifests.values() for file in _files(each, model, span)]
    for file in sorted(files, key=lambda file: file.last_us, reverse=True):
        contract = sink_contract(sink, stream, model, file.contract)
        if file.path not in read:
            wanted = None if columns is None else list(columns(contract))
            read[file.path] = read_file(
                sink, file.path, stream.schema(contract), wanted, footer=file.footer
            )
        found.setdefault(file.contract, (contract, []))[1].append(read[file.path])
    parts = []
    for _, (contract, tables) in sorted(found.items()):
        whole = pa.concat_tables(_between(table, stream.time, span) for table in tables)
        if whole.num_rows:
            parts.append(LogPart(contract, whole.sort_by(stream.time).combine_chunks()))
    return parts


def _files(manifest: Manifest, model: str, span: tuple[int, int]) -> Iterator[LogFile]:
    """Files that can hold times of [start, end)."""
    for file in manifest.files:
        if file.model == model and file.first_us < span[1] and file.last_us >= span[0]:
            yield file


def _in_segments(
    stream: Stream,
    state_dir: Path,
    model: str,
    paths: list[Path],
    manifests: Mapping[str, Manifest],
) -> Iterator[tuple[ModelContract, pa.Table]]:
    """Rows that are not in Parquet yet, by contract."""
    if not paths:
        return
    workers = dict(manifests.get(known_site(state_dir), Manifest()).workers)
    payloads: dict[str, list[Any]] = {}
    for path in paths:
        before = workers.get(path.parent.name, WorkerRows())
        if int(path.stem) <= before.segment:
            continue
        segment = read_segment(path, expected=before.after, totals=before.totals)
        workers[segment.worker] = before.with_segment(segment)
        for frame in segment.frames:
            payloads.setdefault(frame.contract, []).append(frame.payload)
    for contract_hash, parts in payloads.items():
        contract = local_contract(state_dir, stream, contract_hash)
        if contract.model == model:
            yield contract, stream.table(contract, parts)


def _between(table: pa.Table, column: str, span: tuple[int, int]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    times = table[column]
    start, end = (pa.scalar(each, pa.int64()) for each in span)
    in_us = times.cast(pa.int64())
    return table.filter(pc.and_(pc.greater_equal(in_us, start), pc.less(in_us, end)))
