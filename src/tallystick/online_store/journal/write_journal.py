"""The journal of online writes: what went online, and when, in Parquet files.

The served clock replays it. Files are in ``STATE/journal/<view>/<definition hash>``, are whole or
absent, and are named ``<first write>_<last write>_<time>_<id>.parquet``, so that their names sort
in the order in which they were written. docs/adr/0009-the-journal.md describes what holds when a
write is interrupted.

An entry is written before its rows go to Redis, under a name that no reader opens, and gets its
final name once Redis has answered. A write that was interrupted in between leaves a pending entry.
The next write of its view settles it: a row was written if Redis has it with this write time.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tallystick.clock import SystemClock, process_clock
from tallystick.definitions.feature_view import NO_ENTITY_KEY, ViewSpec
from tallystick.errors import DamagedError
from tallystick.online_store.entity_keys import EntityKeys, definitions_key
from tallystick.online_store.entity_value import SectionReader
from tallystick.online_store.journal.journal_entry import TIMES, WRITTEN, key_column
from tallystick.online_store.redis_commands import mget
from tallystick.online_store.redis_connection import SyncClient, redis_errors
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import TAG, times_of_row
from tallystick.storage.atomic_files import drafted, replacing, sync, write_text
from tallystick.storage.background_writer import BackgroundWriter
from tallystick.storage.locks import abandoned

if TYPE_CHECKING:
    import pyarrow as pa

_PENDING: Final = ".pending"
_DEFINITION: Final = "definition.json"
_REMOVED: Final = "removed_"
_KEYS_AT_ONCE: Final = 1_000


def journal_dir(state_dir: Path) -> Path:
    """Folder of the journal."""
    return state_dir / "journal"


def view_folder(state_dir: Path, name: str) -> Path:
    """Folder of one view's entries.

    Args:
        state_dir: The repo's state folder.
        name: The view's name online.
    """
    return journal_dir(state_dir) / quote(name, safe="")


def definitions_in(folder: Path) -> dict[str, ViewSpec]:
    """Hash → definition, of all under which a view was written; may be empty.

    Raises:
        DamagedError: A definition cannot be read.
    """
    found = {}
    for file in sorted(folder.glob(f"*/{_DEFINITION}")):
        try:
            found[file.parent.name] = ViewSpec.model_validate_json(file.read_text("utf-8"))
        except ValueError as error:
            raise DamagedError(
                f"{file} does not hold the definition of a view.",
                hint="Restore it from a backup; the entries beside it cannot be read without it.",
            ) from error
    return found


def removals_in(folder: Path) -> list[int]:
    """The times at which all rows of a view were removed, in microseconds; ascending."""
    return sorted(int(file.name.removeprefix(_REMOVED)) for file in folder.glob(f"{_REMOVED}*"))


def pending_in(folder: Path) -> list[Path]:
    """Pending entries of writes that were interrupted."""
    left = []
    for path in sorted(folder.glob(f"*/.*{_PENDING}")):
        with abandoned(path) as handle:
            if handle is not None:
                left.append(path)
    return left


class Journal:
    """Records online writes, each in a file of its own.

    Args:
        state_dir: The repo's state folder.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    @contextmanager
    def recording(
        self, client: SyncClient, project: str, codec: RowCodec, table: pa.Table
    ) -> Iterator[None]:
        """Record rows while the block writes them to Redis; pending entries are settled first.

        Args:
            client: Redis.
            project: Feast project.
            codec: The definition, and the view's name online.
            table: The rows, by :mod:`tallystick.online_store.journal.journal_entry`.

        Raises:
            UnavailableError: Redis did not answer.
            OSError: The entry could not be written; nothing may be written to Redis then.
        """
        self.settle(client, project, codec.name)
        path, handle = self._write_pending(codec, table)
        try:
            yield  # an error leaves the entry pending
            path.rename(_settled_name(path))
            sync(path.parent)
        finally:
            os.close(handle)

    def removed(self, view: str | None = None, *, version: str | None = None) -> None:
        """Record that online rows were removed.

        Args:
            view: Name of the view; None for all rows of the project.
            version: The view's name online, where only one version was removed; None for all.
        """
        name = version if version is not None else view
        written = quote(name or "", safe="")
        for folder in sorted(journal_dir(self._state_dir).glob("*")):
            is_version = version is None and folder.name.startswith(f"{written}%00")
            if (name is None or folder.name == written or is_version) and any(
                folder.glob("*/*.parquet")
            ):
                write_text(folder / f"{_REMOVED}{process_clock().now_us():020d}", "")

    def settle(self, client: SyncClient, project: str, name: str) -> None:
        """Settle pending entries, and notice a store that was emptied."""
        folder = view_folder(self._state_dir, name)
        for path in sorted(folder.glob(f"*/.*{_PENDING}")):
            with abandoned(path) as handle:
                if handle is None:
                    continue
                import pyarrow as pa
                import pyarrow.parquet as pq

                codec = RowCodec(definitions_in(folder)[path.parent.name], name)
                table = pq.read_table(path)
                online = _are_online(client, project, codec, table)
                written = table.filter(pa.array(online, pa.bool_()))
                if written.num_rows:
                    _write(written, _settled_name(path))
                path.unlink()
        with redis_errors(client):
            is_filled = client.exists(definitions_key(project))
        if not is_filled:
            self.removed()

    def _folder_of(self, codec: RowCodec) -> Path:
        folder = view_folder(self._state_dir, codec.name) / codec.spec.definition_hash
        # Checked each time: a clean-up of old entries may have removed it.
        if not (folder / _DEFINITION).is_file():
            write_text(folder / _DEFINITION, codec.spec.canonical_json())
        return folder

    def _write_pending(self, codec: RowCodec, table: pa.Table) -> tuple[Path, int]:
        """Write a pending entry; gives its path, and the descriptor that holds its lock."""
        path = self._folder_of(codec) / f".{_name_of(table)}{_PENDING}"
        with drafted(path) as (draft, lock):
            _write_parquet(table, draft)
            return path, os.dup(lock)


