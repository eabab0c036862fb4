"""One row of one view as bytes, and back.

A row is a *section* of its entity's value in Redis (:mod:`tallystick.online_store.entity_value`).
All numbers are little-endian::

    view        3   tag of the view's name and keys; the sections of a value are in its order
    definition  3   tag of the view's definition: the row is read by it, never by that of today
    flags       1   which of the widths below the row has
    length      1   bytes that follow; 4 where LONG
    event       8   microseconds since 1970; the fold compares it, then created
    created     0   none, or the same as event; 4: microseconds after event; 8: like event
    write       4   microseconds after event at which the row was written; 6 likewise; 8 like event
    nulls       n   one bit per column of the view, in its order; nothing where none is null
    fixed           INT32, INT64 (4 bytes where all of the row fit), FLOAT, DOUBLE, BOOL,
                    UNIX_TIMESTAMP (microseconds); 0 for null
    lengths     1   of each variable column; 4 where LONG
    variable        STRING as UTF-8, BYTES as they are, lists of numbers as the numbers, all else as
                    Feast's serialized ``Value``

The tags are the first three bytes of SHA-256: of the view's name and the names of its join keys,
and of its definition. What they stand for is registered in Redis before the first row
(:mod:`tallystick.online_store.definition_tags`), and two names or definitions with one tag are
refused there, so that a tag is never ambiguous.

Everything but the last part is one :class:`struct.Struct` for each combination of flags, so that a
row is read by one call, and many rows by one NumPy view.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

from tallystick.definitions.feature_view import NO_ENTITY_KEY
from tallystick.online_store.value_codec import ValueCodec

CREATED: Final = 0b11
NO_CREATED: Final = 0
SAME_CREATED: Final = 1
NEAR_CREATED: Final = 2
FAR_CREATED: Final = 3
WRITE: Final = 0b11 << 2
NEAR_WRITE: Final = 0 << 2
LATER_WRITE: Final = 1 << 2
FAR_WRITE: Final = 2 << 2
LONG_INTEGERS: Final = 1 << 4
NULLS: Final = 1 << 5
LONG: Final = 1 << 6
FLAGS_END: Final = 1 << 7
VALUES: Final = LONG_INTEGERS | NULLS | LONG
"""Flags that say how a row's values lie; the others are of its times."""

VERSION: Final = 2
"""Version of all this, and of the values that the sections make up."""
VIEW_TAG: Final = 3
"""Bytes of a view's tag."""
TAG: Final = 6
"""Bytes of view and definition: they say how a row is read."""
HEAD: Final = 7
"""Bytes of tag and flags: rows with the same head have the same layout."""
SHORT_MAX: Final = 255
NEAR: Final = 1 << 32
LATER: Final = 1 << 48
INT32: Final = range(-(2**31), 2**31)
_NUMPY: Final = {
    "B": "u1",
    "H": "<u2",
    "I": "<u4",
    "i": "<i4",
    "q": "<i8",
    "f": "<f4",
    "d": "<f8",
    "?": "?",
}


def view_tag(view: str, join_keys: Iterable[str]) -> bytes:
    """The tag of a view's name, as it is known online, and of its join keys.

    A view without entities has Feast's stand-in, which Feast does not name everywhere.
    """
    text = json.dumps([view, sorted(join_keys) or [NO_ENTITY_KEY]])
    return hashlib.sha256(text.encode()).digest()[:VIEW_TAG]


class Layout:
    """Where everything lies in rows of one definition with the same flags.

    Attributes:
        flags: The flags.
        struct: Everything but the variable columns' bytes.
        dtype: The same as NumPy's fields; columns are ``c0``, ``c1``…
        values: The part of it that begins with the nulls.
        values_dtype: The same as NumPy's fields.
        places: Field → its place among what :attr:`values` gives.
    """

    def __init__(self, columns: Sequence[ValueCodec], flags: int) -> None:
        length = "I" if flags & LONG else "B"
        created = {NEAR_CREATED: "I", FAR_CREATED: "q"}.get(flags & CREATED)
        start = [("head", f"{HEAD}s"), ("length", length), ("event", "q")]
        if created is not None:
            start.append(("created", created))
        start.append(("write", "q") if flags & WRITE == FAR_WRITE else ("write_low", "I"))
        if flags & WRITE == LATER_WRITE:
            start.append(("write_high", "H"))
        values = [("nulls", f"{(len(columns) + 7) // 8}s")] if flags & NULLS else []
        integer = "q" if flags & LONG_INTEGERS else "i"
        named = [(f"c{place}", cell) for place, cell in enumerate(columns)]
        values += [
            (name, integer if cell.dtype == "INT64" else cell.code)
            for name, cell in named
            if cell.code is not None
        ]
        values += [(name, length) for name, cell in named if cell.code is None]
        self.flags = flags
        self.struct, self.dtype = _struct_of([*start, *values])
        self.values, self.values_dtype = _struct_of(values)
        self.places = {name: place for place, (name, _) in enumerate(values)}


def _struct_of(fields: Sequence[tuple[str, str]]) -> tuple[struct.Struct, list[tuple[Any, ...]]]:
    return struct.Struct("<" + "".join(code for _, code in fields)), [
        (name, "u1", (int(code[:-1]),)) if code.endswith("s") else (name, _NUMPY[code])
        for name, code in fields
    ]
