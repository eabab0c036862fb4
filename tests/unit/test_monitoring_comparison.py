"""Values are compared bit for bit; what a cast would make of them is distinguished."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from tallystick_monitoring.equality import equal_after_cast, same_bits

NAN = float("nan")
MOMENT = datetime(2024, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "served", "expected", "equal"),
    [
        (pa.float64(), [0.1, None, NAN, None, 0.0], [0.1, None, NAN, NAN, -0.0], "11100"),
        (pa.float32(), [0.1, 1.0, None], [0.1, 1.0000001, 0.0], "100"),
        (pa.int64(), [2**53 + 1, 0, None], [2**53, None, None], "001"),
        (pa.string(), ["a", "", None], ["a", None, "b"], "100"),
        (pa.bool_(), [True, False, None], [True, None, None], "101"),
        (pa.timestamp("us", tz="UTC"), [MOMENT, None], [MOMENT, MOMENT], "10"),
        (pa.list_(pa.float64()), [[NAN], [0.0], None], [[NAN], [-0.0], None], "101"),
        (pa.binary(), [b"a", b""], [b"a", None], "10"),
    ],
)
def test_same_bits(kind: pa.DataType, served: list, expected: list, equal: str) -> None:
    found = same_bits(pa.array(served, kind), pa.array(expected, kind))
    assert "".join(str(int(one)) for one in found) == equal


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (NAN, None),
        (None, NAN),
        (0, None),
        ("", None),
        (None, 0.0),
        (0.0, -0.0),
        (float(2**53), 2**53 + 1),
        (3.0, 3.75),
        ("7", "7.0"),
        ("a", "a "),
        ([0.0, 1.0], [-0.0, 1.0]),
        (MOMENT.replace(microsecond=0), MOMENT),
    ],
)
def test_equal_after_a_cast(served: object, expected: object) -> None:
    assert equal_after_cast(served, expected)


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (1.0, None),
        (None, 5),
        (3.0, 4.75),
        (3.75, 3.0),
        ("a", "b"),
        ([1.0], [1.0, 2.0]),
        (float("inf"), 1e300),
        (NAN, 1.0),
        (MOMENT, MOMENT.replace(second=1)),
    ],
)
def test_another_value(served: object, expected: object) -> None:
    assert not equal_after_cast(served, expected)
