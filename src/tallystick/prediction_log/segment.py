"""Segments of the write-ahead log, as those who read and compact them see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Damage, Frame, Totals, read_frames
from tallystick.prediction_log.write_ahead_log import OPEN, SEALED
from tallystick.storage.locks import abandoned


@dataclass(frozen=True, slots=True)
class Segment:
    """What a segment holds.

    Attributes:
        worker: Who wrote it: process and start.
        number: Its number among that worker's, from 0.
        frames: Its whole frames, without those that repeat what was written before.
        after: Number of the row that follows its last one.
        lost: Rows that are damaged, as far as the frames around them tell.
        damages: What in it is no frame.
        totals: Of the worker, by its last frame.
        is_closed: Whether it ends as its worker wanted it to.
        is_ended: Whether its worker wrote no more after it.
    """

    worker: str
    number: int
    frames: tuple[Frame, ...]
    after: int
    lost: int
    damages: tuple[Damage, ...]
    totals: Totals
    is_closed: bool
    is_ended: bool

    @property
    def rows(self) -> int:
        """Rows that it holds."""
        return sum(frame.rows for frame in self.frames)


@dataclass(slots=True)
class _Reading:
    """How far a segment was read."""

    expected: int
    lost: int = 0
    totals: Totals = field(default_factory=Totals)
    is_closed: bool = False
    is_ended: bool = False
    frames: list[Frame] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    def take(self, frame: Frame) -> None:
        if frame.first < self.expected and frame.rows:
            return
        self.lost += max(0, frame.first - self.expected)
        self.expected = max(self.expected, frame.first + frame.rows)
        self.totals = frame.totals
        self.is_closed, self.is_ended = frame.is_last, frame.is_ended
        if frame.rows:
            self.frames.append(frame)


def read_segment(path: Path, *, expected: int = 0, totals: Totals | None = None) -> Segment:
    """Read a segment.

    What a killed worker had begun to write at the end of an open one is no damage: it was never
    acknowledged.

    Args:
        path: Its file.
        expected: Number of the row with which it should begin; rows before it repeat others.
        totals: The worker's before it.

    Raises:
        FileNotFoundError: It is gone, into Parquet files most likely.
        DamagedError: It cannot be read at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"The log segment {path} cannot be read: {error}") from error
    reading = _Reading(expected, totals=totals or Totals())
    for found in read_frames(content):
        if isinstance(found, Frame):
            reading.take(found)
        elif path.suffix == SEALED or not found.is_end:
            reading.damages.append(found)
    return Segment(
        worker=path.parent.name,
        number=int(path.stem),
        frames=tuple(reading.frames),
        after=reading.expected,
        lost=reading.lost,
        damages=tuple(reading.damages),
        totals=reading.totals,
        is_closed=reading.is_closed,
        is_ended=reading.is_ended,
    )


def is_live(path: Path) -> bool:
    """Whether a worker still writes to a segment."""
    if path.suffix != OPEN:
        return False
    with abandoned(path) as handle:
        return handle is None and path.exists()
