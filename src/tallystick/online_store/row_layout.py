"""The layout of a packed row, which the codec and the Lua scripts are generated from.

A row is a *section* of its entity's value in Redis (:mod:`tallystick.online_store.entity_value`).
All numbers are little-endian::

    view        4   tag of the view's name and keys; the sections of a value are in its order
    definition  4   tag of the definition under which the row was written, and by which it is read
    flags       1   widths of what follows
    length      1   bytes that follow; 4 where LONG
    event       8   microseconds since 1970
    created     n   offset from event; 0, 4, 6 or 8 bytes
    write       n   offset from event of the time at which the row was written; likewise
    nulls       n   one bit per column, in the view's order; absent where no value is null
    fixed           INT32, INT64 (4 bytes where all of the row fit), FLOAT, DOUBLE, BOOL,
                    UNIX_TIMESTAMP (microseconds); 0 for null
    lengths     1   of each variable column; 4 where LONG
    variable        bytes of each variable column

An offset is a difference modulo 2**64. It takes the fewest bytes that hold it, and eight for a time
before the event time. The tags are the first bytes of SHA-256 of the view's name and the names of
its join keys, and of the definition.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from tallystick.definitions.feature_view import NO_ENTITY_KEY
from tallystick.online_store.value_codec import ValueCodec

VERSION: Final = 3
"""Version of the layout, and the first byte of an entity's value."""
VIEW_TAG: Final = 4
"""Bytes of a view's tag."""
TAG: Final = 8
"""Bytes of the tags of view and definition; the flags follow."""
HEAD: Final = TAG + 1
"""Bytes before the length."""

CREATED: Final = 0b11
"""Flags: which of :data:`OFFSET_BYTES` the created time has."""
WRITE: Final = 0b1100
WRITE_SHIFT: Final = 2
LONG_INTEGERS: Final = 1 << 4
NULLS: Final = 1 << 5
LONG: Final = 1 << 6
NO_CREATED: Final = 1 << 7
VALUES: Final = LONG_INTEGERS | NULLS | LONG
"""The flags of a row's values; the others are of its times."""
OFFSET_BYTES: Final = (0, 4, 6, 8)
SHORT_MAX: Final = 255
INT32: Final = range(-(2**31), 2**31)


class Starts(NamedTuple):
    """The first byte of each part of a row with certain flags."""

    event: int
    created: int
    write: int
    values: int


def _starts(flags: int) -> Starts:
    event = HEAD + (4 if flags & LONG else 1)
    created = event + 8
    write = created + OFFSET_BYTES[flags & CREATED]
    return Starts(event, created, write, write + OFFSET_BYTES[(flags & WRITE) >> WRITE_SHIFT])


STARTS: Final = tuple(map(_starts, range(256)))
"""Flags → where the parts of a row begin."""

Times = tuple[int, int | None, int]
"""Event, created (None for a row without) and write time, in microseconds."""


def times_of_row(row: bytes) -> Times:
    """The times of a row that is known to be whole."""
    return _TIMES_OF[row[TAG]](row)


def _plus(event_us: int, offset: int) -> int:
    total = event_us + offset
    return total - 2**64 if total >= 2**63 else total


_SHAPES: Final[dict[tuple[int, int], Callable[..., Times]]] = {
    (0, 0): lambda e: (e, e, e),
    (0, 4): lambda e, w: (e, e, e + w),
    (0, 6): lambda e, w, x: (e, e, e + w + (x << 32)),
    (0, 8): lambda e, w: (e, e, _plus(e, w)),
    (4, 0): lambda e, c: (e, e + c, e),
    (4, 4): lambda e, c, w: (e, e + c, e + w),
    (4, 6): lambda e, c, w, x: (e, e + c, e + w + (x << 32)),
    (4, 8): lambda e, c, w: (e, e + c, _plus(e, w)),
    (6, 0): lambda e, c, d: (e, e + c + (d << 32), e),
    (6, 4): lambda e, c, d, w: (e, e + c + (d << 32), e + w),
    (6, 6): lambda e, c, d, w, x: (e, e + c + (d << 32), e + w + (x << 32)),
    (6, 8): lambda e, c, d, w: (e, e + c + (d << 32), _plus(e, w)),
    (8, 0): lambda e, c: (e, _plus(e, c), e),
    (8, 4): lambda e, c, w: (e, _plus(e, c), e + w),
    (8, 6): lambda e, c, w, x: (e, _plus(e, c), e + w + (x << 32)),
    (8, 8): lambda e, c, w: (e, _plus(e, c), _plus(e, w)),
}
"""Bytes of both offsets → the times from unpacked fields; written out, as each row read needs it.
"""
_OFFSET_CODES: Final = {0: "", 4: "I", 6: "IH", 8: "Q"}


