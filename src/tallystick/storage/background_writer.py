"""The background writer: a bounded buffer that a thread of its own writes to disk.

A request only appends to a list. The prediction log and the journal of online writes share this
writer. Its ledger adds up at all times: accepted = durable + dropped + in flight.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

logger = logging.getLogger(__name__)
Item = TypeVar("Item")
OnWritten: TypeAlias = Callable[[bool], None]
"""Called by the writing thread: True once the rows are on disk, False if that failed.

Rows of a failed write stay in memory and are written later; the caller is not called again.
"""
_NICENESS: Final = 5


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the rows are that a writer was given: accepted = durable + dropped + in flight.

    Attributes:
        accepted: Rows that it was given.
        durable: Rows on disk.
        dropped_by: Reason → rows dropped.
    """

    accepted: int
    durable: int
    dropped_by: Mapping[str, int]

    @property
    def dropped(self) -> int:
        """Rows dropped, for any reason."""
        return sum(self.dropped_by.values())

    @property
    def in_flight(self) -> int:
        """Rows in memory."""
        return self.accepted - self.durable - self.dropped


_Entry: TypeAlias = tuple[Item, int, OnWritten | None]


class BackgroundWriter(Generic[Item]):
    """A bounded buffer, and the thread that empties it.

    Args:
        write: Writes items of one group durably, all or none. When it raises, the same items are
            written again later, before any others of their group.
        name: Of the thread.
        rows_max: Rows held in memory; rows beyond it are dropped and counted as ``full``.
        interval_s: Seconds between writes.
        flush_rows: Rows that start a write at once; by default ``rows_max``.
        group_of: What items that are written together have in common; by default all are one group.
        after_write: Called by the thread after each write.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], None],
        *,
        name: str,
        rows_max: int,
        interval_s: float,
        flush_rows: int | None = None,
        group_of: Callable[[Item], Hashable] = lambda _: None,
        after_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._write = write
        self._rows_max = rows_max
        self._flush_rows = rows_max if flush_rows is None else flush_rows
        self._interval_s = interval_s
        self._group_of = group_of
        self._after_write = after_write
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._is_closed = False
        self._ended = threading.Event()
        self._entries: list[_Entry[Item]] = []
        self._failed: dict[Hashable, list[_Entry[Item]]] = {}
        self._accepted = self._durable = self._settled = 0
        self._dropped = {"full": 0, "budget": 0, "refused": 0}
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def append(self, item: Item, rows: int, on_written: OnWritten | None = None) -> bool:
        """Take an item that stands for so many rows; never waits.

        Returns:
            False if it was dropped, because the buffer is full or the writer is closed;
            ``on_written`` is not called then.
        """
        with self._lock:
            in_flight = self._accepted + rows - self._settled
            is_full = in_flight > self._rows_max
            if not (is_full or self._is_closed):
                self._accepted += rows
                self._entries.append((item, rows, on_written))
                if on_written is not None or in_flight >= self._flush_rows:
                    self._wake.set()
                return True
        self._wake.set()
        return self.drop(rows, "refused" if self._is_closed else "full")

    def drop(self, rows: int, reason: str) -> bool:
        """Count rows as accepted and dropped; always False, as :meth:`append` returns then."""
        with self._lock:
            self._accepted += rows
            self._dropped[reason] += rows
            self._settled += rows
        return False

    @property
    def ledger(self) -> Ledger:
        """Where the rows are."""
        with self._lock:
            return Ledger(self._accepted, self._durable, dict(self._dropped))

    def flush(self) -> None:
        """Write everything accepted so far, now; see :meth:`flushed`."""
        with self.flushed():
            return

    @contextmanager
    def flushed(self) -> Iterator[None]:
        """Write everything accepted so far, and write nothing more during the block.

        Raises:
            OSError: Something could not be written; it stays in memory. Other groups are written.
        """
        with self._writing:
            # The same items together again: if the failed write left them on disk after all, the
            # reader recognizes the repetition.
            failure = self._write_groups(dict(self._failed))
            with self._lock:
                entries, self._entries = self._entries, []
            groups: dict[Hashable, list[_Entry[Item]]] = {}
            for entry in entries:
                groups.setdefault(self._group_of(entry[0]), []).append(entry)
            entries.clear()
            self._put_back([groups.pop(key) for key in self._failed if key in groups])
            failure = self._write_groups(groups) or failure
            if failure is not None:
                raise failure
            yield

    def close(self) -> None:
        """Take nothing more, write what is left, and stop the thread.

        Raises:
            OSError: What was left could not be written.
        """
        self._is_closed = True
        self._ended.set()
        self._wake.set()
        self._thread.join()
        self.flush()

    def _write_groups(self, groups: dict[Hashable, list[_Entry[Item]]]) -> BaseException | None:
        failure: BaseException | None = None
        for key, group in groups.items():
            waiting = [entry[2] for entry in group]
            try:
                self._write([entry[0] for entry in group])
            except BaseException as error:  # noqa: BLE001 raised by the caller
                failure = error
                self._failed[key] = [(item, rows, None) for item, rows, _ in group]
                report(waiting, is_written=False)
                continue
            self._failed.pop(key, None)
            rows = sum(entry[1] for entry in group)
            with self._lock:
                self._durable += rows
                self._settled += rows
            while group:  # one by one: to free all at once would hold the interpreter's lock
                group.pop()
            report(waiting, is_written=True)
        return failure

    def _put_back(self, groups: Iterable[list[_Entry[Item]]]) -> None:
        """Let items wait behind those of their group that cannot be written."""
        for group in groups:
            report([entry[2] for entry in group], is_written=False)
            with self._lock:
                self._entries[:0] = [(item, rows, None) for item, rows, _ in group]

    def _run(self) -> None:
        _lower_priority()
        is_well = True
        while not self._ended.is_set():
            self._wake.wait(self._interval_s)
            self._wake.clear()
            try:
                with self.flushed():
                    self._after_write()
            except Exception:
                # A full disk or a bug: the rows stay in memory, within its bound, and the next
                # write may succeed. A dead thread would lose everything that follows.
                if is_well:
                    logger.exception("%s cannot write; rows stay in memory.", self._thread.name)
                is_well = False
                self._ended.wait(self._interval_s)
            else:
                if not is_well:
                    logger.warning("%s can write again.", self._thread.name)
                is_well = True


def report(waiting: Sequence[OnWritten | None], *, is_written: bool) -> None:
    """Notify callers that wait; an error of one concerns neither rows nor other callers."""
    for on_written in waiting:
        if on_written is not None:
            try:
                on_written(is_written)
            except Exception:
                logger.exception("A caller could not be notified whether its rows are on disk.")


def _lower_priority() -> None:
    """Run this thread only when requests leave the processor idle."""
    if sys.platform == "linux":  # elsewhere this would apply to the whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
