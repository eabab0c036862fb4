"""Values of a request, from JSON to the types that the contract declares; exactly or not at all.

Admission control has read the body and bounds its size.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from tallystick.clock import utc
from tallystick.definitions.exact_cast import are_exact, exact_value
from tallystick.definitions.feature_types import (
    FeatureType,
    Kind,
    every_kind,
    feature_type,
    type_problems,
)
from tallystick.definitions.feature_view import Column
from tallystick.errors import ContractError
from tallystick_serving.error_responses import NotJSONError, shown


@dataclass(frozen=True, slots=True)
class FieldReader:
    """How a value of one column is read from JSON.

    Attributes:
        read: JSON value → value of the declared type; ValueError if it is something else.
        expected: What has to be sent, in words.
        are_exact: Whether many values are of the declared type as they are: quick, for what is
            mostly right. If not, they have to be read one by one.
    """

    read: Callable[[Any], Any]
    expected: str
    are_exact: Callable[[list[Any]], bool]


def object_of(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        NotJSONError: The body is not a JSON object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJSONError(f"The body is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise NotJSONError(f"The body must be a JSON object, not {shown(content)}.")
    return content


def field_reader(column: Column) -> FieldReader:
    """How values of ``column`` are read.

    Raises:
        ContractError: A column of this type cannot be sent as JSON.
    """
    problems = type_problems("request field", {column.name: column.dtype})
    if problems:
        raise ContractError("A model takes a value that a request cannot carry.", problems)
    own = feature_type(column.dtype)
    if own.member is None:
        return FieldReader(_reader(own), _expected(own), partial(_are_exact, own))
    read, exact = _reader(own.member), exact_value(own.name)

    def read_list(value: Any) -> Any:
        if type(value) is not list:
            raise ValueError
        return exact([read(each) for each in value])

    return FieldReader(read_list, f"a list, each {_expected(own.member)}", lambda _: False)


def moment(value: Any) -> datetime:
    """An ISO 8601 text as a time in UTC, cut to microseconds. One without a zone is in UTC.

    Raises:
        ValueError: It is something else.
    """
    if type(value) is not str:
        raise ValueError
    try:
        return utc(datetime.fromisoformat(value))
    except OverflowError as error:
        raise ValueError from error


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError
    return value


def _from_base64(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


class _InJson(NamedTuple):
    """What stands for a value in JSON: its classes, how it is decoded, and that in words."""

    classes: frozenset[type]
    decode: Callable[[Any], Any] | None
    expected: str


_TEXT: Final = frozenset({str})
_IN_JSON: Final[Mapping[Kind, _InJson | None]] = every_kind(
    {
        # Not isinstance: a bool is an int, and true is not a key.
        Kind.INTEGER: _InJson(frozenset({int, float}), None, "an integer"),
        Kind.FLOAT: _InJson(frozenset({int, float}), _finite, "a finite number"),
        Kind.BOOL: _InJson(frozenset({bool}), None, "true or false"),
        Kind.TIME: _InJson(_TEXT, moment, "an ISO 8601 time like 2013-07-01T12:00:00Z"),
        Kind.TEXT: _InJson(_TEXT, None, "a text"),
        Kind.UUID: _InJson(_TEXT, None, "a text like 01890a5d-ac96-774b-bcce-b302099a8057"),
        Kind.DECIMAL: _InJson(_TEXT, None, "a number as a text, like 1.50"),
        Kind.BYTES: _InJson(_TEXT, _from_base64, "a text in base64"),
        Kind.LIST: None,
        Kind.SET: None,
        Kind.DOCUMENT: None,
    }
)


def _expected(own: FeatureType) -> str:
    in_json = _IN_JSON[own.kind]
    assert in_json is not None
    limits = f" from {own.limits[0]} to {own.limits[1]}" if own.kind is Kind.INTEGER else ""
    within = " within float32" if own.name == "FLOAT" else ""
    return f"{own.name}: {in_json.expected}{limits}{within}"


def _reader(own: FeatureType) -> Callable[[Any], Any]:
    in_json, exact = _IN_JSON[own.kind], exact_value(own.name)
    assert in_json is not None
    classes, decode, _ = in_json

    def read(value: Any) -> Any:
        if type(value) not in classes:
            raise ValueError
        try:
            return exact(value if decode is None else decode(value))
        except OverflowError as error:
            raise ValueError from error

    return read


def _are_exact(own: FeatureType, values: list[Any]) -> bool:
    if not are_exact(values, own) or None in values:
        return False
    return own.kind is not Kind.FLOAT or math.isfinite(sum(values))
