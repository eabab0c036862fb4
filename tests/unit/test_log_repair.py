"""Values of some rows replaced by others, of every kind that a log can hold."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from tallystick.definitions.exact_cast import log_column
from tallystick.retrieval import expected_values
from tallystick_training.log_repair import _replaced

MOMENT = pa.timestamp("us", tz="UTC")
AT = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("dtype", "old", "new"),
    [
        (pa.float64(), [-0.0, None, 0.1, 1.0, 2.0], [None, -0.0, 5.0]),
        (pa.float32(), [-0.0, None, 0.5, 1.0, 2.0], [None, -0.0, 5.0]),
        (pa.int64(), [2**53 + 1, None, 3, 4, 5], [None, -(2**63), 6]),
        (pa.string(), ["a", None, "", "b", "c"], [None, "\U0001f600", ""]),
        (pa.bool_(), [True, None, False, True, False], [None, True, True]),
        (pa.binary(), [b"a", None, b"", b"b", b"c"], [None, b"d", b""]),
        (MOMENT, [AT, None, AT, AT, None], [None, AT, None]),
        (pa.list_(pa.float32()), [[0.5], None, [], [None], [1.0]], [None, [-0.0, 2.0], []]),
    ],
)
def test_only_the_rows_named_have_other_values(dtype, old, new):
    column = pa.chunked_array([pa.array(old[:2], dtype), pa.array(old[2:], dtype)])
    table = pa.table({"feature.v__f": column, "feature.v__g": column})
    rows = np.array([False, True, True, False, True])
    values = {"v__f": pa.chunked_array([pa.array(new, dtype)])}
    found = _replaced(table, rows, values)
    expected = pa.array([old[0], *new[:2], old[3], new[2]], dtype)
    assert repr(found["feature.v__f"].to_pylist()) == repr(expected.to_pylist())
    assert found["feature.v__g"].equals(column)
    assert found.schema == table.schema


def test_maps_are_text_in_the_log_and_maps_for_functions():
    maps = pa.chunked_array([pa.array([{"b": 1, "a": None}, {"b": 2, "a": 3}, None])])
    logged = log_column(maps, "MAP")
    assert logged.to_pylist() == ['{"b":1}', '{"a":3,"b":2}', None]
    given = expected_values._as_given(logged, "MAP").to_pylist()
    assert given == [{"b": 1, "a": None}, {"b": 2, "a": 3}, None]
    # JSON is text for functions as well.
    assert expected_values._as_given(logged, "JSON").to_pylist() == logged.to_pylist()
