"""The compactor: moves rows from segments of the write-ahead log to Parquet, each exactly once.

One compactor at a time works on a state folder. It reads the segments whose workers are done with
them, writes their rows to files that no manifest names yet, commits all of that with one new
manifest, and only then removes the segments. The next compactor finds the files of a killed one in
the plan that it left, and removes them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import duration_us, from_us, process_clock
from tallystick.errors import DamagedError, InputError, StateError
from tallystick.prediction_log.manifest import (
    LogFile,
    Manifest,
    WorkerRows,
    read_manifest,
    write_manifest,
)
from tallystick.prediction_log.parquet_files import footer_of, read_file, write_rows
from tallystick.prediction_log.segment import Segment, read_segment
from tallystick.prediction_log.streams import (
    STREAMS,
    Stream,
    contract_folder,
    local_contract,
    log_location,
    site_of,
    stream_dir,
    tables_of,
    wal_dir,
)
from tallystick.prediction_log.write_ahead_log import OPEN, segments_in
from tallystick.storage.atomic_files import write_text
from tallystick.storage.locks import abandoned, file_lock

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.contract import ModelContract

COMMIT_ROWS: Final = 200_000
"""Rows of segments from which one commit is made."""
MERGED_FILES: Final = 8
"""Small files of one day and contract that are merged into one."""
MERGED_ROWS: Final = 1_000_000
"""Rows from which a file is not small any more."""
WAIT_S: Final = 60.0
"""Seconds that an import, an export or ``tally log forget`` waits for a running compactor."""
DAMAGED: Final = "damaged"
"""Folder for damaged segments."""
_LOCK: Final = "compactor"
_PLAN: Final = "plan.json"


@dataclass(slots=True)
class CompactionReport:
    """What a compaction did to one stream.

    Attributes:
        segments: Segments that are in Parquet now.
        rows: Their rows.
        lost: Rows in them that were damaged.
        damages: The damaged parts of segments, in words.
        files: Files written.
        expired: Rows removed by the retention.
    """

    segments: int = 0
    rows: int = 0
    lost: int = 0
    damages: list[str] = field(default_factory=list)
    files: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Retention:
    """How long Parquet files stay.

    Attributes:
        time: Age from which they are removed, by the process clock; None for never.
        bytes: Size of all files of a stream from which the oldest are removed; None for no bound.
    """

    time: timedelta | None = None
    bytes: int | None = None


def compact(
    state_dir: Path, *, retention: Retention | None = None
) -> dict[str, CompactionReport] | None:
    """Move the rows of all segments that are not open into Parquet files.

    Args:
        state_dir: The repo's state folder.
        retention: How long files stay; for ever by default.

    Returns:
        Stream → what was done; None if another compactor is running.

    Raises:
        DamagedError: A manifest, contract or file cannot be read; no rows are removed.
        DataError: The log's store refused, or the disk is full; segments stay.
        UnavailableError: The log's store did not answer; segments stay until it does.
    """
    with file_lock(wal_dir(state_dir) / _LOCK, timeout_s=0) as is_acquired:
        if not is_acquired:
            return None
        compactors = [Compactor(state_dir, stream) for stream in STREAMS]
        for compactor in compactors:
            compactor.compact()
        # Last, so that a damaged file, which cannot be merged, keeps no segment from Parquet.
        for compactor in compactors:
            compactor.expire(retention or Retention())
        for compactor in compactors:
            compactor.merge()
        return {compactor.stream.name: compactor.report for compactor in compactors}


@contextmanager
def only_compactor(state_dir: Path, stream: Stream) -> Iterator[Compactor]:
    """The compactor of a stream, for the block; a running one is waited for.

    Raises:
        StateError: It runs for too long.
    """
    with file_lock(wal_dir(state_dir) / _LOCK, timeout_s=WAIT_S) as is_acquired:
        if not is_acquired:
            raise StateError(
                f"The compactor of {wal_dir(state_dir)} has been running for {WAIT_S:.0f} s.",
                hint="Try again once it is done.",
            )
        yield Compactor(state_dir, stream)


def forget_file(state_dir: Path, path: str) -> int:
    """Take a file out of the log, for example a damaged one, and count its rows as forgotten.

    Args:
        state_dir: The repo's state folder.
        path: The file's path, as messages have it, or within the log.

    Returns:
        How many rows it had.

    Raises:
        InputError: The log has no such file.
        StateError: A compactor runs for too long.
    """
    for stream in STREAMS:
        with only_compactor(state_dir, stream) as compactor:
            rows = compactor.forget(path)
        if rows is not None:
            return rows
    raise InputError(f"The log has no file {path}.", hint="Give its path as the message had it.")


class Compactor:
    """Commits to one stream of one state folder; the caller holds the compactor's lock."""

    def __init__(self, state_dir: Path, stream: Stream) -> None:
        self._state_dir = state_dir
        self.stream = stream
        self._location = log_location(state_dir)
        self._site = site_of(state_dir, create=True)
        self._folder = stream_dir(state_dir, stream)
        self._manifest = read_manifest(self._location, stream.name, self._site)
        self.report = CompactionReport()
        self._remove_unused()

    def compact(self) -> None:
        """Move segments to Parquet, about :data:`COMMIT_ROWS` rows at a time."""
        taken: list[tuple[Path, Segment]] = []
        rows = 0
        workers = dict(self._manifest.workers)
        locked: set[str] = set()
        for path in segments_in(self._folder):
            if path.parent.name in locked:
                continue
            with abandoned(path) as handle:
                if handle is None:
                    # The worker's later segments wait: their numbers would mark it as compacted.
                    locked.add(path.parent.name)
                    continue
                before = workers.get(path.parent.name, WorkerRows())
                if int(path.stem) <= before.segment:
                    path.unlink(missing_ok=True)  # committed by a compactor that was killed then
                    continue
                segment = read_segment(path, expected=before.after, totals=before.totals)
            workers[segment.worker] = before.with_segment(segment)
            taken.append((path, segment))
            rows += segment.rows
            if rows >= COMMIT_ROWS:
                self._commit_segments(taken)
                taken, rows = [], 0
        if taken:
            self._commit_segments(taken)
        self._remove_empty_folders()

    def add(self, contract: ModelContract, table: pa.Table, name: str) -> int:
        """Add rows that no worker wrote.

        Args:
            contract: The contract of all of them.
            table: The rows, in the stream's schema.
            name: Of the import; rows are added once for each name.

        Returns:
            How many were added; 0 if that name was added before.
        """
        if name in self._manifest.imported:
            return 0
        imported = {**self._manifest.imported, name: table.num_rows}
        self._commit(self._written([(contract, table)]), imported=imported)
        return int(table.num_rows)

    def forget(self, path: str) -> int | None:
        """Take a file out and return its number of rows; None if there is no such file."""
        for file in self._manifest.files:
            there = self._location / file.path
            if path in {file.path, str(there), there.path}:
                self._commit((), gone=[file], forgotten=file.rows)
                return file.rows
        return None

    def export(self, model: str, copy: Callable[[LogFile], int]) -> int:
        """Copy the files of a model that were not copied before, and mark each one afterwards.

        Args:
            model: Whose files.
            copy: Copies one file, and returns how many rows it copied.

        Returns:
            How many rows were copied.
        """
        rows = 0
        for file in self._manifest.files:
            if file.model == model and not file.is_exported:
                rows += copy(file)
                self._commit([file.model_copy(update={"is_exported": True})], gone=[file])
        return rows

    def merge(self) -> None:
        """Merge small files of one contract and day."""
        groups: dict[tuple[str, str, str, bool], list[LogFile]] = {}
        for file in self._manifest.files:
            if file.rows < MERGED_ROWS:
                key = (file.model, file.contract, file.day, file.is_exported)
                groups.setdefault(key, []).append(file)
        for files in groups.values():
            if len(files) >= MERGED_FILES:
                self._merge_files(files)

    def expire(self, retention: Retention) -> None:
        """Remove files by their age, and the oldest beyond the bound on their size."""
        gone = []
        if retention.time is not None:
            limit = process_clock().now_us() - duration_us(retention.time)
            gone = [file for file in self._manifest.files if file.last_us < limit]
        left = self._manifest.bytes - sum(file.bytes for file in gone)
        if retention.bytes is not None:
            for file in sorted(self._manifest.files, key=lambda file: file.last_us):
                if left <= retention.bytes:
                    break
                if file not in gone:
                    gone.append(file)
                    left -= file.bytes
        if gone:
            rows = sum(file.rows for file in gone)
            self.report.expired += rows
            self._commit((), gone=gone, expired=rows)

    def _remove_unused(self) -> None:
        """Remove the files that the last commit replaced, and those of a killed compactor."""
        plan = self._folder / _PLAN
        named = {file.path for file in self._manifest.files}
        # A plan that cannot be read costs the room of a few files that no reader opens.
        with suppress(FileNotFoundError, ValueError):
            for path in json.loads(plan.read_text("utf-8")):
                if path not in named:
                    (self._location / path).remove()
        plan.unlink(missing_ok=True)
        if self._manifest.garbage:
            self._commit(())

    def _commit_segments(self, taken: list[tuple[Path, Segment]]) -> None:
        def tables() -> list[tuple[ModelContract, pa.Table]]:
            frames = (frame for _, segment in taken for frame in segment.frames)
            return tables_of(self._state_dir, self.stream, frames)

        try:
            decoded = tables()
        except DamagedError:
            # The values of a frame may fit no column although its checksum is right.
            for _, segment in taken:
                self._discard_unusable(segment)
            decoded = tables()
        workers = dict(self._manifest.workers)
        for path, segment in taken:
            before = workers.get(segment.worker, WorkerRows())
            workers[segment.worker] = before.with_segment(segment)
            if segment.damages:
                self._put_aside(path)
        self._commit(self._written(decoded), workers=workers)
        self.report.segments += len(taken)
        for path, segment in taken:
            self.report.rows += segment.rows
            self.report.lost += segment.lost
            self.report.damages += [
                f"{path.parent.name}/{path.name}: bytes {each.start} to {each.end}: {each.why}"
                for each in segment.damages
            ]
            path.unlink(missing_ok=True)

    def _discard_unusable(self, segment: Segment) -> None:
        """Discard the frames that cannot become a table; a damaged contract discards nothing."""
        for frame in list(segment.frames):
            contract = local_contract(self._state_dir, self.stream, frame.contract)
            try:
                self.stream.table(contract, [frame.payload])
            except DamagedError as error:
                segment.discard(frame, error.what)

    def _merge_files(self, files: list[LogFile]) -> None:
        import pyarrow as pa

        files = sorted(files, key=lambda file: (file.first_us, file.path))
        try:
            read = [read_file(self._location, self.stream, file) for file in files]
        except FileNotFoundError as error:
            raise DamagedError(
                f"A file of the log that the manifest names is gone: {error}",
                hint="Restore it from a backup, or take it out of the log:  tally log forget FILE",
            ) from error
        merged = self._written([(read[0][0], pa.concat_tables(table for _, table in read))])
        is_exported = {"is_exported": files[0].is_exported}
        self._commit([file.model_copy(update=is_exported) for file in merged], gone=files)

    def _written(self, tables: Iterable[tuple[ModelContract, pa.Table]]) -> list[LogFile]:
        """Write rows to files that no manifest names yet, one per contract and day."""
        run = uuid.uuid4().hex[:12]
        planned = []
        for contract, table in tables:
            folder = contract_folder(self.stream, contract.model, contract.contract_hash)
            for day, part in _by_day(table, self.stream.time):
                times = part[self.stream.time]
                first_us, last_us = times[0].value, times[-1].value
                path = f"{folder}/date={day}/{first_us}_{last_us}_{run}.parquet"
                planned.append((contract, day, part, path, first_us, last_us))
        write_text(self._folder / _PLAN, json.dumps([each[3] for each in planned]))
        files = []
        for contract, day, part, path, first_us, last_us in planned:
            self._write_contract(contract)
            size = write_rows(self._location / path, part)
            files.append(
                LogFile(
                    path=path,
                    model=contract.model,
                    contract=contract.contract_hash,
                    day=day,
                    first_us=first_us,
                    last_us=last_us,
                    rows=part.num_rows,
                    bytes=size,
                    footer=footer_of(self._location / path),
                )
            )
        self.report.files += len(files)
        return files

    def _write_contract(self, contract: ModelContract) -> None:
        known = {(file.model, file.contract) for file in self._manifest.files}
        if (contract.model, contract.contract_hash) not in known:
            folder = contract_folder(self.stream, contract.model, contract.contract_hash)
            content = contract.canonical_json().encode()
            (self._location / folder / "contract.json").write_bytes(content)

    def _commit(
        self,
        added: Iterable[LogFile],
        *,
        gone: Iterable[LogFile] = (),
        workers: dict[str, WorkerRows] | None = None,
        imported: dict[str, int] | None = None,
        expired: int = 0,
        forgotten: int = 0,
    ) -> None:
        """Write the next manifest: the one step by which rows move."""
        before = self._manifest
        # A reader of the manifest before this one has had from its commit until now.
        for path in before.garbage:
            (self._location / path).remove()
        added = tuple(added)
        removed = {file.path for file in gone}
        known = before.workers if workers is None else workers
        past = [
            name
            for name, each in known.items()
            if each.is_ended and not (self._folder / name).exists()
        ]
        manifest = Manifest(
            number=before.number + 1,
            files=(*(file for file in before.files if file.path not in removed), *added),
            workers={name: each for name, each in known.items() if name not in past},
            past=reduce(WorkerRows.plus, (known[name] for name in past), before.past),
            garbage=tuple(sorted(removed - {file.path for file in added})),
            expired=before.expired + expired,
            imported=before.imported if imported is None else imported,
            forgotten=before.forgotten + forgotten,
        )
        write_manifest(self._location, self.stream.name, self._site, manifest)
        self._manifest = manifest
        (self._folder / _PLAN).unlink(missing_ok=True)

    def _put_aside(self, path: Path) -> None:
        """Give a damaged segment a second name, so that its bytes stay."""
        aside = wal_dir(self._state_dir) / DAMAGED / f"{self.stream.name}_{path.parent.name}"
        aside.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (aside / path.name).hardlink_to(path)

    def _remove_empty_folders(self) -> None:
        """Remove the folders of workers that have nothing left in them."""
        for folder in self._folder.glob("*-*/"):
            with suppress(OSError):
                for draft in folder.glob(f".*{OPEN}"):
                    # A live worker that was about to lock one creates it again.
                    with abandoned(draft) as handle:
                        if handle is not None:
                            draft.unlink()
                folder.rmdir()


def _by_day(table: pa.Table, time: str) -> Iterator[tuple[str, Any]]:
    """Rows day by day of a time column, each day's ordered by it."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if not table.num_rows:
        return
    table = table.sort_by(time)
    days = pc.floor_temporal(table[time], unit="day").cast(pa.int64()).to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    for start, end in pairwise(starts):
        yield from_us(int(days[start])).date().isoformat(), table.slice(start, end - start)
