from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest

from tallystick.definitions.contract import ModelInputs, TransformSpec, ViewUse
from tallystick.definitions.exact_cast import exact_values
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DamagedError, DefinitionError
from tallystick.point_in_time.on_demand import Transforms

VIEW = ViewSpec(
    name="view",
    join_keys=(Column(name="id", dtype="INT64"),),
    columns=(
        Column(name="x", dtype="DOUBLE"),
        Column(name="n", dtype="INT64"),
        Column(name="b", dtype="BOOL"),
        Column(name="t", dtype="UNIX_TIMESTAMP"),
    ),
    ttl_us=None,
    event_column="event",
    created_column="created",
)


def inputs(mode, dtype="DOUBLE"):
    spec = TransformSpec(
        name="odv",
        mode=mode,
        code_hash="0",
        inputs={"x": "view__x", "view__x": "view__x", "add": "add"},
        outputs=(Column(name="sum", dtype=dtype),),
    )
    return ModelInputs(
        project="p",
        model="m",
        entity_keys=(),
        request_fields=(Column(name="add", dtype="INT64"),),
        features=(),
        views=(ViewUse(spec=VIEW, name="view", key_map={"id": "id"}, columns=VIEW.column_names),),
        transforms=(spec,),
    )


COLUMNS = {"view__x": [1.5, None], "add": [1, 2]}


def batch(values):
    return {
        "sum": [
            None if x is None else x + add
            for x, add in zip(values["x"], values["add"], strict=True)
        ]
    }


def single(values):
    return {"sum": None if values["x"] is None else values["x"] + values["add"]}


def frame(values):
    values["sum"] = values["x"] + values["add"]
    return values[["sum"]]


@pytest.mark.parametrize(
    ("mode", "function"), [("python", batch), ("python_singleton", single), ("pandas", frame)]
)
def test_every_mode_gives_the_same_values(mode, function):
    computed = Transforms({"odv": function}).compute(inputs(mode), COLUMNS)
    assert computed == {"odv__sum": [2.5, None]}


def test_frozen_functions_compute_the_same():
    transforms = Transforms.from_bytes(Transforms({"odv": batch}).to_bytes())
    assert transforms.compute(inputs("python"), COLUMNS) == {"odv__sum": [2.5, None]}


def test_bytes_that_are_no_functions_are_refused():
    with pytest.raises(DamagedError, match="cannot be loaded"):
        Transforms.from_bytes(b"not a pickle")


def test_a_failing_function_is_named():
    with pytest.raises(DefinitionError, match=r"'odv' failed: KeyError"):
        Transforms({"odv": lambda values: {"sum": values["y"]}}).compute(inputs("python"), COLUMNS)


def test_a_function_must_return_as_many_values_as_rows():
    with pytest.raises(DefinitionError, match=r"must return 2 values of 'sum', but returned 1"):
        Transforms({"odv": lambda _: {"sum": [1.0]}}).compute(inputs("python"), COLUMNS)


def test_a_function_must_return_the_declared_type():
    with pytest.raises(DefinitionError, match=r"is not of type INT64: 2\.5 is not a whole number"):
        Transforms({"odv": batch}).compute(inputs("python", "INT64"), COLUMNS)


def test_casts_are_exact():
    assert exact_values([2**53 + 1, None], "INT64") == [2**53 + 1, None]
    assert exact_values([0.1], "FLOAT") != [0.1]
    assert math.isnan(exact_values([math.nan], "DOUBLE")[0])
    with pytest.raises(OverflowError):
        exact_values([2**31], "INT32")
    assert exact_values([2**53 + 1], "STRING") == ["9007199254740993"]
    for value in (1.0, True, b"1"):
        with pytest.raises(TypeError):
            exact_values([value], "STRING")


@pytest.mark.parametrize("value", [np.float32(2.5), Decimal("2.5"), "7"])
def test_no_integer_is_made_of_something_else(value):
    with pytest.raises(ValueError, match="is not a whole number"):
        exact_values([value], "INT64")


@pytest.mark.parametrize(
    ("value", "dtype"),
    [("1.5", "DOUBLE"), ("1.5", "FLOAT"), ("False", "BOOL"), (2, "BOOL"), (0, "UNIX_TIMESTAMP")],
)
def test_values_of_another_kind_are_refused(value, dtype):
    with pytest.raises(TypeError):
        exact_values([value], dtype)


def test_naive_times_are_utc():
    moment = datetime(2013, 7, 1, 12)
    assert exact_values([moment], "UNIX_TIMESTAMP") == [moment.replace(tzinfo=UTC)]


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("n", 10115, "10115_a"),
        ("n", 2**53 + 1, "9007199254740993_a"),
        ("b", True, "True_a"),
        ("t", datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01 00:00:00+00:00_a"),
    ],
)
def test_pandas_sees_one_type_whatever_else_is_in_the_batch(column, value, text):
    seen = []

    def texts(values):
        seen.append(values["x"].dtype)
        values["sum"] = values["x"].astype(str) + "_a"
        return values[["sum"]]

    spec = inputs("pandas", "STRING").transforms[0]
    spec = spec.model_copy(update={"inputs": {"x": f"view__{column}"}})
    given = inputs("pandas").model_copy(update={"transforms": (spec,)})
    transforms = Transforms({"odv": texts})
    for batch in ([value], [value, None], [None, value]):
        answer = transforms.compute(given, {f"view__{column}": batch})["odv__sum"]
        assert answer[batch.index(value)] == text
    transforms.compute(given, {f"view__{column}": [None]})
    assert len(set(seen)) == 1
