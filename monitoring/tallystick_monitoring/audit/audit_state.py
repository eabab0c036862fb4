"""What earlier audits of a model found, so that the next one reads only what is new.

::

    audit/<model>/<clock>/state.json                 which of the files below count
                         /units/<day>-<n>.parquet    what was compared, hour by hour
                         /findings/day=<day>/….parquet
                         /history/….parquet          what history held when it was compared

An audit writes new files beside the old ones, then ``state.json``, then removes the old ones: one
that is killed leaves the state as it was. All of it can be made again from log and history. A state
that cannot be read, or that other rules made, is made again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tallystick.definitions.feature_view import digest
from tallystick.errors import DataError, StateError
from tallystick.storage.atomic_files import replacing, write_text
from tallystick.storage.locks import file_lock
from tallystick_monitoring.audit.findings import together
from tallystick_monitoring.audit.hourly_counts import schema

STATE_VERSION: Final = 4
"""Version of the layout, of the rules by which causes are given, and of how history is hashed."""

_WAIT_S: Final = 600.0


class Day(BaseModel):
    """What is known of a day.

    Attributes:
        version: Of the day's log when all of it was compared, or None if only a part was.
        units: File of what was compared.
        findings: Files of what was found.
        doubtful: Views with findings that a later request may show in another light.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str | None = None
    units: str
    findings: tuple[str, ...] = ()
    doubtful: tuple[str, ...] = ()


class SourceHashes(BaseModel):
    """A file of the state with hashes of the rows of some source files.

    Attributes:
        file: The file, in the columns of :func:`hash_schema`.
        rows: Number of its rows.
        versions: Versions of the source files. Hashes of other versions do not count any more.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    rows: int
    versions: tuple[str, ...]


class HistoryMark(BaseModel):
    """What a view's history was when it was compared.

    Attributes:
        identity: A digest of its source and of the columns that are used.
        hashes: Hashes of its rows, by source file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    hashes: tuple[SourceHashes, ...]


def hash_schema() -> pa.Schema:
    """The columns of the hashes of a view's history.

    One row per source file, hour in which rows became visible, hour before their event, and bucket
    of their keys: the number of these rows, and their hash.
    """
    whole = ("hour", "event_hour", "bucket", "rows", "mark")
    return pa.schema([("version", pa.string()), *((name, pa.int64()) for name in whole)])


class Seen(BaseModel):
    """The log that evidence was taken from.

    Attributes:
        begin_us: First request time.
        days: Day → version of its log, also of days that were not compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    begin_us: int
    days: dict[str, str]


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int = STATE_VERSION
    engine: str
    serial: int = 0
    days: dict[str, Day] = Field(default_factory=dict)
    seen: Seen | None = None
    history: dict[str, HistoryMark] = Field(default_factory=dict)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a model's audits for the block, and wait for another one to end.

    Raises:
        StateError: It does not end.
        DataError: The folder cannot be made.
    """
    with ExitStack() as stack:
        with state_errors(folder):
            is_acquired = stack.enter_context(file_lock(folder / "lock", timeout_s=_WAIT_S))
        if not is_acquired:
            raise StateError(
                f"Another audit has been at work in {folder} for ten minutes.",
                hint="Wait until it has ended, or end it, and audit again.",
            )
        yield


