"""Reads the log: what is in Parquet, and what is still in segments; each row once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import DAY_US, from_us, to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_view import digest
from tallystick.errors import ContractError, DamagedError
from tallystick.prediction_log.frames import Frame
from tallystick.prediction_log.manifest import (
    Answer,
    LogFile,
    Manifest,
    read_manifests,
    retried,
    uncompacted,
)
from tallystick.prediction_log.parquet_files import Columns, read_file
from tallystick.prediction_log.streams import (
    LABELS,
    PREDICTIONS,
    Stream,
    compacted_contract,
    local_contract,
    log_location,
    site_of,
    stream_dir,
    tables_of,
)
from tallystick.prediction_log.write_ahead_log import segments_in

if TYPE_CHECKING:
    import pyarrow as pa

_FIRST_US: Final = to_us(datetime.min.replace(tzinfo=UTC))


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
    columns: Columns | None = None,
    damaged: dict[str, DamagedFile] | None = None,
) -> list[LogPart]:
    """Read the predictions requested in [start, end), one part per contract.

    Args:
        state_dir: The repo's state folder.
        model: Whose predictions.
        start: First request time, included.
        end: Last request time, excluded.
        columns: Which columns to read under a contract, ``request_time`` among them; all by
            default. Columns that are not read cost nothing.
        damaged: Collects, by path, the files that cannot be read, so that all others are. Files
            that are in it already are left out. None makes a damaged file an error.

    Raises:
        DamagedError: A file, manifest or segment cannot be read.
        ContractError: A file's columns are not those of the contract beside it.
        UnavailableError: The log's store did not answer.
    """
    read: dict[str, Any] = {}
    span = (to_us(start), to_us(end))
    return _read(state_dir, PREDICTIONS, model, lambda log: log.parts(span, columns, read, damaged))


def read_labels(state_dir: Path, model: str, *, known_until: datetime) -> pa.Table | None:
    """Read the labels sent for a model that were known by ``known_until``; None if there are none.

    Columns: ``value``, ``known_time``, ``prediction_id``, ``request_time``, ``key.<name>``. Several
    rows for one prediction are corrections: the one known last counts. Errors as for the log.
    """
    import pyarrow as pa

    span = (_FIRST_US, to_us(known_until) + 1)
    parts = _read(state_dir, LABELS, model, lambda log: log.parts(span, None, {}, None))
    if not parts:
        return None
    return pa.concat_tables([part.table for part in parts], promote_options="default")


def day_versions(state_dir: Path, model: str) -> dict[str, str]:
    """Day (YYYY-MM-DD) → a text that changes whenever that day's rows change.

    It also changes when only their files do, because they were compacted or merged. Errors as for
    the log, except that files are not read.
    """

    def versions(log: _Listing) -> dict[str, str]:
        marks: dict[str, list[str]] = {}
        for worker, frame in log.waiting():
            for day in range(frame.first_us // DAY_US, frame.last_us // DAY_US + 1):
                text = f"rows of {worker}: {frame.rows} from {frame.first}"
                marks.setdefault(from_us(day * DAY_US).date().isoformat(), []).append(text)
        for file in log.files:
            marks.setdefault(file.day, []).append(f"{file.path} {file.footer}")
        return {day: digest("\n".join(sorted(found)), length=16) for day, found in marks.items()}

    return _read(state_dir, PREDICTIONS, model, versions)


def first_time(state_dir: Path, model: str) -> datetime | None:
    """The first request time in a model's log; None if it is empty. Errors as for the log."""

    def first(log: _Listing) -> datetime | None:
        firsts = [file.first_us for file in log.files]
        firsts += [frame.first_us for _, frame in log.waiting()]
        return from_us(min(firsts)) if firsts else None

    return _read(state_dir, PREDICTIONS, model, first)


def logged_contract(state_dir: Path, model: str, contract_hash: str) -> ModelContract:
    """A contract under which predictions were logged.

    Raises:
        DamagedError: It is gone, or cannot be read.
    """
    with suppress(FileNotFoundError, DamagedError):
        return compacted_contract(log_location(state_dir), PREDICTIONS, model, contract_hash)
    return local_contract(state_dir, PREDICTIONS, contract_hash)


