"""What goes through the write-ahead log has the same values as what is made a table of at once."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import small_contract
from tallystick.definitions.columns import plain
from tallystick.definitions.contract import FeatureSpec, ViewUse
from tallystick.definitions.exact_cast import json_text
from tallystick.definitions.feature_types import FEATURE_TYPES
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.online_store.view_decoder import ViewRows
from tallystick.prediction_log.frames import Frame, Totals, packed_frame, read_frames
from tallystick.prediction_log.record import Predictions, log_schema
from tallystick.prediction_log.record_codec import ROWS_MANY, RecordLayout

ZONES = st.integers(-14, 14).map(lambda hours: timezone(timedelta(hours=hours)))
# A day from the ends of time, where other zones would be beyond them.
MOMENTS = st.datetimes(
    min_value=datetime(1, 1, 2),
    max_value=datetime(9999, 12, 30),
    timezones=st.none() | st.just(UTC) | ZONES,
)
TEXT = st.text(max_size=20)
SCALARS = {
    "INT32": st.sampled_from([-(2**31), 2**31 - 1]) | st.integers(-(2**31), 2**31 - 1),
    "INT64": st.sampled_from([-(2**63), 2**63 - 1]) | st.integers(-(2**63), 2**63 - 1),
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.sampled_from([-0.0, float("nan"), float("inf")]) | st.floats(),
    "STRING": TEXT,
    "UUID": st.uuids().map(str),
    "TIME_UUID": st.uuids().map(str),
    "DECIMAL": st.decimals(allow_nan=False).map(str),
    "BYTES": st.binary(max_size=20),
    "IMAGE_BYTES": st.binary(max_size=20),
    "PDF_BYTES": st.binary(max_size=20),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": MOMENTS,
}
# As text, times of other zones stay of their zone; stores give those of maps in UTC.
TIMES = st.datetimes(timezones=st.none() | st.just(UTC))
MEMBERS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | TEXT | TIMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
MAPS = st.dictionaries(TEXT, MEMBERS, max_size=3)
DOCUMENTS = {each.name for each in FEATURE_TYPES.values() if each.is_document}
JSON = MEMBERS | MAPS.map(lambda value: json.dumps(value, default=str))
LISTED = {
    f"{dtype}_{kind}": st.lists(st.none() | values, max_size=4)
    for dtype, values in SCALARS.items()
    for kind in ("LIST", "SET")
}
TEXTS = {
    dtype: st.lists(MAPS, max_size=3)
    if dtype.endswith("_LIST")
    else (JSON if dtype == "JSON" else MAPS)
    for dtype in DOCUMENTS
}
VALUES = {
    dtype: each for dtype, each in (SCALARS | LISTED | TEXTS).items() if dtype in FEATURE_TYPES
}
ARRAYS = {
    "INT32": [np.int32, np.int64],
    "INT64": [np.int64, np.int32, ">i8"],
    "FLOAT": [np.float32],
    "DOUBLE": [np.float64, np.float32],
    "BOOL": [np.bool_],
    "UNIX_TIMESTAMP": [np.int64],
}


def contract_of(dtype):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="driver", dtype="INT64"),),
        columns=(Column(name="it", dtype=dtype),),
        ttl_us=None,
        event_column="event_time",
        created_column="created",
    )
    return small_contract(
        features=(
            FeatureSpec(name="stats__it", view="stats", feature="it", dtype=dtype, kind="view"),
        ),
        views=(ViewUse(spec=spec, name="stats", key_map={"driver": "driver"}, columns=("it",)),),
        request_fields=(Column(name="given", dtype=dtype),),
    )


def request(values, *, given, times=None):
    rows = len(values)
    times = [None] * rows if times is None else times
    return Predictions(
        prediction_id=[str(row) for row in range(rows)],
        request_us=2**50 + rows,
        model_version="1",
        keys={"driver": list(range(rows)), "given": given},
        views={
            "stats": ViewRows(
                status=["PRESENT"] * rows,
                event_us=times,
                created_us=times,
                write_us=[None] * rows,
                definition=["ab"] * rows,
                values={},
            )
        },
        values={"stats__it": values},
        prediction=[row / 3 for row in range(rows)],
        latency_us=1,
    )


def assert_same(contract, requests):
    for number, each in enumerate(requests):
        each.prediction_id = [f"{number}-{row}" for row in range(len(each.prediction_id))]
    layout = RecordLayout(contract)
    rows = sum(len(each.prediction_id) for each in requests)
    header = Frame(contract.contract_hash, 0, rows, Totals())
    content = b"".join(packed_frame(header, [layout.packed(each) for each in requests]))
    (frame,) = read_frames(content)
    got = layout.table([frame.payload]).sort_by("prediction_id")
    expected = pa.concat_tables(expected_of(contract, each) for each in requests)
    expected = expected.sort_by("prediction_id")
    assert got.schema == expected.schema
    for name in expected.column_names:
        assert exact(got[name]) == exact(expected[name]), name


def expected_of(contract, part):
    """The rows of a request, made by Arrow from what was given."""
    rows, view = len(part.prediction_id), part.views["stats"]
    columns = {
        "prediction_id": part.prediction_id,
        "request_time": [part.request_us] * rows,
        "model_version": [part.model_version] * rows,
        "prediction": part.prediction,
        "latency_us": [part.latency_us] * rows,
        "entity.driver": part.keys["driver"],
        "request.given": part.keys["given"],
        "view.stats.status": view.status,
        "view.stats.event_time": view.event_us,
        "view.stats.created_time": view.created_us,
        "view.stats.write_time": view.write_us,
        "view.stats.definition": view.definition,
        "feature.stats__it": part.values["stats__it"],
    }
    is_text = contract.value_columns["stats__it"] in DOCUMENTS
    arrays = []
    for field in log_schema(contract):
        column = plain(columns[field.name])
        if is_text and field.name in {"feature.stats__it", "request.given"}:
            column = list(map(json_text, column))
        arrays.append(pa.array(column, field.type))
    return pa.table(arrays, schema=log_schema(contract))


def exact(column):
    """Values by which also -0.0 and 0.0 differ, and no NaN does from another."""
    return [repr(value) for value in column.to_pylist()]


@pytest.mark.parametrize("dtype", sorted(VALUES))
@settings(max_examples=10)
@given(data=st.data())
def test_values_of_every_type(dtype, data):
    contract = contract_of(dtype)
    requests = []
    for rows in data.draw(st.lists(st.sampled_from([1, 2, ROWS_MANY, 20]), min_size=1, max_size=3)):
        values = [
            (data.draw(st.lists(st.none() | VALUES[dtype], min_size=1, max_size=4)) * rows)[:rows]
            for _ in range(2)
        ]
        requests.append(request(values[0], given=values[1]))
    assert_same(contract, requests)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(dtype, kind) for dtype, kinds in ARRAYS.items() for kind in kinds]
)
@settings(max_examples=20)
@given(data=st.data())
def test_arrays_of_numbers(dtype, kind, data):
    kind = np.dtype(kind)
    bits = kind.itemsize * 8
    values = {
        "b": st.booleans(),
        "i": st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        "f": st.floats(width=bits),
    }[kind.kind]
    if dtype == "INT32":
        values = st.integers(-(2**31), 2**31 - 1)
    if dtype == "UNIX_TIMESTAMP":
        values = st.integers(-(2**55), 2**55)
    requests = []
    for rows in data.draw(st.lists(st.integers(ROWS_MANY, 24), min_size=1, max_size=3)):
        few = data.draw(st.lists(values, min_size=1, max_size=4))
        column = np.array((few * rows)[:rows], kind)
        if data.draw(st.booleans()):
            column = np.repeat(column, 2)[::2]  # not one run of bytes
        requests.append(
            request(column, given=column.tolist(), times=np.arange(rows, dtype=np.int64))
        )
    assert_same(contract_of(dtype), requests)


def test_a_request_of_no_rows():
    assert_same(contract_of("INT64"), [request([], given=[]), request([1], given=[None])])


def test_what_arrow_converts_comes_back_converted():
    assert_same(contract_of("INT64"), [request([7.0, 3], given=[None, 2.0])])
    assert_same(contract_of("FLOAT"), [request([1e300], given=[-1e300])])
