"""One run of the compactor over one stream."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import duration_us, from_us, process_clock
from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Damage, Frame
from tallystick.prediction_log.log_location import Sink
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
    Stream,
    folder_of,
    local_contract,
    sink_contract,
    site_of,
    stream_dir,
    wal_dir,
)
from tallystick.prediction_log.write_ahead_log import OPEN, segments_in
from tallystick.storage.atomic_files import write_text
from tallystick.storage.locks import abandoned

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.contract import ModelContract

ROWS_AT_ONCE: Final = 200_000
"""Rows from which one commit is made."""
MERGED_FILES: Final = 8
"""Small files of one day and contract that are merged into one."""
MERGED_ROWS: Final = 1_000_000
"""Rows from which a file is not small any more."""
_PLAN: Final = "plan.json"
DAMAGED: Final = "damaged"
"""Folder for damaged segments."""


@dataclass(slots=True)
class Compacted:
    """What a compaction did to one stream.

    Attributes:
        segments: Segments that are in Parquet now.
        rows: Their rows.
        lost: Rows in them that were damaged.
        damages: Where segments have what is no frame, in words.
        files: Files written.
        expired: Rows removed because they had had their time.
    """

    segments: int = 0
    rows: int = 0
    lost: int = 0
    damages: list[str] = field(default_factory=list)
    files: int = 0
    expired: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long Parquet files stay.

    Attributes:
        time: By the process clock; None for ever.
        bytes: Size of all files of a stream from which the oldest days go; None for no bound.
    """

    time: timedelta | None = None
    bytes: int | None = None


