"""Which row of history was served, where the online store does not say.

An online store that is not Tallystick's gives a row's event time, some cut to whole seconds, and no
created time. The row is looked for among the versions that history has for the key within a second
of that time: it is the one with the value that was served, if any has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from tallystick.clock import SECOND_US
from tallystick_monitoring.log_columns import Bools, Int64s

if TYPE_CHECKING:
    import pyarrow as pa

NOWHERE: Final = -1
"""Stands for "no row of history"."""


@dataclass(frozen=True)
class Known:
    """Versions of rows that history has; every column has the same length.

    Attributes:
        keys: Number of the key.
        event_us: Event time.
        created_us: Created time.
        values: Feature → its values in the log's types.
    """

    keys: Int64s
    event_us: Int64s
    created_us: Int64s
    values: Mapping[str, pa.Array]


@dataclass(frozen=True)
class Wanted:
    """Values of one feature whose rows are looked for; every column has shape (values,).

    Attributes:
        keys: Number of the key, as history numbers it.
        event_us: Event time, as the online store gave it.
        request_us: Request time.
        expected_event_us: Event time of the row that should have been served.
        expected_created_us: Created time of it.
        present: Whether the value was served; else the row was too old, and its values unseen.
        values: The value that was served.
    """

    keys: Int64s
    event_us: Int64s
    request_us: Int64s
    expected_event_us: Int64s
    expected_created_us: Int64s
    present: Bools
    values: Sequence[Any]


def identified(wanted: Wanted, known: Known, column: pa.Array | None) -> Int64s:
    """Find the row of history that each value came from.

    Args:
        wanted: The values.
        known: History's versions.
        column: The feature's values in history; None if they cannot be had.

    Returns:
        Positions in history; :data:`NOWHERE` where it has no row of the key within a second.
    """
    found = np.full(len(wanted.event_us), NOWHERE, dtype=np.int64)
    if not len(found) or not len(known.keys):
        return found
    order = np.lexsort((known.created_us, known.event_us, known.keys))
    seconds, asked = known.event_us // SECOND_US, wanted.event_us // SECOND_US
    first = min(int(seconds.min()), int(asked.min())) - 1
    # One number per key and second, with room between the last second of one key and the next's.
    span = max(int(seconds.max()), int(asked.max())) - first + 2
    places = (known.keys * span + seconds - first)[order]
    near = wanted.keys * span + asked - first
    low, high = np.searchsorted(places, near - 1), np.searchsorted(places, near + 1, side="right")
    for at in np.flatnonzero(low < high):
        candidates = order[low[at] : high[at]]
        within = abs(known.event_us[candidates] - wanted.event_us[at]) < SECOND_US
        if within.any():
            found[at] = _chosen(wanted, int(at), known, candidates[within], column)
    return found


def _chosen(
    wanted: Wanted, at: int, known: Known, candidates: Int64s, column: pa.Array | None
) -> int:
    """Of versions by event and created time: one with the value, else the expected, else the last.

    Of several, the last that was visible when it was served.
    """
    if column is not None and wanted.present[at]:
        served = repr(wanted.values[at])
        same = [place for place in candidates if repr(column[int(place)].as_py()) == served]
        if same:
            return _last_visible(np.array(same), known, int(wanted.request_us[at]))
    expected = candidates[
        (known.event_us[candidates] == wanted.expected_event_us[at])
        & (known.created_us[candidates] == wanted.expected_created_us[at])
    ]
    if len(expected):
        return int(expected[0])
    return _last_visible(candidates, known, int(wanted.request_us[at]))


def _last_visible(candidates: Int64s, known: Known, request_us: int) -> int:
    visible = np.maximum(known.event_us[candidates], known.created_us[candidates]) <= request_us
    return int(candidates[visible][-1] if visible.any() else candidates[0])
