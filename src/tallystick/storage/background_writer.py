"""A writer that keeps files off the request path.

A request only appends to a bounded list. A thread writes what has gathered to Parquet files, each
whole or absent. At a clean stop everything accepted is written. The ledger adds up at all times:
accepted = durable + dropped + in flight.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

from tallystick.prediction_log.write_ahead_log import Ledger, step_back

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class BufferedWriter(Generic[Item]):
    """A bounded buffer with a thread that empties it.

    Args:
        write: Writes items of one group for good, all or none of them. An error keeps them for the
            next try.
        group_of: What items must share to be written together.
        rows_of: How many rows an item stands for.
        rows_max: Rows held in memory; beyond it new items are dropped, and counted.
        flush_rows: Rows that start a write at once.
        flush_s: Seconds between writes otherwise.
    """

    def __init__(
        self,
        *,
        write: Callable[[Sequence[Item]], None],
        group_of: Callable[[Item], Hashable],
        rows_of: Callable[[Item], int],
        rows_max: int,
        flush_rows: int,
        flush_s: float,
    ) -> None:
        self._write = write
        self._group_of = group_of
        self._rows_of = rows_of
        self._rows_max = rows_max
        self._flush_rows = flush_rows
        self._flush_s = flush_s
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._writing = threading.Lock()
        self._items: list[Item] = []
        self._accepted = self._durable = self._dropped = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def append(self, item: Item) -> bool:
        """Take an item for writing; False if it had to be dropped, because the buffer is full."""
        rows = self._rows_of(item)
        with self._lock:
            self._accepted += rows
            in_flight = self._accepted - self._durable - self._dropped
            if in_flight > self._rows_max or self._stopping:
                self._dropped += rows
                return False
            self._items.append(item)
        if in_flight >= self._flush_rows:
            self._wake.set()
        return True

    @property
    def ledger(self) -> Ledger:
        """Where the rows are."""
        with self._lock:
            return Ledger(
                accepted=self._accepted,
                durable=self._durable,
                dropped=self._dropped,
                in_flight=self._accepted - self._durable - self._dropped,
            )

    @property
    def dropped(self) -> dict[str, int]:
        """Why items were dropped → how many rows."""
        return {"full": self._dropped}

    def flush(self) -> None:
        """Write everything accepted so far, now.

        Raises:
            OSError: It could not be written; it is kept.
        """
        with self._writing:
            with self._lock:
                items, self._items = self._items, []
            groups: dict[Hashable, list[Item]] = {}
            for item in items:
                groups.setdefault(self._group_of(item), []).append(item)
            items.clear()
            failure: BaseException | None = None
            for group in groups.values():
                # Each by itself: what is written is settled, whatever becomes of the rest.
                try:
                    self._write(group)
                except BaseException as error:  # noqa: BLE001 raised below, the rows are kept
                    failure = error
                    with self._lock:
                        self._items = group + self._items
                else:
                    with self._lock:
                        self._durable += sum(map(self._rows_of, group))
                    while group:  # one by one: to let all go at once would take the interpreter
                        group.pop()
            if failure is not None:
                raise failure

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

    def _run(self) -> None:
        step_back()
        while not self._stopping:
            self._wake.wait(self._flush_s)
            self._wake.clear()
            try:
                self.flush()
            except Exception:
                # Whatever it was (a full disk, a bug), the rows are kept, the bound on the buffer
                # holds, and the next try may succeed; a dead thread would lose all that follows.
                logger.exception("The log cannot be written, and is kept in memory.")