class BufferedJournal(Journal):
    """Records online writes in memory once they are done; a thread writes them to files.

    For a process that answers requests: it does not write a file for each row. The entry of a write
    that failed is written at once, and is pending.

    Args:
        state_dir: The repo's state folder.
        rows_max: See :class:`tallystick.storage.background_writer.BackgroundWriter`.
        flush_rows: See there.
        interval_s: See there.
    """

    def __init__(
        self, state_dir: Path, *, rows_max: int, flush_rows: int, interval_s: float
    ) -> None:
        super().__init__(state_dir)
        self.buffer: BackgroundWriter[tuple[RowCodec, pa.Table]] = BackgroundWriter(
            self._write_items,
            name="journal",
            rows_max=rows_max,
            interval_s=interval_s,
            flush_rows=flush_rows,
            group_of=lambda item: item[0].tag,
        )

    @contextmanager
    def recording(
        self, client: SyncClient, project: str, codec: RowCodec, table: pa.Table
    ) -> Iterator[None]:
        """See :meth:`Journal.recording`."""
        self.settle(client, project, codec.name)
        try:
            yield
        except BaseException:
            os.close(self._write_pending(codec, table)[1])
            raise
        if table.num_rows:
            self.buffer.append((codec, table), table.num_rows)

    def removed(self, view: str | None = None, *, version: str | None = None) -> None:
        """See :meth:`Journal.removed`."""
        self.buffer.flush()
        super().removed(view, version=version)

    def _write_items(self, items: Sequence[tuple[RowCodec, pa.Table]]) -> None:
        import pyarrow as pa

        table = pa.concat_tables([table for _, table in items]).combine_chunks()
        _write(table, self._folder_of(items[0][0]) / f"{_name_of(table)}.parquet")


_of_process: dict[Path, Journal] = {}


@contextmanager
def journal_in_use(state_dir: Path, journal: Journal) -> Iterator[None]:
    """Record all writes of this process to the repo of ``state_dir`` in one journal."""
    _of_process[state_dir.resolve()] = journal
    try:
        yield
    finally:
        del _of_process[state_dir.resolve()]


def journal_of(state_dir: Path) -> Journal:
    """The journal in which this process records writes to the repo of ``state_dir``."""
    return _of_process.get(state_dir.resolve()) or Journal(state_dir)


def _are_online(client: SyncClient, project: str, codec: RowCodec, table: pa.Table) -> list[bool]:
    """Which rows Redis has with exactly this write time."""
    import pyarrow as pa

    count = table.num_rows
    columns: list[Any] = [
        [""] * count if key.name == NO_ENTITY_KEY else table[key_column(key.name)].to_pylist()
        for key in codec.spec.join_keys
    ]
    keys = EntityKeys(project, codec.spec.join_keys).of(columns)
    times = list(zip(*(table[name].cast(pa.int64()).to_pylist() for name in TIMES), strict=True))
    sections = SectionReader([codec.view])
    online = []
    for start in range(0, count, _KEYS_AT_ONCE):
        requested = keys[start : start + _KEYS_AT_ONCE]
        with redis_errors(client):
            found = mget(client, [key or b"" for key in requested])
        rows = sections.rows(found)[codec.view]
        online += [
            key is not None
            and row is not None
            and row[:TAG] == codec.tag
            and times_of_row(row) == expected
            for key, row, expected in zip(
                requested, rows, times[start : start + _KEYS_AT_ONCE], strict=True
            )
        ]
    return online


def _name_of(table: pa.Table) -> str:
    """The name of an entry; later ones sort behind earlier ones."""
    import pyarrow.compute as pc

    if not table.num_rows:
        first = last = process_clock().now_us()
    else:
        span: Any = pc.min_max(table[WRITTEN])
        first, last = span["min"].value, span["max"].value
    return f"{first:018d}_{last:018d}_{SystemClock().now_us():018d}_{uuid.uuid4().hex[:12]}"


def _settled_name(path: Path) -> Path:
    return path.with_name(f"{path.name.removeprefix('.').removesuffix(_PENDING)}.parquet")


def _write(table: pa.Table, path: Path) -> None:
    with replacing(path) as temporary:
        _write_parquet(table, temporary)


def _write_parquet(table: pa.Table, path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, path, compression="zstd", compression_level=1)
