"""Which row of history was served, from little: against a search through all of history."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest

from tallystick.clock import SECOND_US
from tallystick.offline_store.duckdb_connection import connect
from tallystick_monitoring.audit.history_evidence import nearest_versions

HOUR = 3_600 * SECOND_US
NOWHERE = None


def rows(*pairs, keys=None, values=None):
    """History by event and created time."""
    return {
        "key_0": np.zeros(len(pairs), dtype=np.int64) if keys is None else keys,
        "event_us": np.array([event for event, _ in pairs], dtype=np.int64),
        "created_us": np.array([created for _, created in pairs], dtype=np.int64),
        "text_0": texts(values if values is not None else [None] * len(pairs)),
    }


def texts(values):
    return pa.array([None if value is None else repr(value) for value in values], pa.string())


def required(*, event, value, expected=(0, 0), request=100 * HOUR, present=True, key=0):
    return {
        "key_0": [key],
        "event_us": [event],
        "request_us": [request],
        "expected_event_us": [expected[0]],
        "expected_created_us": [expected[1]],
        "present": [present],
        "feature": [0],
        "text": texts([value]),
    }


def found(requested, known):
    """Row of the request → event and created time of the version it was served from."""
    with closing(connect()) as connection:
        count = len(requested["event_us"])
        connection.register("requested", pa.table({**requested, "row": np.arange(count)}))
        connection.register("versions", pa.table(known))
        rows = nearest_versions(connection, ["key_0"], features=1).to_pylist()
    return {row["row"]: (row["event_us"], row["created_us"]) for row in rows}


def origin(requests, known, values):
    pairs = list(zip(known["event_us"].tolist(), known["created_us"].tolist(), strict=True))
    one = found(requests, known | {"text_0": texts(values)}).get(0)
    return NOWHERE if one is None else pairs.index(one)


VERSIONS = rows((5 * HOUR, 5 * HOUR), (5 * HOUR, 8 * HOUR), (6 * HOUR, 6 * HOUR))
LATE = (5 * HOUR, 8 * HOUR)


@pytest.mark.parametrize(
    ("requests", "position"),
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
def test_the_value_says_which_version(requests, position):
    assert origin(required(**requests), VERSIONS, [1.0, 2.0, 3.0]) == position


def test_a_value_of_several_versions_is_of_the_last_that_was_visible():
    values = [1.0, 1.0, 1.0]
    assert origin(required(event=5 * HOUR, value=1.0), VERSIONS, values) == 1
    early = required(event=5 * HOUR, value=1.0, request=6 * HOUR)
    assert origin(early, VERSIONS, values) == 0


def test_null_and_minus_zero_are_values_of_their_own():
    assert origin(required(event=5 * HOUR, value=None), VERSIONS, [None, 0.0, 1.0]) == 0
    assert origin(required(event=5 * HOUR, value=-0.0), VERSIONS, [0.0, -0.0, 1.0]) == 1


def test_nothing_is_found_without_history_or_without_requests():
    assert origin(required(event=5 * HOUR, value=1.0), rows(), []) is NOWHERE
    empty = {name: np.array([], dtype=np.int64) for name in required(event=0, value=0)}
    assert found(empty | {"text": texts([]), "present": pa.array([], pa.bool_())}, VERSIONS) == {}


def test_many_keys_and_times_are_found_as_by_looking_through_all():
    rng = np.random.default_rng(5)
    count = 400
    keys = rng.integers(0, 12, count)
    event = rng.integers(-20, 20, count) * SECOND_US + rng.integers(0, SECOND_US, count)
    created = event + rng.integers(0, 9, count) * SECOND_US
    values = rng.integers(0, 4, count).tolist()
    requests = rng.integers(0, count, 300)
    shift = rng.integers(-1_200_000, 1_200_000, 300)
    answer = found(
        {
            "key_0": keys[requests],
            "event_us": event[requests] + shift,
            "request_us": np.full(300, HOUR),
            "expected_event_us": np.zeros(300, dtype=np.int64),
            "expected_created_us": np.zeros(300, dtype=np.int64),
            "present": np.ones(300, dtype=bool),
            "feature": np.zeros(300, dtype=np.int64),
            "text": texts([values[row] for row in requests]),
        },
        rows(*zip(event, created, strict=True), keys=keys, values=values),
    )
    for at in range(300):
        near = [
            row
            for row in range(count)
            if keys[row] == keys[requests[at]]
            and abs(event[row] - event[requests[at]] - shift[at]) < SECOND_US
        ]
        same = [row for row in near if values[row] == values[requests[at]]]
        best = sorted((event[row], created[row]) for row in same or near)
        assert answer.get(at) == (best[-1] if best else NOWHERE)
    assert 0 < len(answer) < 300
