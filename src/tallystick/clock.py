"""The clock, and times in microseconds since 1970-01-01 in UTC.

Every component reads the time from a :class:`Clock`. In production it is the system's. For a replay
of history, several processes share one simulated time through a small file
(``TALLYSTICK_CLOCK_FILE``): eight bytes, mapped into memory, so that reading it costs no system
call.
"""

from __future__ import annotations

import mmap
import struct
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Protocol

from tallystick.errors import StateError
from tallystick.settings import settings

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US
DAY_US: Final = 24 * HOUR_US
UNIT_US: Final = {"s": SECOND_US, "ms": 1_000, "us": 1}
"""Arrow's units of time in microseconds."""
_CELL = struct.Struct("<q")


class Clock(Protocol):
    """Something that knows the time."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 in UTC."""
        ...


class SystemClock:
    """The machine's wall clock."""

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 in UTC."""
        return time.time_ns() // 1000


class SimulatedClock:
    """A time that one process sets and others read, through a mapped file.

    Args:
        path: The file of eight bytes; made when ``start`` is given.
        start: The time to begin with. Without it the file must exist.

    Raises:
        StateError: The file does not exist and no start was given.
    """

    def __init__(self, path: Path, *, start: datetime | None = None) -> None:
        if start is not None:
            path.write_bytes(_CELL.pack(to_us(start)))
        elif not path.is_file():
            raise StateError(
                f"The simulated clock's file {path} does not exist.",
                hint="Unset TALLYSTICK_CLOCK_FILE to use the system's clock.",
            )
        with path.open("r+b") as file:
            self._cell = mmap.mmap(file.fileno(), _CELL.size)

    def now_us(self) -> int:
        """Microseconds since 1970-01-01 in UTC."""
        return int(_CELL.unpack_from(self._cell)[0])

    def set(self, moment: datetime) -> None:
        """Move the time to ``moment``, for every process that shares the file."""
        _CELL.pack_into(self._cell, 0, to_us(moment))


@cache
def process_clock() -> Clock:
    """The clock of this process: simulated if the settings name a file, else the system's."""
    path = settings().clock_file
    return SystemClock() if path is None else SimulatedClock(path)


def is_simulated() -> bool:
    """Whether this process's time is not the machine's."""
    return settings().clock_file is not None


def utc(moment: datetime) -> datetime:
    """Give an aware UTC time; a naive one is taken as UTC.

    >>> utc(datetime(2013, 1, 1)).isoformat()
    '2013-01-01T00:00:00+00:00'
    """
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC)


def to_us(moment: datetime) -> int:
    """Microseconds since 1970-01-01 in UTC; exact, unlike ``timestamp()``.

    >>> to_us(datetime(1970, 1, 1, 0, 0, 1))
    1000000
    """
    return duration_us(utc(moment) - EPOCH)


def from_us(microseconds: int) -> datetime:
    """The aware UTC time of ``microseconds`` since 1970-01-01.

    >>> from_us(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return EPOCH + timedelta(0, 0, microseconds)  # by position, which is twice as fast


def duration_us(duration: timedelta) -> int:
    """A duration in microseconds.

    >>> duration_us(timedelta(seconds=2))
    2000000
    """
    return duration // timedelta(microseconds=1)


def arrow_to_us(times: Any) -> Any:
    """Arrow timestamps or dates as 64-bit integers; naive times are UTC, finer ones are cut."""
    import pyarrow as pa

    zone = getattr(times.type, "tz", None)
    return times.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())


def arrow_from_us(microseconds: Any) -> Any:
    """Arrow integers as timestamps in UTC."""
    import pyarrow as pa

    return microseconds.cast(pa.timestamp("us", tz="UTC"))
