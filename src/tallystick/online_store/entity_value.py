"""The value of one entity in Redis: the rows of all its views, in the order of their tags.

::

    version   1   byte: that of the layout
    sections      rows; see :mod:`tallystick.online_store.row_layout`

One value for all views of an entity takes much less memory than one for each, and a request for
several views reads it once. Many values with the same views under the same definitions, as nearly
all values of a request have, are read together: section by section, without a step for each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tallystick.online_store.row_layout import HEAD, LONG, TAG, VERSION, VIEW_TAG
from tallystick.online_store.value_codec import damaged

BATCH_MIN: Final = 20
"""Values from which reading them together is faster than one after the other."""
_BATCHES_MAX: Final = 8
_LONG_HEAD: Final = HEAD + 4
_SHORT_HEAD: Final = HEAD + 1
_PADDING: Final = bytes(TAG + 8)

Array = np.ndarray[Any, np.dtype[Any]]


def spans(value: bytes) -> list[tuple[int, int]]:
    """Start and end of each section.

    Raises:
        DamagedError: The bytes are not such a value, of another version, or cut.
    """
    if not value or value[0] != VERSION:
        raise damaged(f"a value of version {VERSION}", f"bytes that start with {value[:1]!r}")
    found = []
    start, whole = 1, len(value)
    try:
        while start < whole:
            if value[start + TAG] & LONG:
                length = value[start + HEAD : start + _LONG_HEAD]
                end = start + _LONG_HEAD + int.from_bytes(length, "little")
            else:
                end = start + _SHORT_HEAD + value[start + HEAD]
            found.append((start, end))
            start = end
    except IndexError:
        start = whole + 1
    if start > whole:
        raise damaged("a whole value", f"{whole} bytes, cut in the section at {found[-1:]}")
    return found


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class RowBatch:
    """Rows of one view and one definition, none of them LONG.

    Attributes:
        contents: Bytes among which the rows are.
        tag: Their tags of view and definition.
        starts: First byte of each row.
        ends: Byte after each row.
        flags: Flags of each row.
    """

    contents: bytes
    tag: bytes
    starts: Array
    ends: Array
    flags: Array

    def selected(self, which: Any) -> RowBatch:
        """Some of the rows, by a mask."""
        return RowBatch(
            self.contents, self.tag, self.starts[which], self.ends[which], self.flags[which]
        )

    def fields(self, dtype: np.dtype[Any], starts: Array) -> Array:
        """The fields at each start; a copy."""
        last = len(self.contents) - dtype.itemsize
        # A view of every byte at which such fields could start, from which the starts are taken.
        every: Array = np.ndarray((last + 1,), dtype, self.contents, strides=(1,))
        taken: Array = every[starts]
        return taken

    def numbers(self, offsets: Any) -> Array:
        """Eight bytes of each row as an integer, from an offset into it on."""
        taken: Array = _words(self.contents)[self.starts + offsets].view(np.int64)
        return taken

    def listed(self) -> list[bytes]:
        """The rows one by one."""
        return [
            self.contents[start:end]
            for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True)
        ]


@dataclass(slots=True)
class ValueBatch:
    """Values that have the same views under the same definitions.

    Attributes:
        indices: Their indices in the request.
        sections: Tag of a view → its rows.
    """

    indices: list[int]
    sections: dict[bytes, RowBatch]


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class FoundRows:
    """The rows of a request's values.

    Attributes:
        batches: Values that are read together.
        indices: Indices of the other values in the request.
        rows: Tag of a view → its row in each of the other values, None where it has none.
    """

    batches: list[ValueBatch]
    indices: list[int]
    rows: dict[bytes, list[bytes | None]]


class SectionReader:
    """Finds the rows of some views in the values of entities.

    Args:
        views: Tags of the views.
    """

    def __init__(self, views: Iterable[bytes]) -> None:
        self._views = tuple(dict.fromkeys(views))

    def rows(self, values: Sequence[bytes | None]) -> dict[bytes, list[bytes | None]]:
        """Tag of a view → its row in each value, None where it has none.

        Args:
            values: Values of entities, None for an entity without.

        Raises:
            DamagedError: A value cannot be read.
        """
        rows: dict[bytes, list[bytes | None]] = {view: [None] * len(values) for view in self._views}
        for index, value in enumerate(values):
            if value is None:
                continue
            for start, end in spans(value):
                column = rows.get(value[start : start + VIEW_TAG])
                if column is not None:
                    column[index] = value[start:end]
        return rows

    def find(self, values: Sequence[bytes | None]) -> FoundRows:
        """The rows of the views, of many values together where possible.

        Args:
            values: Values of entities, None for an entity without.

        Raises:
            DamagedError: A value cannot be read.
        """
        if len(values) < BATCH_MIN:
            return FoundRows([], [], self.rows(values))
        batches, indices = batches_of(values)
        return FoundRows(batches, indices, self.rows([values[index] for index in indices]))


def batches_of(values: Sequence[bytes | None]) -> tuple[list[ValueBatch], list[int]]:
    """Sort values into batches.

    Args:
        values: Values of entities, None for an entity without.

    Returns:
        The batches, and the indices of all values that are in none: values that few others
        resemble, and values that cannot be read.
    """
    given = [index for index, value in enumerate(values) if value]
    if len(given) < BATCH_MIN:
        return [], list(range(len(values)))
    parts = [value for value in values if value]
    contents = b"".join((*parts, _PADDING))
    lengths = np.array(list(map(len, parts)))
    ends = lengths.cumsum()
    starts = ends - lengths
    indices = np.array(given)
    is_ours = np.frombuffer(contents, "u1")[starts] == VERSION
    if not is_ours.all():
        indices, starts, ends = indices[is_ours], starts[is_ours], ends[is_ours]
    batches: list[ValueBatch] = []
    for _ in range(_BATCHES_MAX):
        if len(indices) < BATCH_MIN:
            break
        rows, others = _alike(contents, starts + 1, ends)
        sections = {row.tag[:VIEW_TAG]: row for row in rows}
        if others is None:
            batches.append(ValueBatch(indices.tolist(), sections))
            if len(indices) == len(values):
                return batches, []
            break
        if len(indices) - others.sum() >= BATCH_MIN:
            batches.append(ValueBatch(indices[~others].tolist(), sections))
        indices, starts, ends = indices[others], starts[others], ends[others]
    taken = {index for batch in batches for index in batch.indices}
    return batches, [index for index in range(len(values)) if index not in taken]


def _words(contents: bytes) -> Array:
    """The eight bytes from each byte on, as one number."""
    words: Array = np.ndarray((len(contents) - 7,), "<u8", contents, strides=(1,))
    return words


def _alike(contents: bytes, at: Array, ends: Array) -> tuple[list[RowBatch], Array | None]:
    """The sections of all values that resemble the first one, and a mask of the others, if any."""
    words = _words(contents)
    pairs: Array = np.ndarray((len(contents) - 1,), "<u2", contents, strides=(1,))
    others: Array | None = None
    found: list[RowBatch] = []
    while True:
        is_over = at[0] == ends[0]
        if is_over:
            fitting = at == ends
        else:
            tags = words[at]
            head = pairs[at + TAG].astype(np.int64)
            flags = head & 255
            following = at + (head >> 8) + _SHORT_HEAD
            fitting = (tags == tags[0]) & (following <= ends) & ((flags & LONG) == 0)
        if not fitting.all():
            if others is None:
                others = np.zeros(len(at), np.bool_)
            others[np.flatnonzero(~others)[~fitting]] = True
            if others.all():  # also the first, which is then read by itself
                others[0] = False
                return [], others
            found = [rows.selected(fitting) for rows in found]
            at, ends = at[fitting], ends[fitting]
            if not is_over:
                flags, following = flags[fitting], following[fitting]
        if is_over:
            return found, others
        tag = contents[at[0] : at[0] + TAG]
        found.append(RowBatch(contents, tag, at, following, flags))
        at = following
