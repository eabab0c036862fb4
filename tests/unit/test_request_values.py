"""Values of a request: taken exactly, or refused."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from tallystick.definitions.feature_view import Column
from tallystick.errors import ContractError
from tallystick_serving.request_values import field_reader


@pytest.mark.parametrize(
    ("dtype", "given", "taken"),
    [
        ("INT64", 2**63 - 1, 2**63 - 1),
        ("INT64", -(2**63), -(2**63)),
        ("INT32", 2**31 - 1, 2**31 - 1),
        ("DOUBLE", 3, 3.0),
        ("DOUBLE", 0.1, 0.1),
        ("FLOAT", 0.1, float(np.float32(0.1))),
        ("BOOL", False, False),
        ("STRING", "", ""),
        ("BYTES", "AP8=", b"\x00\xff"),
        ("DECIMAL", "1.50", "1.50"),
        ("INT64_SET", [3, 1, 3], [1, 3]),
        ("UUID", "01890A5D-AC96-774B-BCCE-B302099A8057", "01890a5d-ac96-774b-bcce-b302099a8057"),
        ("UNIX_TIMESTAMP", "2013-01-01T00:00:00+01:00", datetime(2012, 12, 31, 23, tzinfo=UTC)),
        ("UNIX_TIMESTAMP", "2013-01-01T00:00:00", datetime(2013, 1, 1, tzinfo=UTC)),
        (
            "UNIX_TIMESTAMP",
            "2013-01-01 00:00:00.123456789Z",
            datetime(2013, 1, 1, 0, 0, 0, 123456, UTC),
        ),
        ("INT64", 1.0, 1),
        ("INT64_LIST", [1, 2], [1, 2]),
    ],
)
def test_a_value_is_taken_exactly(dtype, given, taken):
    got = field_reader(Column(name="x", dtype=dtype)).read(given)
    assert (type(got), got) == (type(taken), taken)


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("INT64", "1"),
        ("INT64", True),
        ("INT64", 1.5),
        ("INT64", float(2**63)),
        ("INT64", 2**63),
        ("INT64", None),
        ("INT32", 2**31),
        ("DOUBLE", "0.1"),
        ("DOUBLE", True),
        ("DOUBLE", float("nan")),
        ("FLOAT", 1e39),
        ("FLOAT", float("inf")),
        ("BOOL", 1),
        ("STRING", 1),
        ("BYTES", "%"),
        ("UUID", "1"),
        ("DECIMAL", 1.5),
        ("DECIMAL", "one"),
        ("UNIX_TIMESTAMP", "0001-01-01T00:00:00+23:00"),
        ("UNIX_TIMESTAMP", 0),
        ("INT64_LIST", [1, "2"]),
        ("INT64_LIST", 1),
    ],
)
def test_anything_else_is_refused(dtype, given):
    with pytest.raises(ValueError):  # noqa: PT011 whoever converts says what was wrong
        field_reader(Column(name="x", dtype=dtype)).read(given)


def test_a_type_that_json_cannot_carry_is_refused_with_the_contract():
    with pytest.raises(ContractError, match="a scalar, or a list"):
        field_reader(Column(name="x", dtype="MAP"))
