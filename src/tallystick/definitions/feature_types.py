"""The types of columns, under Feast's value type names (``INT64``, ``FLOAT``, ``STRING_LIST``…).

A contract, a packed row and a log file name types by these strings, so that none of them has to
import Feast.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

NUMERIC: Final = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"})
"""Types that go to a model as a number; BOOL as 0 or 1."""

INTEGER_LIMITS: Final = {
    "INT32": (-(2**31), 2**31 - 1),
    "INT64": (-(2**63), 2**63 - 1),
}
"""Smallest and largest value, both included."""


JSON_TEXT: Final = frozenset(
    {"MAP", "MAP_LIST", "JSON", "JSON_LIST", "STRUCT", "STRUCT_LIST", "SCALAR_MAP"}
)
"""Types without one Arrow type of their own; the log holds them as canonical JSON text."""


def json_text(value: Any) -> str | None:
    """The canonical JSON text of a map, struct or JSON value: sorted keys, null members left out.

    A struct of history names every member and a map of the online store only those it has, hence
    the null members. Text that is JSON is made canonical, other text is a JSON string.

    >>> json_text({"b": None, "a": 1}), json_text('{"b": 2, "a": 1}'), json_text(None)
    ('{"a":1}', '{"a":1,"b":2}', None)
    """
    import orjson

    if value is None:
        return None
    if isinstance(value, str):
        with suppress(orjson.JSONDecodeError):
            value = orjson.loads(value)
    return orjson.dumps(_without_nulls(value), default=str, option=orjson.OPT_SORT_KEYS).decode()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            str(name): _without_nulls(member)
            for name, member in value.items()
            if member is not None
        }
    if isinstance(value, list | tuple):
        return [_without_nulls(member) for member in value]
    return value


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type that holds a Feast value type exactly.

    Times are microseconds in UTC. Maps, structs and JSON have no single Arrow type in Feast; they
    are held as JSON text.

    Raises:
        KeyError: The type is not one of Feast's.
    """
    import pyarrow as pa

    scalars = {
        "INT32": pa.int32(),
        "INT64": pa.int64(),
        "FLOAT": pa.float32(),
        "DOUBLE": pa.float64(),
        "STRING": pa.string(),
        "UUID": pa.string(),
        "TIME_UUID": pa.string(),
        "DECIMAL": pa.string(),
        "BYTES": pa.binary(),
        "IMAGE_BYTES": pa.binary(),
        "PDF_BYTES": pa.binary(),
        "BOOL": pa.bool_(),
        "UNIX_TIMESTAMP": pa.timestamp("us", tz="UTC"),
    }
    if dtype in scalars:
        return scalars[dtype]
    inner = dtype.removesuffix("_LIST").removesuffix("_SET")
    if inner != dtype and inner in scalars:
        return pa.list_(scalars[inner])
    if dtype in JSON_TEXT:
        return pa.string()
    raise KeyError(dtype)