class Compactor:
    """Compacts one stream."""

    def __init__(self, state_dir: Path, stream: Stream, sink: Sink) -> None:
        self._state_dir = state_dir
        self.stream = stream
        self._sink = sink
        self._site = site_of(state_dir)
        self._folder = stream_dir(state_dir, stream)
        self._manifest = read_manifest(sink, stream.name, self._site)
        self.done = Compacted()

    def take_back(self) -> None:
        """Remove what nobody reads: what the last run replaced, and what a killed one had begun."""
        plan = self._folder / _PLAN
        named = {file.path for file in self._manifest.files}
        # A plan that cannot be read costs the room of a few files that nobody reads.
        with suppress(FileNotFoundError, ValueError):
            for path in json.loads(plan.read_text("utf-8")):
                if path not in named:
                    self._sink.discard(path)
        plan.unlink(missing_ok=True)
        if self._manifest.garbage:
            self._commit(())

    def compact(self) -> None:
        """Compact segments, some at a time."""
        taken: list[tuple[Path, Segment]] = []
        rows = 0
        workers = dict(self._manifest.workers)
        passed: set[str] = set()
        for path in segments_in(self._folder):
            if path.parent.name in passed:
                continue
            with abandoned(path) as handle:
                if handle is None:
                    # Its worker's later segments wait: their numbers would mark it as compacted.
                    passed.add(path.parent.name)
                    continue
                before = workers.get(path.parent.name, WorkerRows())
                if int(path.stem) <= before.segment:
                    self._remove([path])  # committed by one who did not live to remove it
                    continue
                segment = read_segment(path, expected=before.after, totals=before.totals)
            workers[segment.worker] = before.with_segment(segment)
            taken.append((path, segment))
            rows += segment.rows
            if rows >= ROWS_AT_ONCE:
                self._commit_segments(taken, workers)
                taken, rows = [], 0
        if taken:
            self._commit_segments(taken, workers)
        self._sweep()

    def add(self, contract: ModelContract, table: pa.Table, name: str) -> int:
        """Take rows that no worker wrote; 0 if they were taken before."""
        if name in self._manifest.imported:
            return 0
        imported = {**self._manifest.imported, name: table.num_rows}
        self._commit(self._written([(contract, table)]), imported=imported)
        return int(table.num_rows)

    def forget(self, path: str) -> int | None:
        """Take a file out; None if there is no such file."""
        for file in self._manifest.files:
            if path in {file.path, self._sink.text(file.path), self._sink.path(file.path)}:
                self._commit((), gone=[file], forgotten=file.rows)
                return file.rows
        return None

    def export(self, model: str, copy: Callable[[LogFile], int]) -> int:
        """Copy files that were not copied before."""
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
                like = (file.model, file.contract, file.day, file.is_exported)
                groups.setdefault(like, []).append(file)
        for files in groups.values():
            if len(files) >= MERGED_FILES:
                self._merge_files(files)

    def expire(self, keeping: Keeping) -> None:
        """Remove files whose time is over, and the oldest beyond the bound on their size."""
        gone = []
        if keeping.time is not None:
            limit = process_clock().now_us() - duration_us(keeping.time)
            gone = [file for file in self._manifest.files if file.last_us < limit]
        left = self._manifest.bytes - sum(file.bytes for file in gone)
        if keeping.bytes is not None:
            for file in sorted(self._manifest.files, key=lambda file: file.last_us):
                if left <= keeping.bytes:
                    break
                if file not in gone:
                    gone.append(file)
                    left -= file.bytes
        if gone:
            rows = sum(file.rows for file in gone)
            self.done.expired += rows
            self._commit((), gone=gone, expired=rows)

    def _commit_segments(
        self, taken: list[tuple[Path, Segment]], workers: dict[str, WorkerRows]
    ) -> None:
        try:
            tables = self._tables(segment for _, segment in taken)
        except DamagedError:
            # One frame's values may fit no column although its checksum is right: without it.
            taken = [(path, self._readable(segment)) for path, segment in taken]
            for _, segment in taken:
                before = self._manifest.workers.get(segment.worker, WorkerRows())
                workers[segment.worker] = before
            for _, segment in taken:
                workers[segment.worker] = workers[segment.worker].with_segment(segment)
            tables = self._tables(segment for _, segment in taken)
        for path, segment in taken:
            if segment.damages:
                self._put_aside(path)
        known = set(self._manifest.workers) | {segment.worker for _, segment in taken}
        self._commit(
            self._written(tables),
            workers={name: rows for name, rows in workers.items() if name in known},
        )
        self.done.segments += len(taken)
        for path, segment in taken:
            self.done.rows += segment.rows
            self.done.lost += segment.lost
            self.done.damages += [
                f"{path.parent.name}/{path.name}: bytes {each.start} to {each.end}: {each.why}"
                for each in segment.damages
            ]
        self._remove([path for path, _ in taken])

    def _tables(self, segments: Iterable[Segment]) -> list[tuple[ModelContract, pa.Table]]:
        """The rows of segments, by contract."""
        frames: dict[str, list[Frame]] = {}
        for segment in segments:
            for frame in segment.frames:
                frames.setdefault(frame.contract, []).append(frame)
        return [
            (contract, self.stream.table(contract, [frame.payload for frame in of_it]))
            for contract_hash, of_it in frames.items()
            for contract in [local_contract(self._state_dir, self.stream, contract_hash)]
        ]

    def _readable(self, segment: Segment) -> Segment:
        """A segment without the frames of which no table can be made."""
        kept, bad = [], []
        for frame in segment.frames:
            contract = local_contract(self._state_dir, self.stream, frame.contract)
            try:
                self.stream.table(contract, [frame.payload])
            except DamagedError as error:
                bad.append((frame, error))
            else:
                kept.append(frame)
        damages = [
            Damage(0, 0, f"rows from {frame.first}: {error.what}", is_end=False)
            for frame, error in bad
        ]
        return replace(
            segment,
            frames=tuple(kept),
            lost=segment.lost + sum(frame.rows for frame, _ in bad),
            damages=(*segment.damages, *damages),
        )

    def _merge_files(self, files: list[LogFile]) -> None:
        import pyarrow as pa

        files = sorted(files, key=lambda file: (file.first_us, file.path))
        one = files[0]
        contract = sink_contract(self._sink, self.stream, one.model, one.contract)
        schema = self.stream.schema(contract)
        try:
            whole = pa.concat_tables(
                read_file(self._sink, file.path, schema, footer=file.footer) for file in files
            )
        except FileNotFoundError as error:
            raise DamagedError(
                f"A file of the log that the manifest names is gone: {error}",
                hint="Restore it from a backup; or take it out of the log:  tally log forget FILE",
            ) from error
        merged = self._written([(contract, whole)])
        is_exported = {"is_exported": one.is_exported}
        self._commit([file.model_copy(update=is_exported) for file in merged], gone=files)

    def _written(self, tables: Iterable[tuple[ModelContract, pa.Table]]) -> list[LogFile]:
        """Write rows to files that do not count yet, one per contract and day."""
        run = uuid.uuid4().hex[:12]
        planned = []
        for contract, table in tables:
            folder = folder_of(self.stream, contract.model, contract.contract_hash)
            for day, part in _by_day(table, self.stream.time):
                first_us, last_us = _span(part, self.stream.time)
                name = f"{folder}/date={day}/{first_us}_{last_us}_{run}.parquet"
                planned.append((contract, day, part, name, first_us, last_us))
        write_text(self._folder / _PLAN, json.dumps([each[3] for each in planned]))
        files = []
        for contract, day, part, name, first_us, last_us in planned:
            self._keep_contract(contract)
            size = write_rows(self._sink, name, part)
            files.append(
                LogFile(
                    path=name,
                    model=contract.model,
                    contract=contract.contract_hash,
                    day=day,
                    first_us=first_us,
                    last_us=last_us,
                    rows=part.num_rows,
                    bytes=size,
                    footer=footer_of(self._sink, name),
                )
            )
        self.done.files += len(files)
        return files

    def _keep_contract(self, contract: ModelContract) -> None:
        folder = folder_of(self.stream, contract.model, contract.contract_hash)
        if not any(
            file.contract == contract.contract_hash and file.model == contract.model
            for file in self._manifest.files
        ):
            self._sink.write_bytes(f"{folder}/contract.json", contract.canonical_json().encode())

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
        """The one step by which rows move."""
        before = self._manifest
        # Whoever reads by the manifest before this one has had from its commit until now.
        for path in before.garbage:
            self._sink.remove(path)
        added = tuple(added)
        removed = {file.path for file in gone}
        known = before.workers if workers is None else workers
        gone_workers = [
            name
            for name, each in known.items()
            if each.is_ended and not (self._folder / name).exists()
        ]
        manifest = Manifest(
            number=before.number + 1,
            files=(*(file for file in before.files if file.path not in removed), *added),
            workers={name: each for name, each in known.items() if name not in gone_workers},
            past=reduce(WorkerRows.plus, (known[name] for name in gone_workers), before.past),
            garbage=tuple(sorted(removed - {file.path for file in added})),
            expired=before.expired + expired,
            imported=before.imported if imported is None else imported,
            forgotten=before.forgotten + forgotten,
        )
        write_manifest(self._sink, self.stream.name, self._site, manifest)
        self._manifest = manifest
        (self._folder / _PLAN).unlink(missing_ok=True)

    def _put_aside(self, path: Path) -> None:
        """Keep a damaged segment, under a second name, for whoever wants to look at it."""
        aside = wal_dir(self._state_dir) / DAMAGED / f"{self.stream.name}_{path.parent.name}"
        aside.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (aside / path.name).hardlink_to(path)

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def _sweep(self) -> None:
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
    import pyarrow as pa
    import pyarrow.compute as pc

    if not table.num_rows:
        return
    table = table.sort_by(time)
    days = pc.floor_temporal(table[time], unit="day").cast(pa.int64()).to_numpy()
    import numpy as np

    starts = [0, *(np.flatnonzero(np.diff(days)) + 1).tolist(), len(days)]
    for start, end in pairwise(starts):
        yield from_us(int(days[start])).date().isoformat(), table.slice(start, end - start)


def _span(table: pa.Table, time: str) -> tuple[int, int]:
    import pyarrow.compute as pc

    ends: Any = pc.min_max(table[time])
    return ends["min"].value, ends["max"].value