class _Listing:
    """The segments and files of a model as they are at one moment."""

    def __init__(self, state_dir: Path, stream: Stream, model: str) -> None:
        self._state_dir = state_dir
        self._stream = stream
        self._model = model
        self._location = log_location(state_dir)
        # In this order: the rows of a segment that is compacted in between are in the manifests.
        self._segments = segments_in(stream_dir(state_dir, stream))
        self._manifests = read_manifests(self._location, stream.name)
        self.files = [
            file
            for manifest in self._manifests.values()
            for file in manifest.files
            if file.model == model
        ]

    def waiting(self) -> Iterator[tuple[str, Frame]]:
        """The frames that are not in Parquet yet, each with its worker."""
        if not self._segments:
            return
        own = self._manifests.get(site_of(self._state_dir), Manifest())
        for segment in uncompacted(self._segments, dict(own.workers)):
            for frame in segment.frames:
                contract = local_contract(self._state_dir, self._stream, frame.contract)
                if contract.model == self._model:
                    yield segment.worker, frame

    def parts(
        self,
        span: tuple[int, int],
        columns: Columns | None,
        read: dict[str, tuple[ModelContract, pa.Table]],
        damaged: dict[str, DamagedFile] | None,
    ) -> list[LogPart]:
        """Rows of [start, end), one part per contract.

        Args:
            span: Start and end.
            columns: See :func:`read_log`.
            read: File → contract and rows; files that are in it are not read again.
            damaged: See :func:`read_log`.

        Raises:
            FileNotFoundError: A compactor has removed a file since the listing.
        """
        found: dict[str, tuple[ModelContract, list[pa.Table]]] = {}
        # Segments first, then the newest files: the ones that a compactor removes first.
        frames = (frame for _, frame in self.waiting() if _overlaps(frame, span))
        for contract, table in tables_of(self._state_dir, self._stream, frames):
            selected = table if columns is None else table.select(list(columns(contract)))
            found[contract.contract_hash] = (contract, [selected])
        for file in sorted(self.files, key=lambda file: file.last_us, reverse=True):
            if not _overlaps(file, span) or (damaged and file.path in damaged):
                continue
            try:
                if file.path not in read:
                    read[file.path] = read_file(self._location, self._stream, file, columns)
            except (DamagedError, ContractError) as error:
                if damaged is None:
                    raise
                damaged[file.path] = DamagedFile(
                    path=str(self._location / file.path),
                    contract=file.contract,
                    rows=file.rows,
                    first_us=file.first_us,
                    last_us=file.last_us,
                    problem=str(error).replace("\n", " "),
                )
            else:
                contract, table = read[file.path]
                found.setdefault(file.contract, (contract, []))[1].append(table)
        parts = []
        for _, (contract, tables) in sorted(found.items()):
            time = self._stream.time
            whole = _in_order([_between(table, time, span) for table in tables], time)
            if whole.num_rows:
                parts.append(LogPart(contract, whole.combine_chunks()))
        return parts


def _read(state_dir: Path, stream: Stream, model: str, use: Callable[[_Listing], Answer]) -> Answer:
    """Use a listing, and a new one if a compactor removed a file meanwhile."""
    return retried(lambda: use(_Listing(state_dir, stream, model)), f"The log of model {model!r}")


def _overlaps(rows: Frame | LogFile, span: tuple[int, int]) -> bool:
    return rows.first_us < span[1] and rows.last_us >= span[0]


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
    """Rows of several tables by time; sorting is slow, and skipped where they are sorted."""
    import numpy as np
    import pyarrow as pa

    def first(table: pa.Table) -> int:
        return int(table[column][0].value) if table.num_rows else 0

    whole = pa.concat_tables(sorted(tables, key=first))
    times = whole[column].cast(pa.int64()).to_numpy()
    return whole if bool((np.diff(times) >= 0).all()) else whole.sort_by(column)
