"""The write-ahead log: what a worker was given, on disk one commit at a time.

A worker appends bytes to a bounded list, and a thread of its own writes what has gathered as frames
to a segment and syncs it: after each commit window, or at once where somebody waits for it. The
ledger adds up at all times: accepted = durable + dropped + in flight. docs/guarantees.md says what
that means when a process dies, and ADR 10 why it is so.

A worker has a folder of its own, ``<number>.open`` in it while it writes to that segment, which it
holds locked, and ``<number>.sealed`` afterwards. Nothing is ever read back to go on: a segment that
nobody holds locked is the compactor's.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from tallystick.clock import SystemClock
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.frames import Totals, packed_frame
from tallystick.storage.atomic_files import sync_folder, write_text

logger = logging.getLogger(__name__)

OPEN: Final = ".open"
SEALED: Final = ".sealed"
CONTRACTS: Final = "contracts"
_NICENESS: Final = 5
_ATTEMPTS: Final = 5
_LOOK_S: Final = 1.0
"""Seconds for which the size of the folder is remembered."""


@dataclass(frozen=True, slots=True)
class WalOptions:
    """How much a write-ahead log may hold and how often it writes.

    Attributes:
        window_s: Seconds between commits, if nobody waits for one.
        rows_max: Rows held in memory; beyond it new ones are dropped, and counted.
        segment_bytes: Bytes from which a segment is sealed.
        segment_s: Seconds after which it is.
        budget_bytes: Bytes that all segments may take together; beyond it rows are dropped, and
            counted.
    """

    window_s: float = 0.05
    rows_max: int = 50_000
    segment_bytes: int = 64 << 20
    segment_s: float = 60.0
    budget_bytes: int = 4 << 30


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the rows are that a log was given. ``accepted = durable + dropped + in_flight``."""

    accepted: int
    durable: int
    dropped: int
    in_flight: int


class _Item(NamedTuple):  # made within the request, and so of the quickest kind
    """The rows of one request."""

    contract: ModelContract
    rows: int
    payload: bytes
    told: Callable[[bool], None] | None


Frames: TypeAlias = list[tuple[ModelContract, list[bytes], int]]
"""Frames of one contract each: contract, pieces and number of rows."""


