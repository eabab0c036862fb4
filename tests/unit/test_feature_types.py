"""Every type of Feast is supported by every user of the registry, or refused by name."""

from __future__ import annotations

import decimal
import uuid
from datetime import UTC, datetime

import numpy as np
import orjson
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from feast.value_type import ValueType

from tallystick.clock import to_us
from tallystick.definitions.columns import plain
from tallystick.definitions.contract import FeatureSpec, ModelInputs
from tallystick.definitions.exact_cast import (
    exact_column,
    exact_values,
    fits,
    json_text,
    log_column,
    log_values,
)
from tallystick.definitions.feature_types import (
    FEATURE_TYPES,
    REFUSED,
    Kind,
    arrow_type,
    feature_type,
    type_problems,
)
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DefinitionError
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.offline_store.spark.spark_source import SPARK
from tallystick.offline_store.sql_dialect import DUCKDB, key_type
from tallystick.online_store.journal.journal_entry import entry_of_rows, entry_of_table
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.table_writer import packed_rows
from tallystick.online_store.value_codec import value_codec
from tallystick.online_store.view_decoder import ViewDecoder
from tallystick_monitoring.parity_check.check_requests import field_value
from tallystick_monitoring.parity_check.subject_answers import _from_json, _from_proto
from tallystick_serving.json_columns import feast_json_column, json_column
from tallystick_serving.request_values import field_reader

TYPES = sorted(FEATURE_TYPES)
UUID = "01890a5d-ac96-774b-bcce-b302099a8057"
AT = datetime(2013, 7, 1, 12, 30, tzinfo=UTC)

SAMPLES = {
    "INT32": 2**31 - 1,
    "INT64": -(2**63),
    "FLOAT": 0.5,
    "DOUBLE": 0.1,
    "BOOL": True,
    "UNIX_TIMESTAMP": AT,
    "STRING": "ä\0",
    "UUID": UUID,
    "TIME_UUID": UUID,
    "DECIMAL": "1.50",
    "BYTES": b"\0\xff",
    "IMAGE_BYTES": b"\0\xff",
    "PDF_BYTES": b"\0\xff",
    "MAP": {"a": 1, "b": {"c": "x"}},
    "MAP_LIST": [{"a": 1}],
    "SCALAR_MAP": {1: "x"},
    "JSON": '{"a":[1,null]}',
    "JSON_LIST": ['{"a":1}'],
    "STRUCT": {"a": 1.5},
    "STRUCT_LIST": [{"a": 1.5}],
    "VALUE_LIST": [[1, 2], [3]],
    "VALUE_SET": [[1, 2], [3]],
}
"""One value of each type that is not made of another, in Python; none that float32 would round."""


def sample(name):
    own = FEATURE_TYPES[name]
    return SAMPLES[name] if own.member is None else [SAMPLES[own.member.name]]


def test_each_type_of_feast_is_supported_or_refused():
    assert FEATURE_TYPES.keys() | REFUSED.keys() == {each.name for each in ValueType}
    assert not FEATURE_TYPES.keys() & REFUSED.keys()


