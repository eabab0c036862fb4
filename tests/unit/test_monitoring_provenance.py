"""Which row of history was served, from little: against a search through all of history."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from tallystick.clock import SECOND_US
from tallystick_monitoring.audit.row_provenance import NOWHERE, Known, Wanted, identified

HOUR = 3_600 * SECOND_US


def rows(*pairs):
    """History by event and created time."""
    return Known(
        keys=np.zeros(len(pairs), dtype=np.int64),
        values={},
        event_us=np.array([event for event, _ in pairs], dtype=np.int64),
        created_us=np.array([created for _, created in pairs], dtype=np.int64),
    )


def wanted(*, event, value, expected=(0, 0), request=100 * HOUR, present=True, key=0):
    return Wanted(
        keys=np.array([key]),
        event_us=np.array([event]),
        request_us=np.array([request]),
        expected_event_us=np.array([expected[0]]),
        expected_created_us=np.array([expected[1]]),
        present=np.array([present]),
        values=[value],
    )


def origin(asked, known, values, *, keys=None):
    if keys is not None:
        known = dataclasses.replace(known, keys=np.array(keys))
    (place,) = identified(asked, known, None if values is None else pa.array(values))
    return place


VERSIONS = rows((5 * HOUR, 5 * HOUR), (5 * HOUR, 8 * HOUR), (6 * HOUR, 6 * HOUR))
LATE = (5 * HOUR, 8 * HOUR)


@pytest.mark.parametrize(
    ("asked", "place"),
    [
        ({"event": 5 * HOUR, "value": 1.0, "expected": LATE}, 0),
        ({"event": 5 * HOUR, "value": 2.0, "expected": LATE}, 1),
        ({"event": 6 * HOUR, "value": 2.0, "expected": LATE}, 2),
        # No version has the value: the expected one, if it is one of them.
        ({"event": 5 * HOUR, "value": 7.0, "expected": LATE}, 1),
        ({"event": 5 * HOUR, "value": 7.0, "expected": (5 * HOUR, 5 * HOUR)}, 0),
        # Else the last that was visible, or the first if none was.
        ({"event": 5 * HOUR, "value": 7.0}, 1),
        ({"event": 5 * HOUR, "value": 7.0, "request": 7 * HOUR}, 0),
        ({"event": 5 * HOUR, "value": 7.0, "request": 4 * HOUR}, 0),
        # What was too old to be served had its values unseen.
        ({"event": 5 * HOUR, "value": 1.0, "present": False}, 1),
        # Other stores cut or round times to the second.
        ({"event": 5 * HOUR - SECOND_US + 1, "value": 1.0}, 0),
        ({"event": 5 * HOUR + SECOND_US - 1, "value": 1.0}, 0),
        ({"event": 5 * HOUR - SECOND_US, "value": 1.0}, NOWHERE),
        ({"event": 5 * HOUR + SECOND_US, "value": 1.0}, NOWHERE),
        ({"event": 5 * HOUR, "value": 1.0, "key": 1}, NOWHERE),
    ],
)
def test_the_value_says_which_version(asked, place):
    assert origin(wanted(**asked), VERSIONS, [1.0, 2.0, 3.0]) == place


def test_a_value_of_several_versions_is_of_the_last_that_was_visible():
    values = [1.0, 1.0, 1.0]
    assert origin(wanted(event=5 * HOUR, value=1.0), VERSIONS, values) == 1
    early = wanted(event=5 * HOUR, value=1.0, request=6 * HOUR)
    assert origin(early, VERSIONS, values) == 0


def test_null_and_minus_zero_are_values_of_their_own():
    assert origin(wanted(event=5 * HOUR, value=None), VERSIONS, [None, 0.0, 1.0]) == 0
    assert origin(wanted(event=5 * HOUR, value=-0.0), VERSIONS, [0.0, -0.0, 1.0]) == 1


def test_nothing_is_found_in_no_history_and_nothing_is_asked_of_any():
    known = rows()
    assert origin(wanted(event=5 * HOUR, value=1.0), known, []) == NOWHERE
    empty = np.empty(0, dtype=np.int64)
    nobody = Wanted(*(empty,) * 5, present=empty.astype(bool), values=[])
    assert len(identified(nobody, VERSIONS, None)) == 0


def test_many_keys_and_times_are_found_as_by_looking_through_all():
    rng = np.random.default_rng(5)
    count = 400
    keys = rng.integers(0, 12, count)
    event = rng.integers(-20, 20, count) * SECOND_US + rng.integers(0, SECOND_US, count)
    known = rows(*zip(event, event + rng.integers(0, 9, count) * SECOND_US, strict=True))
    values = rng.integers(0, 4, count)
    asked = rng.integers(0, count, 300)
    shift = rng.integers(-1_200_000, 1_200_000, 300)
    found = identified(
        Wanted(
            keys=keys[asked],
            event_us=event[asked] + shift,
            request_us=np.full(300, HOUR),
            expected_event_us=np.zeros(300, dtype=np.int64),
            expected_created_us=np.zeros(300, dtype=np.int64),
            present=np.ones(300, dtype=bool),
            values=values[asked].tolist(),
        ),
        dataclasses.replace(known, keys=keys),
        pa.array(values),
    )
    for at, place in enumerate(found):
        near = [
            row
            for row in range(count)
            if keys[row] == keys[asked[at]]
            and abs(event[row] - event[asked[at]] - shift[at]) < SECOND_US
        ]
        same = [row for row in near if values[row] == values[asked[at]]]
        best = sorted(same or near, key=lambda row: (event[row], known.created_us[row]))
        assert place == (best[-1] if best else NOWHERE)
    assert NOWHERE in found
