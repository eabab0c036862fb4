"""One entity's value in Redis: the rows of all its views, in the order of their tags.

::

    version   1   byte: that of this layout
    sections      rows as :mod:`tallystick.online_store.row_layout` has them

One value for all views of an entity takes much less memory than one for each, and a request for
several views reads it once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tallystick.online_store.entity_value_batch import FROM, Table, walk
from tallystick.online_store.row_layout import HEAD, LONG, TAG, VERSION, VIEW_TAG
from tallystick.online_store.value_codec import damaged

_LONG_HEAD: Final = HEAD + 4
_SHORT_HEAD: Final = HEAD + 1
_OUTLINES_MAX: Final = 8
"""Outlines of one length that are tried before a value is looked through by itself."""
_LENGTHS_MAX: Final = 1_000


def joined(rows: Sequence[bytes]) -> bytes:
    """The value of an entity that has these rows, one of each view."""
    return bytes((VERSION,)) + b"".join(sorted(rows))


def spans(value: bytes) -> list[tuple[int, int]]:
    """Start and end of each section.

    Raises:
        DamagedError: The bytes are no such value, or of another version, or cut.
    """
    if not value or value[0] != VERSION:
        raise damaged(f"a value of version {VERSION}", f"bytes that start with {value[:1]!r}")
    found = []
    start, whole = 1, len(value)
    while start < whole:
        end = whole + 1
        if start + _LONG_HEAD <= whole and value[start + TAG] & LONG:
            end = start + _LONG_HEAD + int.from_bytes(value[start + HEAD : start + 11], "little")
        elif start + _SHORT_HEAD <= whole:
            end = start + _SHORT_HEAD + value[start + HEAD]
        if end > whole:
            raise damaged("a whole value", f"{whole} bytes, cut in the section at {start}")
        found.append((start, end))
        start = end
    return found


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class Found:
    """Values of a request, sorted by how they are read.

    Attributes:
        tables: Those that are read at once.
        places: Where the others stand in the request.
        rows: Tag of a view → its row in each of the others, None where there is none.
    """

    tables: list[Table]
    places: list[int]
    rows: dict[bytes, list[bytes | None]]


class SectionReader:
    """Finds the rows of some views in the values of entities.

    Values of one length mostly have the same sections, so that what was found for one need only be
    held against the next; it is kept from one call to another.

    Args:
        views: Tags of the views.
    """

    def __init__(self, views: Iterable[bytes]) -> None:
        self._views = tuple(dict.fromkeys(views))
        self._known: dict[int, list[_Outline]] = {}

    def rows(self, values: Sequence[bytes | None]) -> dict[bytes, list[bytes | None]]:
        """The rows of the views.

        Args:
            values: Values of entities, None for an entity that has none.

        Returns:
            Tag → its row in each value, None where there is none.

        Raises:
            DamagedError: A value cannot be read.
        """
        outlines = [None if value is None else self._outline(value) for value in values]
        rows: dict[bytes, list[bytes | None]] = {}
        for view in self._views:
            rows[view] = column = []
            for value, outline in zip(values, outlines, strict=True):
                place = None if outline is None else outline.places.get(view)
                column.append(None if place is None or value is None else value[place])
        return rows

    def find(self, values: Sequence[bytes | None]) -> Found:
        """The rows of the views, of many values at once where that can be.

        Args:
            values: Values of entities, None for an entity that has none.

        Raises:
            DamagedError: A value cannot be read.
        """
        if len(values) < FROM:
            return Found([], [], self.rows(values))
        tables, places = walk(values)
        return Found(tables, places, self.rows([values[place] for place in places]))

    def _outline(self, value: bytes) -> _Outline:
        """Where a value's sections lie, by those of other values of its length if they fit."""
        alike = self._known.get(len(value))
        if alike is None:
            if len(self._known) >= _LENGTHS_MAX:
                self._known = {}
            alike = self._known[len(value)] = []
        for outline in alike:
            if outline.fits(value):
                return outline
        outline = _Outline(value)
        if len(alike) < _OUTLINES_MAX:
            alike.append(outline)
        return outline


class _Outline:
    """Where the sections of one value lie."""

    __slots__ = ("_heads", "places")

    def __init__(self, value: bytes) -> None:
        found = spans(value)
        self.places = {value[start : start + VIEW_TAG]: slice(start, end) for start, end in found}
        heads = [slice(0, 1)]
        heads += [
            slice(start, start + (_LONG_HEAD if value[start + TAG] & LONG else _SHORT_HEAD))
            for start, _ in found
        ]
        self._heads = [(head, value[head]) for head in heads]

    def fits(self, value: bytes) -> bool:
        """Whether another value of the same length has the same sections at the same places."""
        for place, head in self._heads:  # noqa: SIM110 all() takes twice as long
            if value[place] != head:
                return False
        return True