class WriteAheadLog:
    """Takes rows for one stream of one worker.

    Args:
        folder: Folder of the stream's segments, for all workers.
        options: How much it may hold and how often it writes.
    """

    def __init__(self, folder: Path, options: WalOptions) -> None:
        self._folder = folder
        self._options = options
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._items: list[_Item] = []
        # Numbers of their own: to replace a whole Totals takes longer than all else of a request.
        self._accepted = self._durable = self._settled = 0
        self._dropped = {"full": 0, "budget": 0, "refused": 0}
        self._stopping = False
        self._failed: tuple[Frames, list[_Item]] | tuple[()] = ()
        self._segments = _Segments(folder, options)
        self._thread = threading.Thread(target=self._run, name=f"log-{folder.name}", daemon=True)
        self._thread.start()

    def append(
        self,
        contract: ModelContract,
        rows: int,
        payload: bytes,
        *,
        told: Callable[[bool], None] | None = None,
    ) -> bool:
        """Take the rows of one request; never waits.

        Args:
            contract: The contract under which they were made.
            rows: How many there are.
            payload: They themselves in MessagePack, as the stream lays them out.
            told: Called by the writing thread with True once they are on disk, or with False if
                they could not be written: they are kept then, and written once that is possible,
                or the disk budget was used up and they are dropped.

        Returns:
            False if they had to be dropped, because the buffer is full; ``told`` is not called.
        """
        with self._lock:
            self._accepted += rows
            if self._stopping:
                self._drop("refused", rows)
                return False
            if self._accepted - self._settled > self._options.rows_max:
                self._drop("full", rows)
                self._wake.set()
                return False
            self._items.append(_Item(contract, rows, payload, told))
        if told is not None:
            self._wake.set()
        return True

    @property
    def ledger(self) -> Ledger:
        """Where the rows are."""
        with self._lock:
            return Ledger(
                accepted=self._accepted,
                durable=self._durable,
                dropped=self._settled - self._durable,
                in_flight=self._accepted - self._settled,
            )

    @property
    def dropped(self) -> dict[str, int]:
        """Why rows were dropped → how many."""
        return dict(self._dropped)

    def flush(self) -> None:
        """Write everything accepted so far, now.

        Raises:
            OSError: It could not be written; it is kept.
        """
        with self._writing:
            if self._failed:
                # As they were: if a failed sync left them behind after all, they count once.
                try:
                    self._write(*self._failed)
                except BaseException:
                    self._tell_waiting()
                    raise
            room = self._segments.room()
            with self._lock:
                items, self._items = self._items, []
            items = self._within_budget(items, room)
            self._write(self._frames(items), items)

    def _write(self, frames: Frames, items: list[_Item]) -> None:
        """Write frames, and tell those who wait for them."""
        waiting = [item.told for item in items if item.told is not None]
        try:
            self._segments.write(frames)
        except BaseException:
            # They are told once; what they wait for is kept all the same.
            self._failed = (frames, [item._replace(told=None) for item in items])
            _tell(waiting, is_written=False)
            raise
        self._failed = ()
        with self._lock:
            written = sum(item.rows for item in items)
            self._durable += written
            self._settled += written
        _tell(waiting, is_written=True)

    def _tell_waiting(self) -> None:
        """Tell those whose rows wait behind others that cannot be written."""
        with self._lock:
            waiting = [item.told for item in self._items if item.told is not None]
            self._items = [item._replace(told=None) for item in self._items]
        _tell(waiting, is_written=False)

    def seal(self) -> None:
        """Write everything, and end the segment, so that it can be compacted."""
        self.flush()
        with self._writing:
            self._segments.seal(self._totals())

    def close(self) -> None:
        """Take nothing more, write what is left, and stop the thread.

        Raises:
            OSError: What was left could not be written.
        """
        with self._lock:
            self._stopping = True
        self._wake.set()
        self._thread.join()
        self.flush()
        with self._writing:
            self._segments.end(self._totals())

    def _frames(self, items: Sequence[_Item]) -> Frames:
        """One frame per contract."""
        first, totals = self._durable, self._totals()
        moment = SystemClock().now_us()
        frames = []
        for group in _by_contract(items):
            rows = sum(item.rows for item in group)
            contract = group[0].contract
            pieces = packed_frame(
                [item.payload for item in group],
                contract=contract.contract_hash,
                first=first,
                rows=rows,
                committed_us=moment,
                totals=totals,
            )
            frames.append((contract, pieces, rows))
            first += rows
        return frames

    def _within_budget(self, items: list[_Item], room: int) -> list[_Item]:
        kept: list[_Item] = []
        for item in items:
            room -= len(item.payload)
            if room >= 0:
                kept.append(item)
                continue
            with self._lock:
                self._drop("budget", item.rows)
            if item.told is not None:
                _tell([item.told], is_written=False)
        return kept

    def _drop(self, reason: str, rows: int) -> None:
        self._dropped[reason] += rows
        self._settled += rows

    def _totals(self) -> Totals:
        with self._lock:
            return Totals(accepted=self._accepted, **self._dropped)

    def _run(self) -> None:
        step_back()
        is_well = True
        while not self._stopping:
            self._wake.wait(self._options.window_s)
            self._wake.clear()
            try:
                self.flush()
                with self._writing:
                    self._segments.seal_if_old(self._totals())
            except Exception:
                # Whatever it was (a full disk, a bug), the rows are kept, the bound on the buffer
                # holds, and the next try may succeed; a dead thread would lose all that follows.
                if is_well:
                    logger.exception("The log cannot be written, and is kept in memory.")
                is_well = False
                time.sleep(self._options.window_s)
            else:
                if not is_well:
                    logger.warning("The log can be written again.")
                is_well = True


