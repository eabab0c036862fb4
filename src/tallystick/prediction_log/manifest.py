"""The manifest of a stream: which Parquet files are in it, and what became of each worker's rows.

It is one small file in the sink, JSON and in a second line its checksum, written anew under the
next number at each commit; the highest number counts. A Parquet file counts if the manifest names
it, and a segment of the write-ahead log does not count any more if the manifest says that it was
compacted. So one write of one file moves rows from there to here, whatever happens before or after
it.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Totals
from tallystick.prediction_log.log_location import Sink
from tallystick.prediction_log.segment import Segment

MANIFEST_VERSION: Final = 1
FOLDER: Final = "manifest"
_KEPT: Final = 3
"""Manifests that stay, the newest included: who has found a name reads it a moment later."""


class LogFile(BaseModel):
    """A Parquet file of the log: rows of one contract and one day.

    Attributes:
        path: Within the sink.
        model: Whose predictions, or labels of whose predictions.
        contract: Hash of the contract of all its rows.
        day: Of the times of all its rows, in UTC; YYYY-MM-DD.
        first_us: The first of these times, in microseconds.
        last_us: The last.
        rows: How many rows it has.
        bytes: Its size.
        footer: Checksum of its end, which says where in it everything is; None where unknown.
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
    footer: int | None = None
    is_exported: bool = False


class WorkerRows(BaseModel):
    """What became of the rows of one worker, or of several that have ended.

    Attributes:
        segment: Number of the last segment that was compacted.
        after: Number of the row that comes next.
        rows: Rows that were compacted.
        lost: Rows that were acknowledged as durable, and found damaged.
        damages: Places in segments that were no whole frame.
        accepted: Rows that the worker had been given when it last wrote.
        full: Rows that it had dropped by then because its buffer was full.
        budget: Because the disk budget was used up.
        refused: Because it was ending.
        is_closed: Whether its last segment ends as it should.
        is_ended: Whether it wrote no more after that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    segment: int = -1
    after: int = 0
    rows: int = 0
    lost: int = 0
    damages: int = 0
    accepted: int = 0
    full: int = 0
    budget: int = 0
    refused: int = 0
    is_closed: bool = False
    is_ended: bool = False

    @property
    def dropped(self) -> int:
        """Rows that it dropped, for any reason."""
        return self.full + self.budget + self.refused

    def plus(self, other: WorkerRows) -> WorkerRows:
        """What became of the rows of both, who have ended."""
        counts = ("after", "rows", "lost", "damages", "accepted", "full", "budget", "refused")
        sums = {name: getattr(self, name) + getattr(other, name) for name in counts}
        return WorkerRows(**sums, is_closed=True, is_ended=True)

    @property
    def totals(self) -> Totals:
        """Accepted and dropped rows, as the next segment should have them at least."""
        return Totals(self.accepted, self.full, self.budget, self.refused)

    def with_segment(self, segment: Segment) -> WorkerRows:
        """Once a segment that was read with ``expected=self.after`` is compacted."""
        return WorkerRows(
            segment=segment.number,
            after=segment.after,
            rows=self.rows + segment.rows,
            lost=self.lost + segment.lost,
            damages=self.damages + len(segment.damages),
            accepted=segment.totals.accepted,
            full=segment.totals.full,
            budget=segment.totals.budget,
            refused=segment.totals.refused,
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
        past: The sum of those who have ended and left nothing.
        garbage: Files that were replaced, or had had their time; removed at the next commit.
        expired: Rows that are gone because they had had their time.
        imported: Name of an import that was taken → its rows.
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


def read_manifests(sink: Sink, stream: str) -> dict[str, Manifest]:
    """Site → its newest manifest, for all who write to a sink.

    A site is a state folder whose servers write ahead there, and whose one compactor commits.

    Raises:
        DamagedError: A manifest cannot be read.
        UnavailableError: The sink did not answer.
    """
    top = f"{stream}/{FOLDER}"
    newest: dict[str, str] = {}
    for name in sink.names(top):
        newest[name.removeprefix(f"{top}/").split("/")[0]] = name
    return {site: _newest(sink, stream, site, name) for site, name in newest.items()}


def read_manifest(sink: Sink, stream: str, site: str) -> Manifest:
    """The newest manifest of a site; an empty one if there is none. Errors as above."""
    if not site:
        return Manifest()
    names = sink.names(f"{stream}/{FOLDER}/{site}")
    return _newest(sink, stream, site, names[-1]) if names else Manifest()


def write_manifest(sink: Sink, stream: str, site: str, manifest: Manifest) -> None:
    """Write a manifest as the newest one: what it says is so from now on."""
    folder = f"{stream}/{FOLDER}/{site}"
    content = manifest.model_dump_json().encode()
    sink.write_bytes(
        f"{folder}/{manifest.number:012d}.json", content + b"\n%08x\n" % zlib.crc32(content)
    )
    for name in sink.names(folder)[:-_KEPT]:
        sink.remove(name)


def _newest(sink: Sink, stream: str, site: str, name: str) -> Manifest:
    """The manifest of that name, or a newer one if it is gone meanwhile."""
    for _ in range(_KEPT):
        with suppress(FileNotFoundError):
            return _parsed(sink, name)
        name = sink.names(f"{stream}/{FOLDER}/{site}")[-1]
    raise DamagedError(
        f"The manifests of {stream} in {sink.place} vanish while they are read.",
        hint="Let only one compactor write for each state folder.",
    )


def _check(content: bytes, checksum: bytes) -> None:
    if checksum != b"%08x\n" % zlib.crc32(content):
        raise ValueError("it fails its checksum")


def _parsed(sink: Sink, name: str) -> Manifest:
    content, _, checksum = sink.read_bytes(name).partition(b"\n")
    try:
        _check(content, checksum)
        return Manifest.model_validate_json(content)
    except ValueError as error:  # pydantic's is one, too
        raise DamagedError(
            f"{sink.text(name)} is not a manifest that this version can read: {error}",
            hint="Restore it from a backup; the one before it, under the next lower number, is "
            "whole but lacks what was compacted last.",
        ) from error
