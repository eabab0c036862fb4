"""From the write-ahead log to Parquet: each row once, whatever is killed when.

One compactor at a time works on a state folder. It reads the segments that nobody writes to any
more, writes their rows to files that no manifest names yet, and commits all of that with one new
manifest, before it removes the segments. What it had written before it was killed, the next one
finds by the plan that it left, and removes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystick.errors import InputError, StateError
from tallystick.prediction_log.compaction_run import Compacted, Compactor, Keeping
from tallystick.prediction_log.log_location import Sink
from tallystick.prediction_log.manifest import (
    LogFile,
)
from tallystick.prediction_log.streams import (
    STREAMS,
    Stream,
    wal_dir,
)
from tallystick.storage.locks import file_lock

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.contract import ModelContract
    from tallystick.settings import Settings

WAIT_S: Final = 60.0
"""Seconds that an import, an export or ``tally log forget`` waits for a running compactor."""
_LOCK: Final = "compactor"


def keeping_of(settings: Settings) -> Keeping:
    """What the settings say."""
    days = settings.log_keep_days
    return Keeping(None if days is None else timedelta(days=days), settings.log_keep_bytes)


def compact(
    state_dir: Path, *, sink: Sink | None = None, keeping: Keeping | None = None
) -> dict[str, Compacted] | None:
    """Move everything that is in no open segment into Parquet files.

    Args:
        state_dir: The repo's state folder.
        sink: Where the files go; that of the settings by default.
        keeping: How long files stay; for ever by default.

    Returns:
        Stream → what was done; None if another compactor is at work.

    Raises:
        DamagedError: A manifest, contract or file cannot be read; no rows are removed.
        DataError: The sink refused, or the disk is full; segments stay.
        UnavailableError: The sink did not answer; segments stay until it does.
    """
    sink = sink or Sink.of(state_dir)
    with file_lock(wal_dir(state_dir) / _LOCK, timeout_s=0) as is_acquired:
        if not is_acquired:
            return None
        compactors = [Compactor(state_dir, stream, sink) for stream in STREAMS]
        for compactor in compactors:
            compactor.take_back()
            compactor.compact()
        # Only now: a damaged file that keeps others from being merged keeps no segment from it.
        for compactor in compactors:
            compactor.expire(keeping or Keeping())
        for compactor in compactors:
            compactor.merge()
        return {compactor.stream.name: compactor.done for compactor in compactors}


def add_rows(
    state_dir: Path,
    stream: Stream,
    contract: ModelContract,
    table: pa.Table,
    *,
    name: str,
    sink: Sink | None = None,
) -> int:
    """Take rows that no worker wrote into Parquet files.

    Args:
        state_dir: The repo's state folder.
        stream: What they are rows of.
        contract: The contract of all of them.
        table: The rows, in the stream's schema.
        name: Under which they are taken once only.
        sink: Where the files go; that of the settings by default.

    Returns:
        How many were taken; 0 if that name was taken before.

    Raises:
        StateError: A compactor is at work for too long.
    """
    sink = sink or Sink.of(state_dir)
    with _only_compactor(state_dir):
        compactor = Compactor(state_dir, stream, sink)
        compactor.take_back()
        return compactor.add(contract, table, name)


def forget_file(state_dir: Path, path: str, *, sink: Sink | None = None) -> int:
    """Take a file out of the log, for example a damaged one, and count its rows as forgotten.

    Args:
        state_dir: The repo's state folder.
        path: The file's path, as messages have it, or within the sink.
        sink: Where it is; that of the settings by default.

    Returns:
        How many rows it had.

    Raises:
        InputError: The log has no such file.
        StateError: A compactor is at work for too long.
    """
    sink = sink or Sink.of(state_dir)
    with _only_compactor(state_dir):
        for stream in STREAMS:
            rows = Compactor(state_dir, stream, sink).forget(path)
            if rows is not None:
                return rows
    raise InputError(f"The log has no file {path}.", hint="Give its path as the message had it.")


def export_files(
    state_dir: Path,
    stream: Stream,
    model: str,
    copy: Callable[[LogFile], int],
    *,
    sink: Sink | None = None,
) -> int:
    """Copy the files of a model that were not copied before, and mark each once it is.

    Args:
        state_dir: The repo's state folder.
        stream: What the files have rows of.
        model: Whose rows.
        copy: Copies one; how many rows it took.
        sink: Where they are; that of the settings by default.

    Returns:
        How many rows were copied.

    Raises:
        StateError: A compactor is at work for too long.
    """
    with _only_compactor(state_dir):
        compactor = Compactor(state_dir, stream, sink or Sink.of(state_dir))
        return compactor.export(model, copy)


@contextmanager
def _only_compactor(state_dir: Path) -> Iterator[None]:
    """Be the only process that commits; wait for another one to end.

    Raises:
        StateError: It does not end in time.
    """
    with file_lock(wal_dir(state_dir) / _LOCK, timeout_s=WAIT_S) as is_acquired:
        if not is_acquired:
            raise StateError(
                f"The compactor of {wal_dir(state_dir)} has been at work for {WAIT_S:.0f} s.",
                hint="Try again once it is done.",
            )
        yield
