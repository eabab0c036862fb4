"""Reads the log back: what is in Parquet, and what still is in segments; each row once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tallystick.clock import from_us, to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_view import digest
from tallystick.errors import ContractError, DamagedError, TallystickError
from tallystick.prediction_log.log_location import Sink
from tallystick.prediction_log.manifest import LogFile, Manifest, WorkerRows, read_manifests
from tallystick.prediction_log.parquet_files import read_file
from tallystick.prediction_log.segment import read_segment
from tallystick.prediction_log.streams import (
    LABELS,
    PREDICTIONS,
    Stream,
    known_site,
    local_contract,
    sink_contract,
    stream_dir,
)
from tallystick.prediction_log.write_ahead_log import segments_in

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


@dataclass(frozen=True)
class DamagedFile:
    """A Parquet file of the log that cannot be read.

    Attributes:
        path: Where it is, as its owner would write it.
        contract: Hash of the contract of all its rows.
        rows: How many rows it has, by the manifest.
        first_us: The first of their times, in microseconds.
        last_us: The last.
        problem: What is wrong with it.
    """

    path: str
    contract: str
    rows: int
    first_us: int
    last_us: int
    problem: str


def read_log(
    state_dir: Path,
    model: str,
    *,
    start: datetime,
    end: datetime,
    columns: Callable[[ModelContract], Collection[str]] | None = None,
    damaged: dict[str, DamagedFile] | None = None,
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
        damaged: Where to put, by path, the files that cannot be read, so that all others are; None
            to refuse. Files that are in it already are left out.
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
        damaged=damaged,
    )


def day_versions(state_dir: Path, model: str, *, sink: Sink | None = None) -> dict[str, str]:
    """Day (YYYY-MM-DD) → a text that is another one whenever that day's rows are.

    It is another one too when only their files are: when they were compacted or merged. Errors as
    for the log, but for files, which are not read.
    """
    where = sink or Sink.of(state_dir)

    def look() -> dict[str, str]:
        segments, manifests = _found(PREDICTIONS, state_dir, where)
        marks: dict[str, list[str]] = {}
        for _, table in _in_segments(PREDICTIONS, state_dir, model, segments, manifests):
            for day, rows in _rows_by_day(table[PREDICTIONS.time]):
                marks.setdefault(day, []).append(f"{rows} rows in segments")
        for each in manifests.values():
            for file in each.files:
                if file.model == model:
                    marks.setdefault(file.day, []).append(f"{file.path} {file.footer}")
        return {day: digest("\n".join(sorted(found)), length=16) for day, found in marks.items()}

    return _steadily(look, model)


def logged_contract(
    state_dir: Path, model: str, contract_hash: str, *, sink: Sink | None = None
) -> ModelContract:
    """A contract under which predictions were logged.

    Raises:
        DamagedError: It is gone, or cannot be read.
    """
    where = sink or Sink.of(state_dir)
    with suppress(FileNotFoundError, DamagedError):
        return sink_contract(where, PREDICTIONS, model, contract_hash)
    return local_contract(state_dir, PREDICTIONS, contract_hash)


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
    damaged: dict[str, DamagedFile] | None = None,
) -> list[LogPart]:
    read: dict[str, Any] = {}

    def look() -> list[LogPart]:
        return _read_once(
            stream,
            state_dir,
            model,
            span=span,
            columns=columns,
            sink=sink,
            read=read,
            damaged=damaged,
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
    damaged: dict[str, DamagedFile] | None,
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
        damaged: Where to put files that cannot be read; None to refuse them.

    Raises:
        FileNotFoundError: A compactor has moved on since the listing.
    """
    segments, manifests = _found(stream, state_dir, sink)
    found: dict[str, tuple[ModelContract, list[Any]]] = {}
    # Before files, and of these the newest first: what will be gone soon, is read soon.
    for contract, table in _in_segments(stream, state_dir, model, segments, manifests):
        kept = table if columns is None else table.select(list(columns(contract)))
        found.setdefault(contract.contract_hash, (contract, []))[1].append(kept)
    files = [file for each in manifests.values() for file in _files(each, model, span)]
    for file in sorted(files, key=lambda file: file.last_us, reverse=True):
        if damaged and file.path in damaged:
            continue
        try:
            contract = sink_contract(sink, stream, model, file.contract)
            if file.path not in read:
                wanted = None if columns is None else list(columns(contract))
                read[file.path] = read_file(
                    sink, file.path, stream.schema(contract), wanted, footer=file.footer
                )
        except (DamagedError, ContractError) as error:
            if damaged is None:
                raise
            damaged[file.path] = _as_damaged(sink, file, error)
            continue
        found.setdefault(file.contract, (contract, []))[1].append(read[file.path])
    parts = []
    for _, (contract, tables) in sorted(found.items()):
        whole = _in_order([_between(table, stream.time, span) for table in tables], stream.time)
        if whole.num_rows:
            parts.append(LogPart(contract, whole.combine_chunks()))
    return parts


def _as_damaged(sink: Sink, file: LogFile, error: TallystickError) -> DamagedFile:
    return DamagedFile(
        path=sink.text(file.path),
        contract=file.contract,
        rows=file.rows,
        first_us=file.first_us,
        last_us=file.last_us,
        problem=str(error).replace("\n", " "),
    )


def _rows_by_day(times: pa.ChunkedArray) -> Iterator[tuple[str, int]]:
    import pyarrow.compute as pc

    for each in pc.value_counts(pc.strftime(times, format="%Y-%m-%d")).to_pylist():
        yield each["values"], each["counts"]


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

    in_us = table[column].cast(pa.int64())
    ends = pc.min_max(in_us).as_py()
    if table.num_rows and span[0] <= ends["min"] and ends["max"] < span[1]:
        return table
    start, end = (pa.scalar(each, pa.int64()) for each in span)
    return table.filter(pc.and_(pc.greater_equal(in_us, start), pc.less(in_us, end)))


def _in_order(tables: list[pa.Table], column: str) -> pa.Table:
    """Rows of several tables by time; to sort them costs most where they are sorted already."""
    import numpy as np
    import pyarrow as pa

    def first(table: pa.Table) -> int:
        return int(table[column][0].value) if table.num_rows else 0

    whole = pa.concat_tables(sorted(tables, key=first))
    times = whole[column].cast(pa.int64()).to_numpy()
    return whole if bool((np.diff(times) >= 0).all()) else whole.sort_by(column)
