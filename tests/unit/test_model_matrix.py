from __future__ import annotations

import numpy as np
import pyarrow as pa

from tallystick.clock import from_us
from tallystick.definitions.contract import FeatureSpec, ModelInputs
from tallystick.definitions.feature_types import arrow_type
from tallystick.model_bundle.model_matrix import feature_matrix

VALUES = {
    "v__i": ("INT64", [2**53 + 1, None, -1]),
    "v__f": ("FLOAT", [0.5, None, float("nan")]),
    "v__b": ("BOOL", [True, None, False]),
    "v__t": ("UNIX_TIMESTAMP", [from_us(1_500_000), None, from_us(0)]),
}


def inputs(names, *, frame=False):
    features = tuple(
        FeatureSpec(
            name=name,
            view="v",
            feature=name.removeprefix("v__"),
            dtype="STRING" if name == "v__s" else VALUES[name][0],
            kind="view",
        )
        for name in names
    )
    return ModelInputs(
        project="p",
        model="m",
        entity_keys=(),
        request_fields=(),
        features=features,
        views=(),
        transforms=(),
        frame=frame,
    )


def test_plain_values_and_arrow_give_the_same_matrix():
    plain = {name: values for name, (_, values) in VALUES.items()}
    arrow = {
        name: pa.chunked_array([pa.array(values, arrow_type(dtype))])
        for name, (dtype, values) in VALUES.items()
    }
    order = inputs(VALUES)
    np.testing.assert_array_equal(feature_matrix(order, plain), feature_matrix(order, arrow))


def test_columns_go_by_name_in_the_contracts_order():
    plain = {name: values for name, (_, values) in VALUES.items()}
    backwards = feature_matrix(inputs(list(VALUES)[::-1]), plain)
    np.testing.assert_array_equal(backwards[:, ::-1], feature_matrix(inputs(VALUES), plain))


def test_null_is_nan_and_booleans_are_numbers():
    matrix = feature_matrix(inputs(["v__b"]), {"v__b": [True, None, False]})
    np.testing.assert_array_equal(matrix[:, 0], [1.0, np.nan, 0.0])


def test_a_frame_keeps_names_and_text():
    frame = feature_matrix(
        inputs(["v__s", "v__i"], frame=True), {"v__s": ["a", None], "v__i": [1, 2]}
    )
    assert list(frame.columns) == ["v__s", "v__i"]
    assert frame["v__s"].tolist() == ["a", None]
