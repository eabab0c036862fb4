"""The write-ahead log: rows on disk within one commit window.

A worker's thread writes what the worker has accepted as frames to a segment and syncs it: after
each commit window, or at once when a request waits for it. docs/guarantees.md says what that means
when a process dies, and ADR 10 gives the reasons.

A worker has a folder of its own. It holds the lock of the segment ``<number>.open`` while it
writes to it, and renames it to ``<number>.sealed`` afterwards. A worker never reads a segment back:
the compactor takes every segment that is not locked.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.frames import Frame, Totals, packed_frame
from tallystick.settings import Settings
from tallystick.storage.atomic_files import sync, write_text
from tallystick.storage.background_writer import BackgroundWriter, Ledger, OnWritten, report
from tallystick.storage.locks import create_locked

OPEN: Final = ".open"
SEALED: Final = ".sealed"
CONTRACTS: Final = "contracts"
_ATTEMPTS: Final = 5
_SIZE_CACHED_S: Final = 1.0
"""Seconds for which the size of the folder is cached."""

_Item: TypeAlias = tuple[ModelContract, int, bytes, tuple[int, int]]
"""The rows of one request: contract, number of rows, the rows in MessagePack, and their times."""
_Frames: TypeAlias = list[tuple[ModelContract, list[bytes], int]]
"""Frames of one contract each: contract, pieces and number of rows."""


class WriteAheadLog:
    """Takes rows for one stream of one worker.

    Args:
        folder: Folder of the stream's segments, for all workers.
        settings: Commit window, and the bounds on memory, segments and disk.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._segments = _Segments(folder, settings)
        self._room = settings.log_budget_bytes
        self._writer: BackgroundWriter[_Item] = BackgroundWriter(
            self._write,
            name=f"log-{folder.name}",
            rows_max=settings.log_buffer_rows_max,
            interval_s=settings.log_window_s,
            after_write=self._seal_if_old,
        )

    def append_rows(
        self,
        contract: ModelContract,
        rows: int,
        payload: bytes,
        *,
        times: tuple[int, int],
        on_written: OnWritten | None = None,
    ) -> bool:
        """Take the rows of one request; never waits.

        Args:
            contract: The contract under which they were made.
            rows: How many there are.
            payload: The rows in MessagePack, in the stream's layout.
            times: The first and the last of their times, in microseconds.
            on_written: Called once they are on disk, or could not be written, or were dropped
                because the disk budget is used up.

        Returns:
            False if they were dropped because the buffer is full; ``on_written`` is not called.
        """
        if len(payload) > self._room:
            self._writer.drop(rows, "budget")
            report([on_written], is_written=False)
            return True
        self._room -= len(payload)
        return self._writer.append((contract, rows, payload, times), rows, on_written)

    @property
    def ledger(self) -> Ledger:
        """Where the rows are."""
        return self._writer.ledger

    def flush(self) -> None:
        """Write everything accepted so far, now.

        Raises:
            OSError: It could not be written; it stays in memory.
        """
        self._writer.flush()

    def seal(self) -> None:
        """Write everything, and end the segment, so that it can be compacted."""
        with self._writer.flushed():
            self._segments.seal(self._totals())

    def close(self) -> None:
        """Take nothing more, write what is left, and stop the thread.

        Raises:
            OSError: What was left could not be written.
        """
        self._writer.close()
        self._segments.end(self._totals())

    def _write(self, items: Sequence[_Item]) -> None:
        room = self._segments.room()
        self._room = room - self._segments.write(self._frames(items))

    def _frames(self, items: Sequence[_Item]) -> _Frames:
        """One frame per contract."""
        first, totals = self._segments.next_row, self._totals()
        groups: dict[int, list[_Item]] = {}
        for item in items:
            groups.setdefault(id(item[0]), []).append(item)
        frames = []
        for group in groups.values():
            contract = group[0][0]
            rows = sum(item[1] for item in group)
            frame = Frame(
                contract=contract.contract_hash,
                first=first,
                rows=rows,
                totals=totals,
                first_us=min(item[3][0] for item in group),
                last_us=max(item[3][1] for item in group),
            )
            frames.append((contract, packed_frame(frame, [item[2] for item in group]), rows))
            first += rows
        return frames

    def _totals(self) -> Totals:
        ledger = self.ledger
        return Totals(accepted=ledger.accepted, **ledger.dropped_by)

    def _seal_if_old(self) -> None:
        self._segments.seal_if_old(self._totals())
        self._room = self._segments.room()


