"""Writers that keep the log off the request path.

A request only appends to a bounded list. A thread writes what has gathered to Parquet files, each
whole or absent. At a clean stop everything accepted is written. The ledger adds up at all times:
accepted = durable + dropped + in flight.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import uuid
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from tallystick.clock import from_us
from tallystick.contract import ModelContract
from tallystick.files import replacing, write_text
from tallystick.prediction_log.record import Laid, Predictions, RecordLayout

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)
_NICENESS: Final = 5
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Ledger:
    """Where the rows are that a writer was given. ``accepted = durable + dropped + in_flight``."""

    accepted: int
    durable: int
    dropped: int
    in_flight: int


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
        _step_back()
        while not self._stopping:
            self._wake.wait(self._flush_s)
            self._wake.clear()
            try:
                self.flush()
            except Exception:
                # Whatever it was (a full disk, a bug), the rows are kept, the bound on the buffer
                # holds, and the next try may succeed; a dead thread would lose all that follows.
                logger.exception("The log cannot be written, and is kept in memory.")


def _step_back() -> None:
    """Let this thread have what others leave of the core: requests come first, the log can wait."""
    if sys.platform == "linux":  # elsewhere this would be for the whole process
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class PredictionLog:
    """Writes predictions to ``log/<model>/<contract hash>/<day>_<first>_<last>_<id>.parquet``.

    Args:
        state_dir: The repo's state folder.
        rows_max: See :class:`BufferedWriter`.
        flush_rows: See :class:`BufferedWriter`.
        flush_s: See :class:`BufferedWriter`.
    """

    def __init__(self, state_dir: Path, *, rows_max: int, flush_rows: int, flush_s: float) -> None:
        self._folder = log_dir(state_dir)
        self._layouts: dict[str, RecordLayout] = {}
        self.buffer: BufferedWriter[tuple[ModelContract, Laid]] = BufferedWriter(
            write=self._write_items,
            group_of=lambda item: item[0].contract_hash,
            rows_of=lambda item: item[1].count,
            rows_max=rows_max,
            flush_rows=flush_rows,
            flush_s=flush_s,
        )

    def append(self, contract: ModelContract, predictions: Predictions) -> bool:
        """Log the predictions of one request; False if they had to be dropped."""
        layout = self._layouts.get(contract.contract_hash)
        if layout is None:
            layout = self._layouts[contract.contract_hash] = RecordLayout(contract)
        return self.buffer.append((contract, layout.lay(predictions)))

    def _write_items(self, items: Sequence[tuple[ModelContract, Laid]]) -> None:
        """Write the predictions of one contract."""
        contract = items[0][0]
        folder = self._folder / contract.model / contract.contract_hash
        # Looked for each time: whoever clears old logs away may take it along.
        if not (folder / "contract.json").is_file():
            write_text(folder / "contract.json", contract.canonical_json())
        table = self._layouts[contract.contract_hash].table([laid for _, laid in items])
        write_table(table, folder, "request_time")


def log_dir(state_dir: Path) -> Path:
    """Folder of the prediction log."""
    return state_dir / "log"


def write_table(table: pa.Table, folder: Path, time_column: str) -> None:
    """Write a table as one more file of ``folder``, named after the range of its times.

    The name starts with first and last time in microseconds, so that a reader opens only the files
    that can hold what it looks for.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    span: Any = pc.min_max(table[time_column])
    first, last = span["min"].value, span["max"].value
    day = from_us(first).date().isoformat()
    name = f"{day}_{first}_{last}_{uuid.uuid4().hex[:12]}.parquet"
    with replacing(folder / name) as temporary:
        # Numbers seldom repeat, and looking for a dictionary of them takes most of the time.
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=1,
            use_dictionary=[
                field.name
                for field in table.schema
                if pa.types.is_string(field.type) and field.name != "prediction_id"
            ],
        )