@contextmanager
def state_errors(folder: Path) -> Iterator[None]:
    """Say where it was that something could not be written.

    Raises:
        DataError: Something could not.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"The findings of the audit cannot be written to {folder}: {error.strerror or error}",
            hint="Make room on the disk, or give the folder the rights it needs, and audit again.",
        ) from error


class AuditState:
    """What is known of a model's log under one clock.

    Args:
        folder: Its folder, which :func:`locked` locks.
        is_new: Whether to ignore what earlier audits found.
    """

    def __init__(self, folder: Path, *, is_new: bool = False) -> None:
        self._folder = folder
        # Another version of the engine may hash another way.
        self._content = _Content(engine=str(duckdb.__version__))
        self._load(is_new=is_new)

    def _load(self, *, is_new: bool) -> None:
        try:
            text = (self._folder / "state.json").read_text(encoding="utf-8")
            checksum, _, body = text.partition("\n")
            found = _Content.model_validate_json(body)
        except (OSError, UnicodeDecodeError, ValidationError):
            return
        ours = (STATE_VERSION, self._content.engine)
        files = [self._folder / name for name in _files_of(found)]
        if (found.version, found.engine) == ours and checksum == digest(body):
            # The old state counts until the new one is written beside it.
            self._content.serial = found.serial
            if not is_new and all(path.is_file() for path in files):
                self._content = found

    @property
    def _serial(self) -> int:
        """Number of the next commit, in the names of its files."""
        return self._content.serial + 1

    @property
    def days(self) -> Mapping[str, Day]:
        """Day (YYYY-MM-DD) → what is known of it."""
        return self._content.days

    @property
    def history(self) -> Mapping[str, HistoryMark]:
        """View, by its name, definition and clock → what its history was."""
        return self._content.history

    @property
    def seen(self) -> Seen | None:
        """The log that evidence was taken from, or None before the first audit."""
        return self._content.seen

    def units(self, days: Collection[str] | None = None) -> pa.Table:
        """What was compared on these days, by default on all. See :mod:`.hourly_counts`."""
        found = sorted(self.days) if days is None else sorted(set(days) & self.days.keys())
        tables = [self._read(self.days[day].units) for day in found]
        return pa.concat_tables([schema().empty_table(), *tables])

    def findings(self, days: Collection[str]) -> pa.Table:
        """What was found on these days."""
        names = [name for day in days if day in self.days for name in self.days[day].findings]
        return together(self._read(name) for name in names)

    def hashes(self, file: SourceHashes, versions: Collection[str]) -> pa.Table:
        """The hashes of a view's history in a file, of these versions of source files."""
        if not versions:
            return hash_schema().empty_table()
        table = self._read(file.file).cast(hash_schema())
        return table.filter(pc.is_in(table["version"], pa.array(sorted(versions), pa.string())))

    def write_day(
        self,
        day: str,
        *,
        version: str | None,
        units: pa.Table,
        findings: Sequence[pa.Table],
        doubtful: Iterable[str],
    ) -> Day | None:
        """Write what is known of a day, as :class:`Day` says. None without any count.

        Raises:
            DataError: It cannot be written.
        """
        if not units.num_rows:
            return None
        return Day(
            version=version,
            units=self._write(f"units/{day}-{self._serial}.parquet", units),
            findings=tuple(
                self._write(f"findings/day={day}/{self._serial}-{index}.parquet", table)
                for index, table in enumerate(findings)
            ),
            doubtful=tuple(sorted(doubtful)),
        )

    def write_hashes(self, name: str, versions: Iterable[str], hashes: pa.Table) -> SourceHashes:
        """Write hashes of a view's history, of these versions of source files.

        Raises:
            DataError: They cannot be written.
        """
        file = self._write(f"history/{digest(name)}-{self._serial}.parquet", hashes)
        return SourceHashes(file=file, rows=hashes.num_rows, versions=tuple(sorted(versions)))

    def commit(
        self,
        days: Mapping[str, Day | None],
        history: Mapping[str, HistoryMark],
        seen: Seen,
    ) -> None:
        """Replace what was known of these days and views. A day that is None is dropped.

        Raises:
            DataError: It cannot be written. What was known before stays.
        """
        after = self._content.model_copy(
            update={
                "serial": self._serial,
                "days": {
                    day: each for day, each in {**self.days, **days}.items() if each is not None
                },
                "history": {**self.history, **history},
                "seen": seen,
            }
        )
        body = after.model_dump_json(indent=1)
        with state_errors(self._folder):
            write_text(self._folder / "state.json", f"{digest(body)}\n{body}")
        self._content = after
        self._sweep()

    def _sweep(self) -> None:
        """Remove the files that do not count any more."""
        counted = {self._folder / name for name in _files_of(self._content)}
        for path in self._folder.glob("*/**/*.parquet"):
            if path not in counted and not path.name.startswith("."):
                path.unlink(missing_ok=True)

    def _read(self, name: str) -> pa.Table:
        try:
            # Not as a part of a data set, which would add the folder's day as a column.
            return pq.ParquetFile(self._folder / name, page_checksum_verification=True).read()
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{self._folder / name}, which an earlier audit wrote, cannot be read: {error}",
                hint="Audit from the beginning:  tally audit MODEL --again",
            ) from error

    def _write(self, name: str, table: pa.Table) -> str:
        with state_errors(self._folder), replacing(self._folder / name) as draft:
            pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
        return name


def _files_of(content: _Content) -> Iterator[str]:
    for day in content.days.values():
        yield day.units
        yield from day.findings
    for mark in content.history.values():
        yield from (each.file for each in mark.hashes)


def folder_of(state_dir: Path, model: str, clock: Any) -> Path:
    """Where the state of a model's audits under a clock is."""
    return state_dir / "audit" / model / str(clock)