@pytest.mark.parametrize("name", TYPES)
def test_the_proto_field_is_feasts(name):
    assert FEATURE_TYPES[name].proto_field in {field.name for field in Value.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", sorted([*REFUSED, "TENSOR"]))
def test_other_types_are_refused_by_name(name):
    with pytest.raises(DefinitionError, match=f"Feast's type {name} is not supported; declare "):
        feature_type(name)
    with pytest.raises(DefinitionError, match=name):
        arrow_type(name)
    (problem,) = type_problems("feature", {"x": name})
    assert (problem.where, problem.got) == ("feature x", name)


@pytest.mark.parametrize("name", TYPES)
def test_a_value_is_cast_to_itself(name):
    assert exact_values([sample(name), None], name) == [sample(name), None]


@pytest.mark.parametrize("name", TYPES)
def test_a_column_holds_a_value_and_null(name):
    values = log_values([sample(name), None], name)
    column = pa.chunked_array([pa.array(values, arrow_type(name))])
    assert fits(name, column.type)
    assert fits(name, pa.null())
    assert exact_column(column, name) == column
    assert log_column(column, name).to_pylist() == column.to_pylist()
    assert column.to_pylist() == list(values)


@pytest.mark.parametrize("dialect", [DUCKDB, SPARK], ids=["duckdb", "spark"])
@pytest.mark.parametrize("name", TYPES)
def test_a_key_has_an_expression_and_a_type(name, dialect):
    assert "k" in dialect.key_sql("k", arrow_type(name), Column(name="k", dtype=name))
    assert key_type(name) is not None


@pytest.mark.parametrize(
    ("given", "name", "taken"),
    [
        (pa.array([2, None], pa.float16()), "INT64", [2, None]),
        (pa.array([True]), "INT32", [1]),
        (pa.array([7], pa.uint64()), "INT64", [7]),
        (pa.array([7], pa.int64()).cast(pa.decimal256(25, 2)), "DOUBLE", [7.0]),
        (pa.array([decimal.Decimal("1.50")]), "DECIMAL", ["1.50"]),
        (pa.array(["x"]).dictionary_encode(), "STRING", ["x"]),
        (pa.array([2**53 + 1, None]), "STRING", ["9007199254740993", None]),
        (pa.array(["x"], pa.string_view()), "STRING", ["x"]),
        (pa.array([b"x"], pa.binary(1)), "BYTES", [b"x"]),
        (pa.array([uuid.UUID(UUID).bytes], pa.uuid()), "UUID", [UUID]),
        (pa.array([UUID.upper(), None]), "TIME_UUID", [UUID, None]),
        (pa.array([[UUID.upper()]]), "UUID_LIST", [[UUID]]),
        (pa.array([1], pa.timestamp("ns")), "UNIX_TIMESTAMP", [datetime(1970, 1, 1, tzinfo=UTC)]),
        (pa.array([[3, 1, 3]], pa.large_list(pa.int64())), "INT32_SET", [[1, 3]]),
        (pa.nulls(1), "STRING_LIST", [None]),
    ],
    ids=str,
)
def test_physical_types_become_the_declared_one(given, name, taken):
    assert fits(name, given.type)
    cast = exact_column(given, name)
    assert (cast.type, cast.to_pylist()) == (arrow_type(name), taken)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (pa.array([1.5]), "INT64"),
        (pa.array([2**31]), "INT32"),
        (pa.array([2**63], pa.uint64()), "INT64"),
        (pa.array([1e39]), "FLOAT"),
        (pa.array(["x"]), "UUID"),
        (pa.array([[1.5]]), "INT64_SET"),
    ],
    ids=str,
)
def test_a_column_is_cast_exactly_or_not_at_all(given, name):
    with pytest.raises(pa.ArrowInvalid):
        exact_column(given, name)


@pytest.mark.parametrize("name", TYPES)
def test_the_codec_returns_what_it_stored(name):
    codec, value = value_codec(name), sample(name)
    stored = codec.from_python(value)
    assert isinstance(stored, bytes) is (codec.code is None)
    read = stored if codec.to_python is None else codec.to_python(stored)
    assert log_values([read], name) == log_values([value], name)
    proto = codec.to_proto(stored)
    assert proto.WhichOneof("val") == FEATURE_TYPES[name].proto_field
    assert codec.from_proto(proto) == stored
    assert codec.read_proto(proto) == read


@pytest.mark.parametrize("name", [name for name in TYPES if not FEATURE_TYPES[name].is_document])
def test_feast_and_the_codec_agree(name):
    from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values

    codec, value = value_codec(name), sample(name)
    (feasts,) = python_values_to_proto_values([value], ValueType[name])
    assert codec.to_proto(codec.from_proto(feasts)) == feasts
    read = feast_value_type_to_python_type(feasts, ValueType[name])
    assert codec.read_proto(feasts) == exact_values([read], name)[0]


def test_times_keep_their_microseconds():
    time = AT.replace(microsecond=7)
    for name, given in (("", time), ("_LIST", [time]), ("_SET", [time])):
        codec = value_codec(f"UNIX_TIMESTAMP{name}")
        assert codec.to_python(codec.from_python(given)) == given


@pytest.mark.parametrize("name", ["INT64_LIST", "STRING_LIST", "UUID_SET"])
def test_the_codec_refuses_null_among_members(name):
    with pytest.raises(TypeError):
        value_codec(name).from_python([None])


@pytest.mark.parametrize("content", [b"", b"\x92\xc4\x01a", b"\x91\xa1a"])
def test_the_codec_refuses_bytes_that_are_not_a_list(content):
    with pytest.raises(ValueError, match=r"truncated|Expected"):
        value_codec("STRING_LIST").to_python(content)


