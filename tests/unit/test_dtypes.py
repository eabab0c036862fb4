from __future__ import annotations

import pytest

from tallystick.definitions.feature_types import JSON_TEXT, arrow_type, json_text


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


def test_every_json_type_is_held_as_text():
    assert {str(arrow_type(dtype)) for dtype in JSON_TEXT} == {"string"}


def test_an_unknown_type_is_refused():
    with pytest.raises(KeyError):
        arrow_type("TENSOR")
