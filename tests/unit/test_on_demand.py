from __future__ import annotations

import math
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pytest

from tallystick.definitions.contract import ModelInputs, TransformSpec
from tallystick.definitions.exact_cast import exact_values
from tallystick.definitions.feature_view import Column
from tallystick.errors import DamagedError, DefinitionError
from tallystick.point_in_time.on_demand import Transforms


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
        views=(),
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
    with pytest.raises(TypeError):
        exact_values([1], "STRING")


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
