"""Every value that goes into a packed row comes out, of its exact type."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from packed_rows import packed_row
from tallystick.clock import from_us
from tallystick.definitions.feature_types import FEATURE_TYPES
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DamagedError, DataError
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import HEAD, TAG, order_of
from tallystick.online_store.view_decoder import ViewDecoder

TIMES = st.integers(-(2**63), 2**63 - 1)
MOMENTS = st.datetimes(timezones=st.just(UTC))
SCALARS = {
    "INT32": st.integers(-(2**31), 2**31 - 1),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "FLOAT": st.floats(width=32),
    "DOUBLE": st.floats(),
    "BOOL": st.booleans(),
    "UNIX_TIMESTAMP": MOMENTS,
    "STRING": st.text(),
    "BYTES": st.binary(),
}


def spec_of(*dtypes: str, name: str = "view") -> ViewSpec:
    return ViewSpec(
        name=name,
        join_keys=(Column(name="id", dtype="INT64"),),
        columns=tuple(Column(name=f"c{index}", dtype=dtype) for index, dtype in enumerate(dtypes)),
        ttl_us=None,
        event_column="event",
        created_column="created",
    )


@st.composite
def rows(draw, dtypes=SCALARS):
    chosen = draw(st.lists(st.sampled_from(sorted(dtypes)), max_size=20))
    count = draw(st.integers(1, 4))
    values = [
        {f"c{p}": draw(st.none() | dtypes[dtype]) for p, dtype in enumerate(chosen)}
        for _ in range(count)
    ]
    times = draw(
        st.lists(st.tuples(TIMES, st.none() | TIMES, TIMES), min_size=count, max_size=count)
    )
    return spec_of(*chosen), values, times


def same(got, expected, dtype) -> bool:
    if expected is None or got is None:
        return got is expected
    if dtype in {"FLOAT", "DOUBLE"}:
        code = FEATURE_TYPES[dtype].struct_code
        return type(got) is float and (
            struct.pack(code, got) == struct.pack(code, expected)
            or (math.isnan(got) and math.isnan(expected))
        )
    return type(got) is type(expected) and got == expected


# The difference of these times, modulo 2**64, fits six bytes.
@example((spec_of(), [{}], [(2**63 - 1 - 2**40, None, -(2**63))]))
@example((spec_of(), [{}], [(2**63 - 1, -(2**63), 2**63 - 1)]))
@given(rows())
def test_python_values_come_back(case):
    spec, values, times = case
    codec = RowCodec(spec)
    packed = [
        packed_row(codec, row, event_us=event, created_us=created, write_us=write)
        for row, (event, created, write) in zip(values, times, strict=True)
    ]
    # Rows of one definition may differ in their flags; the decoder takes them apart.
    decoded = ViewDecoder(spec, spec.column_names).decode(packed, request_time_us=0)
    assert list(zip(decoded.event_us, decoded.created_us, decoded.write_us, strict=True)) == times
    for column in spec.columns:
        for got, row in zip(decoded.values[column.name], values, strict=True):
            assert same(got, row[column.name], column.dtype)
    for row, (event, created, _) in zip(packed, times, strict=True):
        assert row[:TAG] == codec.tag
        assert order_of(row) == (event, event if created is None else created)


FIXED_ONLY = {
    dtype: strategy for dtype, strategy in SCALARS.items() if FEATURE_TYPES[dtype].struct_code
}


@given(rows(FIXED_ONLY), st.integers(16, 40))
def test_many_rows_are_read_like_one(case, count):
    spec, values, times = case
    codec = RowCodec(spec)
    event, created, write = times[0]
    row = packed_row(codec, values[0], event_us=event, created_us=created, write_us=write)
    one, many = (
        codec.decode([row]),
        codec.reader(row[TAG], spec.column_names, protos=False).read([row] * count),
    )
    for name in spec.column_names:
        assert repr(many.values[name]) == repr(one.values[name] * count)
    assert many.event_us == one.event_us * count
    assert many.created_us == one.created_us * count
    assert many.write_us == one.write_us * count


@given(data=st.data(), count=st.integers(1, 60))
def test_rows_that_lie_differently_are_read_as_each_alone(data, count):
    spec = spec_of("INT64", "DOUBLE", "BOOL", *data.draw(st.sampled_from([[], ["STRING"]])))
    codec, decoder = RowCodec(spec), ViewDecoder(spec, spec.column_names)
    near = st.sampled_from([0, 1, 2**31, 2**32 - 1, 2**32, 2**47, 2**48, -1])
    packed = []
    for number in range(count):
        if data.draw(st.integers(0, 9)) == 0:
            packed.append(None)
            continue
        event = data.draw(st.sampled_from([0, -5, 2**50]))
        created = data.draw(st.none() | near)
        values = {
            "c0": data.draw(st.sampled_from([None, number, 2**40])),
            "c1": data.draw(st.sampled_from([None, 0.5])),
            "c2": number % 2 == 0,
            "c3": "x" * data.draw(st.sampled_from([0, 3, 300])),
        }
        packed.append(
            packed_row(
                codec,
                values,
                event_us=event,
                created_us=None if created is None else event + created,
                write_us=event + data.draw(near),
            )
        )
    together = decoder.decode(packed, request_time_us=0)
    alone = [decoder.decode([row], request_time_us=0) for row in packed]
    for name in ("status", "event_us", "created_us", "write_us", "definition"):
        assert getattr(together, name) == [getattr(one, name)[0] for one in alone]
    for name in spec.column_names:
        assert together.values[name] == [one.values[name][0] for one in alone]
    assert together.is_complete <= all(one.is_complete for one in alone)


@given(st.integers(-(2**40), 2**40), st.sampled_from([0, 1, 2**32 - 1, 2**32, -1, 2**48]))
def test_times_near_each_other_take_less_room(event, after):
    codec = RowCodec(spec_of("DOUBLE"))
    row = packed_row(codec, {}, event_us=event, created_us=event + after, write_us=event + after)
    decoded = codec.decode([row])
    assert decoded.created_us == decoded.write_us == [event + after]
    room = {0: 8, 1: 16, 2**32 - 1: 16, 2**32: 20, -1: 24, 2**48: 24}[after]
    assert len(row) == HEAD + 1 + room + 1 + 8


def test_small_integers_take_less_room():
    codec = RowCodec(spec_of("INT64", "INT64"))
    sizes = [
        len(packed_row(codec, {"c0": 5, "c1": value}, event_us=1, created_us=None, write_us=3))
        for value in (5, 2**31 - 1, -(2**31), 2**31, -(2**31) - 1)
    ]
    assert sizes == [sizes[0]] * 3 + [sizes[0] + 8] * 2


def test_a_row_without_nulls_has_no_room_for_them():
    codec = RowCodec(spec_of(*["BOOL"] * 20))
    values = {f"c{index}": True for index in range(20)}
    whole = packed_row(codec, values, event_us=1, created_us=None, write_us=3)
    some = packed_row(codec, values | {"c7": None}, event_us=1, created_us=None, write_us=3)
    assert len(some) == len(whole) + 3
    assert codec.decode([some]).values["c7"] == [None]
    assert codec.decode([some]).values["c8"] == [True]


@pytest.mark.parametrize("size", [0, 1, 200, 255, 256, 70_000])
def test_texts_of_every_length_come_back(size):
    codec = RowCodec(spec_of("STRING", "BYTES"))
    values = {"c0": "x" * size, "c1": b"y" * size}
    row = packed_row(codec, values, event_us=1, created_us=2, write_us=3)
    decoded = codec.decode([row, row])
    assert decoded.values == {name: [value, value] for name, value in values.items()}


@given(rows(), st.data())
def test_some_columns_equal_all_columns(case, data):
    spec, values, _ = case
    codec = RowCodec(spec)
    row = packed_row(codec, values[0], event_us=1, created_us=2, write_us=3)
    packed = [row] * len(values)
    names = data.draw(st.lists(st.sampled_from([*spec.column_names, "none"]), unique=True))
    names = [name for name in names if name != "none"]
    whole, part = codec.decode(packed).values, codec.decode(packed, names).values
    assert list(part) == names
    assert repr(part) == repr({name: whole[name] for name in names})


PROTO_FIELDS = {
    "INT32": ("int32_val", SCALARS["INT32"]),
    "INT64": ("int64_val", SCALARS["INT64"]),
    "FLOAT": ("float_val", st.floats(width=32, allow_nan=False)),
    "DOUBLE": ("double_val", st.floats(allow_nan=False)),
    "BOOL": ("bool_val", st.booleans()),
    "UNIX_TIMESTAMP": ("unix_timestamp_val", st.integers(-62_135_596_800, 10**11)),
    "STRING": ("string_val", st.text()),
    "BYTES": ("bytes_val", st.binary()),
    "UUID": ("uuid_val", st.uuids().map(str)),
    "DECIMAL": ("decimal_val", st.decimals(allow_nan=False).map(str)),
    "JSON": ("json_val", st.just('{"a": [1, null]}')),
    "IMAGE_BYTES": ("bytes_val", st.binary()),
}
LISTS = {
    "INT32_LIST": ("int32_list_val", SCALARS["INT32"]),
    "INT64_LIST": ("int64_list_val", SCALARS["INT64"]),
    "FLOAT_LIST": ("float_list_val", st.floats(width=32, allow_nan=False)),
    "DOUBLE_LIST": ("double_list_val", st.floats(allow_nan=False)),
    "BOOL_LIST": ("bool_list_val", st.booleans()),
    "STRING_LIST": ("string_list_val", st.text()),
    "STRING_SET": ("string_set_val", st.text()),
    "BYTES_LIST": ("bytes_list_val", st.binary()),
    "UNIX_TIMESTAMP_LIST": ("unix_timestamp_list_val", st.integers(0, 10**10)),
}


@st.composite
def protos(draw):
    from feast.protos.feast.types.Value_pb2 import Value

    chosen = draw(st.lists(st.sampled_from(sorted({*PROTO_FIELDS, *LISTS, "MAP"})), max_size=12))
    values = {}
    for index, dtype in enumerate(chosen):
        value = Value()
        kind = draw(st.sampled_from(["value", "empty", "null"]))
        if kind == "null":
            value.null_val = 0
        elif kind == "value" and dtype in PROTO_FIELDS:
            field, strategy = PROTO_FIELDS[dtype]
            setattr(value, field, draw(strategy))
        elif kind == "value" and dtype in LISTS:
            field, strategy = LISTS[dtype]
            members = draw(st.lists(strategy))
            # A set comes back in its one order, each member once.
            members = sorted(set(members)) if dtype.endswith("_SET") else members
            getattr(value, field).val.extend(members)
            value.SetInParent()
            getattr(value, field).SetInParent()
        elif kind == "value":
            for key in draw(st.sets(st.text())):
                value.map_val.val[key].int64_val = draw(SCALARS["INT64"])
            value.map_val.SetInParent()
        values[f"c{index}"] = value
    return spec_of(*chosen), values


@settings(max_examples=150)
@given(protos())
def test_feast_values_come_back(case):
    from feast.protos.feast.types.Value_pb2 import Value

    spec, values = case
    codec = RowCodec(spec)
    row = packed_row(codec, values, event_us=1, created_us=None, write_us=3, protos=True)
    reader = codec.reader(row[TAG], spec.column_names, protos=True)
    decoded = reader.read([row, row])
    for name, value in values.items():
        expected = Value() if value.WhichOneof("val") == "null_val" else value
        assert decoded.values[name] == [expected, expected]


def test_lists_and_maps_come_back_as_python_values():
    codec = RowCodec(spec_of("INT64_LIST", "MAP", "STRING_LIST"))
    values = {"c0": [2**60 + 1, -1], "c1": {"a": 1, "b": "x"}, "c2": []}
    decoded = codec.decode([packed_row(codec, values, event_us=1, created_us=2, write_us=3)])
    assert {name: column[0] for name, column in decoded.values.items()} == values


@given(rows(), st.data())
def test_a_cut_or_longer_row_is_never_read(case, data):
    spec, values, _ = case
    codec = RowCodec(spec)
    whole = packed_row(codec, values[0], event_us=1, created_us=2, write_us=3)
    keep = data.draw(st.integers(0, len(whole) - 1))
    for bad in (whole[:keep], whole + b"\0", bytes((whole[0] ^ 1,)) + whole[1:], b"PK\3\4" * 20):
        with pytest.raises(DamagedError):
            codec.decode([whole, bad])


def test_a_row_of_another_definition_is_never_read():
    ours, theirs = RowCodec(spec_of("INT64")), RowCodec(spec_of("DOUBLE"))
    row = packed_row(theirs, {"c0": 1.0}, event_us=1, created_us=2, write_us=3)
    with pytest.raises(DamagedError, match="definition"):
        ours.decode([row])


def test_a_text_that_is_not_utf8_is_damaged():
    codec = RowCodec(spec_of("STRING"))
    row = packed_row(codec, {"c0": "é"}, event_us=1, created_us=2, write_us=3)
    with pytest.raises(DamagedError, match="STRING"):
        codec.decode([row[:-1] + b"\xff"])


def test_all_values_that_do_not_fit_are_named_at_once():
    codec = RowCodec(spec_of("INT32", "INT64", "FLOAT", "BOOL", "STRING", "UNIX_TIMESTAMP"))
    values = {"c0": 2**31, "c1": "1", "c2": 1e300, "c3": "no", "c4": 1, "c5": 5}
    with pytest.raises(DataError) as caught:
        packed_row(codec, values, event_us=1, created_us=2, write_us=3)
    assert [problem.where for problem in caught.value.problems] == [
        f"column c{index}" for index in range(6)
    ]


@pytest.mark.parametrize(
    ("dtype", "field", "number"),
    [
        ("DOUBLE", "int64_val", 2**60 + 1),
        ("FLOAT", "int64_val", 2**24 + 1),
        ("FLOAT", "double_val", 1e39),
        ("INT32", "int64_val", 2**31),
        ("UNIX_TIMESTAMP", "unix_timestamp_val", 1_700_000_000_000),
        ("UNIX_TIMESTAMP", "unix_timestamp_val", -(10**12)),
    ],
)
def test_a_number_that_would_change_or_not_come_back_is_refused(dtype, field, number):
    from feast.protos.feast.types.Value_pb2 import Value

    codec = RowCodec(spec_of(dtype))
    with pytest.raises(DataError, match=f"column c0: expected {dtype}"):
        codec.encode([{"c0": Value(**{field: number})}], [(1, 2, 3)], protos=True)


def test_a_time_keeps_its_microseconds():
    codec = RowCodec(spec_of("UNIX_TIMESTAMP"))
    moment = datetime(2013, 7, 1, 1, 2, 3, 456789, tzinfo=UTC)
    row = packed_row(codec, {"c0": moment}, event_us=1, created_us=2, write_us=3)
    assert codec.decode([row]).values["c0"] == [moment]
    assert from_us(-1).microsecond == 999999