class _Segments:
    """The segments of one worker, of which one at most is open."""

    def __init__(self, folder: Path, options: WalOptions) -> None:
        self._all = folder
        self._options = options
        self._folder = folder / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._number = 0
        self._next = 0
        self._handle = -1
        self._path = self._folder
        self._bytes = 0
        self._opened_s = 0.0
        self._contracts: set[str] = set()
        self._others = (0, -_LOOK_S)
        self._said = Totals()

    def room(self) -> int:
        """Bytes that may still be written."""
        known, at = self._others
        if time.monotonic() - at > _LOOK_S:
            known = bytes_in(self._all)
            self._others = (known, time.monotonic())
        return self._options.budget_bytes - known

    def write(self, frames: Frames) -> None:
        """Write frames and sync them; all are there afterwards, or none counts."""
        if not frames:
            return
        for contract, _, _ in frames:
            self._keep_contract(contract)
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
        self._next += sum(rows for _, _, rows in frames)
        known, at = self._others
        self._others = (known + written, at)

    def seal_if_old(self, totals: Totals) -> None:
        """End the open segment if it is large or old."""
        if self._handle >= 0 and (
            self._bytes >= self._options.segment_bytes
            or time.monotonic() - self._opened_s >= self._options.segment_s
        ):
            self.seal(totals)

    def end(self, totals: Totals) -> None:
        """Say that this was the last segment, if anything was ever written."""
        if self._handle < 0 and self._number:
            self._open()
        self.seal(totals, is_ended=True)

    def seal(self, totals: Totals, *, is_ended: bool = False) -> None:
        """End the open segment with a frame that says so.

        Without an open one nothing is written, unless rows were dropped of which no segment tells.
        """
        if self._handle < 0:
            if totals == self._said:
                return
            self._open()
        last = packed_frame(
            [],
            contract="",
            first=self._next,
            rows=0,
            committed_us=SystemClock().now_us(),
            totals=totals,
            is_last=True,
            is_ended=is_ended,
        )
        whole = self._bytes
        try:
            _write_all(self._handle, b"".join(last))
            os.fdatasync(self._handle)
        except BaseException:
            self._take_back(whole)
            raise
        self._said = totals
        self._path.rename(self._path.with_suffix(SEALED))
        sync_folder(self._folder)
        self._leave()

    def _keep_contract(self, contract: ModelContract) -> None:
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
        # Locked before it bears a name by which others look for what nobody holds.
        draft = path.with_name(f".{path.name}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            draft.rename(path)
            sync_folder(self._folder)
            sync_folder(self._all)
        except BaseException:
            os.close(handle)
            for name in (draft, path):
                name.unlink(missing_ok=True)
            raise
        self._handle, self._path, self._bytes = handle, path, 0
        self._opened_s = time.monotonic()

    def _take_back(self, size: int) -> None:
        """After a write that failed: leave the segment as it was, or leave it.

        What a failed sync has left in it, nobody can say; what is written again bears the same
        numbers, and counts once.
        """
        try:
            os.ftruncate(self._handle, size)
            os.fdatasync(self._handle)
        except OSError:
            # Open by name: that its end is missing is then no damage.
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


def _by_contract(items: Sequence[_Item]) -> list[list[_Item]]:
    groups: dict[int, list[_Item]] = {}
    for item in items:
        groups.setdefault(id(item.contract), []).append(item)
    return list(groups.values())


def _tell(waiting: Sequence[Callable[[bool], None]], *, is_written: bool) -> None:
    """Tell those who wait; what goes wrong with one of them concerns neither rows nor others."""
    for told in waiting:
        try:
            told(is_written)
        except Exception:
            logger.exception("A caller could not be told whether its rows are on disk.")


def _write_all(handle: int, content: bytes) -> int:
    """Write bytes, in as many calls as it takes; gives their number."""
    view = memoryview(content)
    while view:
        view = view[os.write(handle, view) :]
    return len(content)


def step_back() -> None:
    """Let this thread have what others leave of the core: requests come first, the log can wait."""
    if sys.platform == "linux":  # elsewhere this would be for the whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