@pytest.mark.parametrize("name", [name for name in TYPES if not FEATURE_TYPES[name].is_document])
def test_a_request_field_is_read_from_what_json_shows_of_it(name):
    (text,) = orjson.loads(orjson.dumps(json_column(name)([sample(name)])))
    reader = field_reader(Column(name="x", dtype=name))
    assert reader.read(text) == sample(name)
    assert name.removesuffix("_LIST").removesuffix("_SET") in reader.expected


@pytest.mark.parametrize("name", [name for name in TYPES if not FEATURE_TYPES[name].is_document])
def test_the_parity_check_makes_up_a_request_field(name):
    value = field_value(name, np.random.default_rng(1), AT)
    assert exact_values([value], name) == [value]


@pytest.mark.parametrize("name", TYPES)
def test_a_column_has_a_json_form(name):
    assert orjson.loads(orjson.dumps(json_column(name)([sample(name), None])))[1] is None
    feasts = feast_json_column(name)
    by_feast = FEATURE_TYPES[name].is_document or FEATURE_TYPES[name].kind is Kind.SET
    assert (feasts is None) is by_feast


@pytest.mark.parametrize("name", [name for name in TYPES if FEATURE_TYPES[name].is_number])
def test_a_number_goes_to_a_model_from_arrow_as_from_python(name):
    inputs = ModelInputs(
        project="p",
        model="m",
        entity_keys=(),
        request_fields=(),
        features=(FeatureSpec(name="x", view="v", feature="x", dtype=name, kind="view"),),
        views=(),
        transforms=(),
        frame=False,
    )
    values = [sample(name), None]
    arrow = pa.chunked_array([pa.array(values, arrow_type(name))])
    plain, held = feature_matrix(inputs, {"x": values}), feature_matrix(inputs, {"x": arrow})
    np.testing.assert_array_equal(plain, held)
    assert plain[0, 0] == float(sample(name))


@pytest.mark.parametrize("name", TYPES)
def test_the_parity_check_reads_back_what_the_api_answers(name):
    (text,) = orjson.loads(orjson.dumps(json_column(name)([sample(name)])))
    assert _from_json(text, name) == log_values([sample(name)], name)[0]
    codec = value_codec(name)
    proto = codec.to_proto(codec.from_python(sample(name)))
    assert _from_proto(proto, name) == log_values([sample(name)], name)[0]


@pytest.mark.parametrize("name", TYPES)
def test_a_table_and_a_row_are_stored_and_logged_alike(name):
    spec = ViewSpec(
        name="v",
        join_keys=(Column(name="k", dtype="INT64"),),
        columns=(Column(name="x", dtype=name),),
        ttl_us=None,
        event_column="event",
        created_column=None,
    )
    codec = RowCodec(spec)
    if name == "SCALAR_MAP":  # its keys are not texts, so JSON text cannot carry it
        values = pa.array([[(1, "x")], None], pa.map_(pa.int64(), pa.string()))
    else:
        values = pa.array(log_values([sample(name), None], name), arrow_type(name))
    table = pa.table(
        {
            "k": pa.array([1, 2]),
            "x": values,
            "event": pa.array([AT, AT], arrow_type("UNIX_TIMESTAMP")),
        }
    )
    rows = packed_rows(codec, table, write_us=1)
    (value, _) = values.to_pylist(maps_as_pydicts="strict")
    assert rows[:1] == codec.encode([{"x": value}], [(to_us(AT), None, 1)])
    many = ViewDecoder(spec, ["x"]).decode([rows[0]] * 40, request_time_us=0).values["x"]
    assert list(log_values(plain(many), name)) == [*log_values([sample(name)], name)] * 40
    of_rows = entry_of_rows(codec, {"k": [1, 2]}, rows)
    assert of_rows.equals(entry_of_table(spec, table, write_us=1))


@pytest.mark.parametrize("name", TYPES)
def test_roles(name):
    own = FEATURE_TYPES[name]
    assert type_problems("feature", {"x": name}) == []
    assert (type_problems("entity key", {"x": name}) == []) is own.is_key
    assert (type_problems("request field", {"x": name}) == []) is (own.kind is not Kind.DOCUMENT)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"b": [1, {"c": None}], "a": None}, '{"b":[1,{}]}'),
        ('{"b": 1,  "a": 2}', '{"a":2,"b":1}'),
        ("not json", '"not json"'),
        (None, None),
        ({"x": b"1"}, '{"x":"b\'1\'"}'),
    ],
)
def test_json_text_is_canonical(value, text):
    assert json_text(value) == text
