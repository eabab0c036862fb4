"""How a source's column becomes a value of its declared type: exactly, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import DataError
from tallystick.point_in_time.rule import quoted

if TYPE_CHECKING:
    import pyarrow as pa

AS_IS: Final = frozenset(
    {"MAP", "MAP_LIST", "JSON", "JSON_LIST", "STRUCT", "STRUCT_LIST", "SCALAR_MAP"}
)
"""Types without one Arrow type; they keep the source's."""

ACCEPTED: Final = {
    "integer": {"integer", "bool", "float"},
    "float": {"integer", "float", "decimal", "bool"},
    "bool": {"bool"},
    "text": {"text", "decimal"},
    "bytes": {"bytes"},
    "time": {"time"},
}
"""Declared family → families of a source's column that can hold it."""


def family(kind: pa.DataType) -> str:
    """What sort of values an Arrow type holds; ``list of X`` for lists."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return family(kind.value_type)
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return f"list of {family(kind.value_type)}"
    tests = {
        "null": pt.is_null,
        "bool": pt.is_boolean,
        "integer": pt.is_integer,
        "float": pt.is_floating,
        "decimal": pt.is_decimal,
        "text": lambda each: pt.is_string(each) or pt.is_large_string(each),
        "bytes": lambda each: (
            pt.is_binary(each) or pt.is_large_binary(each) or pt.is_fixed_size_binary(each)
        ),
        "time": lambda each: pt.is_timestamp(each) or pt.is_date(each),
    }
    return next((name for name, test in tests.items() if test(kind)), str(kind))


def declared_type(dtype: str, found: pa.DataType) -> pa.DataType:
    """The Arrow type in which a column of Feast type ``dtype`` is returned."""
    return found if dtype in AS_IS else arrow_type(dtype)


def fits(dtype: str, found: pa.DataType) -> bool:
    """Whether a source's column can hold values of the declared type."""
    if dtype in AS_IS:
        return True
    want, have = family(arrow_type(dtype)), family(found)
    while want.startswith("list of ") and have.startswith("list of "):
        want, have = want.removeprefix("list of "), have.removeprefix("list of ")
    return have == "null" or have in ACCEPTED.get(want, {want})


def converted(column: Any, kind: pa.DataType, *, where: str) -> Any:
    """``column`` in the type ``kind``.

    Integers must come out exactly; floats take the nearest value of their width, and times are cut
    to microseconds.

    Raises:
        DataError: A value has no exact integer, or is out of range.
    """
    import pyarrow as pa

    if column.type == kind:
        return column
    exact = family(kind).endswith("integer")
    try:
        return column.cast(kind, safe=exact)
    except pa.ArrowNotImplementedError:
        if pa.types.is_nested(kind):
            return column
        raise
    except pa.ArrowInvalid as error:
        raise DataError(f"{where} has a value that is no {kind}: {error}") from error


def time_us_sql(column: str, kind: pa.DataType) -> str:
    """The expression for a time column in microseconds since 1970 in UTC, cut, not rounded."""
    import pyarrow.types as pt

    if pt.is_timestamp(kind) and kind.unit == "ns":
        return f"epoch_ns({column}) // 1000"
    if pt.is_timestamp(kind) and kind.tz is not None:
        return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"
    return f"epoch_us(CAST({column} AS TIMESTAMP))"


def key_sql(column: str, dtype: str, found: pa.DataType) -> str:
    """The expression for a key, in the one type in which keys of ``dtype`` are compared."""
    kind = family(arrow_type(dtype))
    if family(found) == "null":
        return "CAST(NULL AS VARCHAR)" if kind == "text" else "CAST(NULL AS BIGINT)"
    if kind == "time":
        return time_us_sql(column, found)
    if kind == "integer" and family(found) == "float":
        refuse = f"error('a key of type {dtype} holds a fraction')"
        return (
            f"CASE WHEN {column} IS NULL THEN CAST(NULL AS BIGINT) "
            f"WHEN {column} = trunc({column}) THEN CAST({column} AS BIGINT) ELSE {refuse} END"
        )
    kinds = {"integer": "BIGINT", "float": "DOUBLE", "bool": "BOOLEAN", "text": "VARCHAR"}
    return f"CAST({column} AS {kinds[kind]})" if kind in kinds else column


def key_type(dtype: str) -> pa.DataType:
    """The Arrow type in which keys of ``dtype`` are compared."""
    import pyarrow as pa

    kind = arrow_type(dtype)
    wide = {"integer": pa.int64(), "time": pa.int64(), "float": pa.float64()}
    return wide.get(family(kind), kind)


@dataclass(frozen=True)
class Dialect:
    """What differs between engines in the SQL that normalises a source.

    Attributes:
        quoted: A name as an identifier.
        time_us_sql: As :func:`time_us_sql`.
        key_sql: As :func:`key_sql`.
    """

    quoted: Callable[[str], str]
    time_us_sql: Callable[[str, pa.DataType], str]
    key_sql: Callable[[str, str, pa.DataType], str]


DUCKDB: Final = Dialect(quoted=quoted, time_us_sql=time_us_sql, key_sql=key_sql)
