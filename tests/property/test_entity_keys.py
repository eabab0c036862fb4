"""Two entities never share a key, and no project or view is part of another's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallystick.definitions.feature_view import Column
from tallystick.errors import DefinitionError, InputError
from tallystick.online_store.entity_keys import (
    EntityKeys,
    definitions_key,
    entity_prefix,
    marks_key,
    project_prefix,
    proto_key,
    ttls_key,
)

VALUES = st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary()
NAMES = st.text(min_size=1)


def dtype_of(value) -> str:
    return {int: "INT64", str: "STRING", bytes: "BYTES"}[type(value)]


def keys_of(project, values, names=()):
    names = names or [f"k{p}" for p in range(len(values))]
    columns = [Column(name=n, dtype=dtype_of(v)) for n, v in zip(names, values, strict=True)]
    return EntityKeys(project, columns).of([[value] for value in values])[0]


ENTITIES = st.lists(VALUES, min_size=1, max_size=3)


@given(ENTITIES, ENTITIES)
def test_different_entities_have_different_keys(one, other):
    same = [(type(v), v) for v in one] == [(type(v), v) for v in other]
    assert (keys_of("p", one) == keys_of("p", other)) == same


@given(NAMES, NAMES, NAMES, NAMES, VALUES)
def test_no_prefix_matches_another_project(project, name, project2, name2, value):
    key = keys_of(project, [value], [name])
    assert key.startswith(project_prefix(project))
    assert key.startswith(entity_prefix(project, [name]))
    assert key.startswith(project_prefix(project2)) == (project == project2)
    if project != project2:
        assert not key.startswith(entity_prefix(project2, [name2]))
    for reserved in (definitions_key, ttls_key, marks_key):
        assert key != reserved(project2)
        assert not key.startswith(reserved(project2))


def test_entities_of_other_names_have_other_keys():
    keys = {keys_of("p", [1], [name]) for name in ("user_id", "item_id", "id", "origin")}
    assert len(keys) == 4
    assert keys_of("p", [1, 2], ["a", "b"]) == keys_of("p", [2, 1], ["b", "a"])


@given(ENTITIES, st.randoms())
def test_feast_and_serving_make_the_same_key(entity, random):
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    fields = {int: "int64_val", str: "string_val", bytes: "bytes_val"}
    pairs = [(f"k{p}", Value(**{fields[type(v)]: v})) for p, v in enumerate(entity)]
    random.shuffle(pairs)
    proto = EntityKey(join_keys=[k for k, _ in pairs], entity_values=[v for _, v in pairs])
    assert proto_key("p", proto) == keys_of("p", entity)


def test_a_time_is_the_same_key_on_both_sides():
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    keys = EntityKeys("p", [Column(name="t", dtype="UNIX_TIMESTAMP")])
    proto = EntityKey(join_keys=["t"], entity_values=[Value(unix_timestamp_val=7)])
    moment = datetime(1970, 1, 1, 0, 0, 7, 5, tzinfo=UTC)
    assert keys.of([[moment]]) == [proto_key("p", proto)]


def test_a_null_in_a_key_makes_no_key():
    columns = [Column(name="a", dtype="INT64"), Column(name="b", dtype="STRING")]
    keys = EntityKeys("p", columns)
    made = keys.of([[1, None, 3], ["x", "y", None]])
    assert made[0] is not None
    assert made[1:] == [None, None]


def test_a_key_of_another_type_is_refused():
    columns = [Column(name="a", dtype="INT64"), Column(name="b", dtype="STRING")]
    with pytest.raises(InputError) as caught:
        EntityKeys("p", columns).of([[1, "1"], [2.5, "x"]])
    assert [problem.where for problem in caught.value.problems] == ["a, row 1", "b, row 0"]
    for bad in (1.0, True, "1"):
        with pytest.raises(InputError):
            EntityKeys("p", columns[:1]).of([[bad]])


def test_a_type_that_cannot_be_a_key_is_refused():
    with pytest.raises(DefinitionError, match="DOUBLE"):
        EntityKeys("p", [Column(name="a", dtype="DOUBLE")])