class _Segments:
    """The segments of one worker, of which one at most is open."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._all = folder
        self._settings = settings
        self._folder = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._number = 0
        self.next_row = 0
        self._handle = -1
        self._path = self._folder
        self._bytes = 0
        self._opened_s = 0.0
        self._contracts: set[str] = set()
        self._size = (0, -_SIZE_CACHED_S)
        self._sealed_totals = Totals()

    def room(self) -> int:
        """Bytes that may still be written."""
        known, at = self._size
        if time.monotonic() - at > _SIZE_CACHED_S:
            known = bytes_in(self._all)
            self._size = (known, time.monotonic())
        return self._settings.log_budget_bytes - known

    def write(self, frames: _Frames) -> int:
        """Write frames, sync them, and return their bytes; if it raises, none of them counts."""
        for contract, _, _ in frames:
            self._write_contract(contract)
        if self._handle < 0:
            self._open()
        whole = self._bytes
        try:
            written = 0
            for _, pieces, _ in frames:
                written += _write_all(self._handle, b"".join(pieces))
            os.fdatasync(self._handle)
        except BaseException:
            self._take_back(whole)
            raise
        self._bytes += written
        self.next_row += sum(rows for _, _, rows in frames)
        known, at = self._size
        self._size = (known + written, at)
        return written

    def seal_if_old(self, totals: Totals) -> None:
        """End the open segment if it is large or old."""
        if self._handle >= 0 and (
            self._bytes >= self._settings.log_segment_bytes
            or time.monotonic() - self._opened_s >= self._settings.log_segment_s
        ):
            self.seal(totals)

    def end(self, totals: Totals) -> None:
        """Mark this segment as the worker's last one, if anything was ever written."""
        if self._handle < 0 and self._number:
            self._open()
        self.seal(totals, is_ended=True)

    def seal(self, totals: Totals, *, is_ended: bool = False) -> None:
        """End the open segment with a frame that says so.

        Without an open segment nothing is written, unless rows were dropped since the last one.
        """
        if self._handle < 0:
            if totals == self._sealed_totals:
                return
            self._open()
        frame = Frame("", self.next_row, 0, totals, is_last=True, is_ended=is_ended)
        whole = self._bytes
        try:
            _write_all(self._handle, b"".join(packed_frame(frame, [])))
            os.fdatasync(self._handle)
        except BaseException:
            self._take_back(whole)
            raise
        self._sealed_totals = totals
        self._path.rename(self._path.with_suffix(SEALED))
        sync(self._folder)
        self._leave()

    def _write_contract(self, contract: ModelContract) -> None:
        path = self._all / CONTRACTS / f"{contract.contract_hash}.json"
        if contract.contract_hash not in self._contracts or not path.is_file():
            write_text(path, contract.canonical_json())
            self._contracts.add(contract.contract_hash)

    def _open(self) -> None:
        for _ in range(_ATTEMPTS - 1):
            # A compactor removes folders that have become empty.
            with suppress(FileNotFoundError):
                self._open_next()
                return
        self._open_next()

    def _open_next(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._number:08d}{OPEN}"
        # Never again, even if this fails: a compactor may have taken it by then.
        self._number += 1
        handle = create_locked(path)
        try:
            sync(self._folder)
            sync(self._all)
        except BaseException:
            os.close(handle)
            path.unlink(missing_ok=True)
            raise
        self._handle, self._path, self._bytes = handle, path, 0
        self._opened_s = time.monotonic()

    def _take_back(self, size: int) -> None:
        """After a write that failed: leave the segment as it was, or leave it.

        What a failed sync left in it is unknown. Rows that are written again have the same
        numbers, so they count once.
        """
        try:
            os.ftruncate(self._handle, size)
            os.fdatasync(self._handle)
        except OSError:
            # Its name stays open, so that the missing end does not count as damage.
            self._leave()

    def _leave(self) -> None:
        os.close(self._handle)
        self._handle, self._bytes = -1, 0


def bytes_in(folder: Path) -> int:
    """Bytes of all segments of a stream."""
    total = 0
    for path in segments_in(folder):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def segments_in(folder: Path) -> list[Path]:
    """All segments of a stream, by worker and number; they may be gone when looked at."""
    found = [*folder.glob(f"*/[0-9]*{OPEN}"), *folder.glob(f"*/[0-9]*{SEALED}")]
    return sorted(found, key=lambda path: (path.parent.name, path.stem))


def _write_all(handle: int, content: bytes) -> int:
    """Write bytes, in as many calls as it takes; gives their number."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
    return len(content)