def _times_reader(flags: int) -> Callable[[bytes], Times]:
    """The function that reads the times of rows with these flags."""
    at, created_at, write_at, values_at = STARTS[flags]
    widths = (write_at - created_at, values_at - write_at)
    code = "<q" + "".join(_OFFSET_CODES[width] for width in widths)
    unpack, times = struct.Struct(code).unpack_from, _SHAPES[widths]
    if not flags & NO_CREATED:
        return lambda row: times(*unpack(row, at))

    def without_created(row: bytes) -> Times:
        event_us, _, write_us = times(*unpack(row, at))
        return event_us, None, write_us

    return without_created


_TIMES_OF: Final = tuple(map(_times_reader, range(256)))


def order_of(row: bytes) -> tuple[int, int]:
    """What the point-in-time rule compares: event time, then created time, in microseconds."""
    event_us, created_us, _ = times_of_row(row)
    return event_us, event_us if created_us is None else created_us


def view_tag(view: str, join_keys: Iterable[str]) -> bytes:
    """The tag of a view's name online and of its join keys.

    A view without entities has Feast's stand-in, which Feast does not name everywhere.
    """
    text = json.dumps([view, sorted(join_keys) or [NO_ENTITY_KEY]])
    return hashlib.sha256(text.encode()).digest()[:VIEW_TAG]


_NUMPY: Final = {"B": "u1", "I": "<u4", "i": "<i4", "q": "<i8", "f": "<f4", "d": "<f8", "?": "?"}


class Layout:
    """The fields of rows of one definition with the same flags.

    Columns are the fields ``c0``, ``c1`` and so on; for one of variable width, its length.

    Attributes:
        flags: The flags.
        dtype: All fields, for NumPy; what the variable columns hold follows.
        values: The fields from the nulls on, for ``struct``.
        values_dtype: The same fields for NumPy.
        positions: Field → its position among what :attr:`values` unpacks.
    """

    def __init__(self, columns: Sequence[ValueCodec], flags: int) -> None:
        length = "I" if flags & LONG else "B"
        starts = STARTS[flags]
        head = [
            ("tag", f"{TAG}s"),
            ("flags", "B"),
            ("length", length),
            ("event", "q"),
            ("created", f"{starts.write - starts.created}s"),
            ("write", f"{starts.values - starts.write}s"),
        ]
        values = [("nulls", f"{(len(columns) + 7) // 8}s")] if flags & NULLS else []
        integer = "q" if flags & LONG_INTEGERS else "i"
        values += [
            (f"c{index}", integer if cell.dtype == "INT64" else cell.code)
            for index, cell in enumerate(columns)
            if cell.code is not None
        ]
        values += [(f"c{index}", length) for index, cell in enumerate(columns) if cell.code is None]
        self.flags = flags
        self.dtype = _dtype([*head, *values])
        self.values = struct.Struct("<" + "".join(code for _, code in values))
        self.values_dtype = _dtype(values)
        self.positions = {name: position for position, (name, _) in enumerate(values)}


def _dtype(fields: Sequence[tuple[str, str]]) -> list[tuple[Any, ...]]:
    return [
        (name, "u1", (int(code[:-1]),)) if code.endswith("s") else (name, _NUMPY[code])
        for name, code in fields
    ]
