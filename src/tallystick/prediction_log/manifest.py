"""The manifest of a stream: which Parquet files are in it, and what became of each worker's rows.

A manifest is one small JSON file, with its checksum in a second line. Each commit writes the whole
manifest anew under the next number, and the highest number is valid. A Parquet file is part of the
log if the manifest names it, and a segment of the write-ahead log is not if the manifest says that
it was compacted. So one write of one file moves rows from segments to Parquet.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Totals
from tallystick.prediction_log.segment import Segment, read_segment
from tallystick.storage.locations import Location

Answer = TypeVar("Answer")
MANIFEST_VERSION: Final = 1
FOLDER: Final = "manifest"
_ATTEMPTS: Final = 5
_STAYING: Final = 3
"""Manifests that stay, the newest included: a reader opens a file a moment after listing it."""


class LogFile(BaseModel):
    """A Parquet file of the log: rows of one contract and one day.

    Attributes:
        path: Within the log.
        model: Whose predictions, or labels of whose predictions.
        contract: Hash of the contract of all its rows.
        day: Of the times of all its rows, in UTC; YYYY-MM-DD.
        first_us: The first of these times, in microseconds.
        last_us: The last.
        rows: How many rows it has.
        bytes: Its size.
        footer: Checksum of its end, which says where in it everything is.
        is_exported: Whether it was copied to where a feature service's logging config says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    model: str
    contract: str
    day: str
    first_us: int
    last_us: int
    rows: int
    bytes: int
    footer: int
    is_exported: bool = False


class WorkerRows(BaseModel):
    """What became of the rows of one worker, or of several that have ended.

    Attributes:
        segment: Number of the last segment that was compacted.
        after: Number of the row that comes next.
        rows: Rows that were compacted.
        lost: Rows that were durable, and found damaged.
        damages: Parts of segments that are not whole frames.
        totals: Rows accepted and dropped by the worker when it last wrote.
        is_closed: Whether its last segment was sealed.
        is_ended: Whether it stopped after that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment: int = -1
    after: int = 0
    rows: int = 0
    lost: int = 0
    damages: int = 0
    totals: Totals = Totals()
    is_closed: bool = False
    is_ended: bool = False

    def plus(self, other: WorkerRows) -> WorkerRows:
        """The sum of two workers that have ended."""
        counts = ("after", "rows", "lost", "damages")
        sums = {name: getattr(self, name) + getattr(other, name) for name in counts}
        totals = self.totals.plus(other.totals)
        return WorkerRows(**sums, totals=totals, is_closed=True, is_ended=True)

    def with_segment(self, segment: Segment) -> WorkerRows:
        """Once a segment that was read with ``expected=self.after`` is compacted."""
        return WorkerRows(
            segment=segment.number,
            after=segment.after,
            rows=self.rows + segment.rows,
            lost=self.lost + segment.lost,
            damages=self.damages + len(segment.damages),
            totals=segment.totals,
            is_closed=segment.is_closed,
            is_ended=segment.is_ended,
        )


class Manifest(BaseModel):
    """A stream as it is.

    Attributes:
        version: Of this layout.
        number: Of this manifest; the highest counts.
        files: The stream's Parquet files.
        workers: Worker → what became of its rows.
        past: The sum of workers that have ended and left nothing.
        garbage: Files that were replaced or expired; removed at the next commit.
        expired: Rows removed by the retention.
        imported: Name of an import → its rows.
        forgotten: Rows of files that were taken out by hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = MANIFEST_VERSION
    number: int = 0
    files: tuple[LogFile, ...] = ()
    workers: dict[str, WorkerRows] = Field(default_factory=dict)
    past: WorkerRows = WorkerRows(is_closed=True, is_ended=True)
    garbage: tuple[str, ...] = ()
    expired: int = 0
    imported: dict[str, int] = Field(default_factory=dict)
    forgotten: int = 0

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)


def read_manifests(location: Location, stream: str) -> dict[str, Manifest]:
    """Site → its newest manifest, for all sites that write to a log.

    A site is a state folder: its servers write ahead there, and its one compactor commits.

    Raises:
        DamagedError: A manifest cannot be read.
        UnavailableError: The log's store did not answer.
    """
    top = location / stream / FOLDER
    sites = {file.path.removeprefix(f"{top.path}/").split("/")[0] for file in top.files()}
    return {site: read_manifest(location, stream, site) for site in sorted(sites)}


def read_manifest(location: Location, stream: str, site: str) -> Manifest:
    """The newest manifest of a site; an empty one if there is none. Errors as above."""
    folder = location / stream / FOLDER / site

    def newest() -> Manifest:
        files = folder.files() if site else []
        return _parsed(files[-1]) if files else Manifest()

    return retried(newest, f"The manifests in {folder}")


def write_manifest(location: Location, stream: str, site: str, manifest: Manifest) -> None:
    """Write a manifest as the newest one: the commit."""
    folder = location / stream / FOLDER / site
    content = manifest.model_dump_json().encode()
    file = folder / f"{manifest.number:012d}.json"
    file.write_bytes(content + b"\n%08x\n" % zlib.crc32(content))
    for old in folder.files()[:-_STAYING]:
        old.remove()


def retried(read: Callable[[], Answer], what: str) -> Answer:
    """Read something, again if a compactor removed a file meanwhile: its rows are in a newer one.

    Raises:
        DamagedError: A file is still missing after several attempts.
    """
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError):
            return read()
    raise DamagedError(
        f"{what}: a file that a manifest names is gone.",
        hint="Restore it from a backup, or take it out of the log:  tally log forget FILE",
    )


def uncompacted(paths: Iterable[Path], workers: dict[str, WorkerRows]) -> Iterator[Segment]:
    """Read the segments that a manifest does not cover yet.

    Args:
        paths: Segments, by worker and number.
        workers: The manifest's workers; brought up to date with each segment.

    Raises:
        FileNotFoundError: A segment was compacted meanwhile.
    """
    for path in paths:
        before = workers.get(path.parent.name, WorkerRows())
        if int(path.stem) > before.segment:
            segment = read_segment(path, expected=before.after, totals=before.totals)
            workers[segment.worker] = before.with_segment(segment)
            yield segment


def _parsed(file: Location) -> Manifest:
    content, _, checksum = file.read_bytes().partition(b"\n")
    try:
        if checksum != b"%08x\n" % zlib.crc32(content):
            raise ValueError("it fails its checksum")  # noqa: TRY301 raised as pydantic's is
        return Manifest.model_validate_json(content)
    except ValueError as error:
        raise DamagedError(
            f"{file} is not a manifest that this version can read: {error}",
            hint="Restore it from a backup. The manifest with the next lower number is whole but "
            "lacks what was compacted last.",
        ) from error
