"""Segments of the write-ahead log, as readers and the compactor see them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Damage, Frame, Totals, read_frames
from tallystick.prediction_log.write_ahead_log import OPEN, SEALED
from tallystick.storage.locks import abandoned


@dataclass(slots=True)
class Segment:
    """What a segment holds.

    Attributes:
        worker: Its writer: process and start.
        number: Its number among that worker's, from 0.
        after: Number of the row that follows its last one.
        totals: The worker's, by its last frame.
        frames: Its whole frames, without those that repeat earlier rows.
        lost: Rows that are damaged, by the row numbers of the frames around them.
        damages: What in it is not a frame.
        is_closed: Whether its worker sealed it.
        is_ended: Whether its worker stopped after it.
    """

    worker: str
    number: int
    after: int
    totals: Totals
    frames: list[Frame] = field(default_factory=list)
    lost: int = 0
    damages: list[Damage] = field(default_factory=list)
    is_closed: bool = False
    is_ended: bool = False

    @property
    def rows(self) -> int:
        """Rows that it holds."""
        return sum(frame.rows for frame in self.frames)

    def add(self, frame: Frame) -> None:
        """Add the next frame, unless it repeats rows that were read before."""
        if frame.rows and frame.first < self.after:
            return
        self.lost += max(0, frame.first - self.after)
        self.after = max(self.after, frame.first + frame.rows)
        self.totals = frame.totals
        self.is_closed, self.is_ended = frame.is_last, frame.is_ended
        if frame.rows:
            self.frames.append(frame)

    def discard(self, frame: Frame, why: str) -> None:
        """Count the rows of a frame as lost."""
        self.frames.remove(frame)
        self.lost += frame.rows
        self.damages.append(Damage(0, 0, f"rows from {frame.first}: {why}", is_end=False))


def read_segment(path: Path, *, expected: int, totals: Totals) -> Segment:
    """Read a segment.

    What a killed worker had begun to write at the end of an open segment does not count as damage:
    it was never acknowledged.

    Args:
        path: Its file.
        expected: Number of the row with which it should begin; rows before it are repetitions.
        totals: The worker's before it.

    Raises:
        FileNotFoundError: It is gone, most likely because it was compacted.
        DamagedError: It cannot be read at all.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"The log segment {path} cannot be read: {error}") from error
    segment = Segment(path.parent.name, int(path.stem), expected, totals)
    for found in read_frames(content):
        if isinstance(found, Frame):
            segment.add(found)
        elif path.suffix == SEALED or not found.is_end:
            segment.damages.append(found)
    return segment


def is_live(path: Path) -> bool:
    """Whether a worker still writes to a segment."""
    if path.suffix != OPEN:
        return False
    with abandoned(path) as handle:
        return handle is None and path.exists()
