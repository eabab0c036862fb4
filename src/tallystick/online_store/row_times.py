"""Event, created and write time of packed rows, each in the width that its row's flags say."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from tallystick.online_store.row_layout import (
    CREATED,
    FAR_CREATED,
    FAR_WRITE,
    FLAGS_END,
    HEAD,
    LATER,
    LATER_WRITE,
    LONG,
    NEAR,
    NEAR_CREATED,
    NEAR_WRITE,
    NO_CREATED,
    SAME_CREATED,
    TAG,
    WRITE,
)
from tallystick.online_store.value_codec import damaged

Times: TypeAlias = tuple[list[int | None], list[int | None], list[int | None]]
"""Event, created (None where a row has none) and write times, in microseconds."""

_LOW: Final = (1 << 32) - 1
_CREATED_BYTES: Final = {NO_CREATED: 0, SAME_CREATED: 0, NEAR_CREATED: 4, FAR_CREATED: 8}
_WRITE_BYTES: Final = {NEAR_WRITE: 4, LATER_WRITE: 6, FAR_WRITE: 8}


def head_bytes(flags: int) -> int:
    """Bytes before the times: tag, flags and length."""
    return HEAD + (4 if flags & LONG else 1)


def _values_at(flags: int) -> int:
    if flags & WRITE > FAR_WRITE:
        return 0
    times = 8 + _CREATED_BYTES[flags & CREATED] + _WRITE_BYTES[flags & WRITE]
    return head_bytes(flags) + times


CREATED_BYTES: Final = tuple(_CREATED_BYTES[flags & CREATED] for flags in range(256))
"""Flags → bytes of the created time."""

VALUES_AT: Final = tuple(map(_values_at, range(FLAGS_END))) + (0,) * (256 - FLAGS_END)
"""Flags → where a row's values begin; 0 for flags that no row has."""


def order_of(row: bytes) -> tuple[int, int]:
    """What the fold compares: event time and created time, in microseconds."""
    event_us, created_us, _ = _READ[row[TAG]](row)
    return event_us, event_us if created_us is None else created_us


def time_flags(event_us: int, created_us: int | None, write_us: int) -> int:
    """The flags of a row with these times."""
    if created_us is None:
        flags = NO_CREATED
    elif created_us == event_us:
        flags = SAME_CREATED
    else:
        flags = NEAR_CREATED if 0 < created_us - event_us < NEAR else FAR_CREATED
    after_us = write_us - event_us
    if 0 <= after_us < NEAR:
        return flags | NEAR_WRITE
    return flags | (LATER_WRITE if 0 <= after_us < LATER else FAR_WRITE)


def time_fields(flags: int, event_us: int, created_us: int | None, write_us: int) -> list[int]:
    """What a row with these flags has for its times, in the order of its layout."""
    times = [event_us]
    kind = flags & CREATED
    if kind == FAR_CREATED and created_us is not None:
        times.append(created_us)
    elif kind == NEAR_CREATED and created_us is not None:
        times.append(created_us - event_us)
    if flags & WRITE == FAR_WRITE:
        return [*times, write_us]
    after_us = write_us - event_us
    if flags & WRITE == NEAR_WRITE:
        return [*times, after_us]
    return [*times, after_us & _LOW, after_us >> 32]


def times_of_row(row: bytes) -> tuple[int, int | None, int]:
    """The times of a row that is known to have them."""
    return _READ[row[TAG]](row)


def times_of(rows: Sequence[bytes]) -> Times:
    """The times of rows, each with flags of its own.

    Raises:
        DamagedError: A row is cut within its times.
    """
    try:
        event_us, created_us, write_us = zip(*[_READ[row[TAG]](row) for row in rows], strict=True)
    except struct.error as error:
        raise damaged("a whole row", str(error)) from error
    return list(event_us), list(created_us), list(write_us)


_SHAPES: Final[dict[int, tuple[str, Callable[..., tuple[int, int | None, int]]]]] = {
    NO_CREATED | NEAR_WRITE: ("qI", lambda e, w: (e, None, e + w)),
    NO_CREATED | LATER_WRITE: ("qIH", lambda e, w, h: (e, None, e + w + (h << 32))),
    NO_CREATED | FAR_WRITE: ("qq", lambda e, w: (e, None, w)),
    SAME_CREATED | NEAR_WRITE: ("qI", lambda e, w: (e, e, e + w)),
    SAME_CREATED | LATER_WRITE: ("qIH", lambda e, w, h: (e, e, e + w + (h << 32))),
    SAME_CREATED | FAR_WRITE: ("qq", lambda e, w: (e, e, w)),
    NEAR_CREATED | NEAR_WRITE: ("qII", lambda e, c, w: (e, e + c, e + w)),
    NEAR_CREATED | LATER_WRITE: ("qIIH", lambda e, c, w, h: (e, e + c, e + w + (h << 32))),
    NEAR_CREATED | FAR_WRITE: ("qIq", lambda e, c, w: (e, e + c, w)),
    FAR_CREATED | NEAR_WRITE: ("qqI", lambda e, c, w: (e, c, e + w)),
    FAR_CREATED | LATER_WRITE: ("qqIH", lambda e, c, w, h: (e, c, e + w + (h << 32))),
    FAR_CREATED | FAR_WRITE: ("qqq", lambda e, c, w: (e, c, w)),
}
"""Flags of times → format, and the three times from it; written out, as it has to be quick."""


def _reader(flags: int) -> Callable[[bytes], tuple[int, int | None, int]]:
    """What reads the times of a row with these flags."""
    code, times = _SHAPES[flags & (CREATED | WRITE)]
    unpack, at = struct.Struct(f"<{code}").unpack_from, head_bytes(flags)
    return lambda row: times(*unpack(row, at))


_READ: Final = {flags: _reader(flags) for flags in range(FLAGS_END) if VALUES_AT[flags]}
