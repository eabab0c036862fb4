"""The SQL by which an engine normalises a source: times as integers, keys in one type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from tallystick.definitions.exact_cast import family
from tallystick.definitions.feature_types import (
    ENGINE_TYPES,
    EngineTypes,
    Kind,
    arrow_type,
    feature_type,
)
from tallystick.point_in_time.rule import quoted

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Dialect:
    """What differs between engines.

    Attributes:
        quoted: A name as an identifier.
        time_us_sql: The expression for a time column in microseconds since 1970 in UTC, cut, not
            rounded.
        type_name: The engine's name of a type.
        error: The function that fails with a message.
    """

    quoted: Callable[[str], str]
    time_us_sql: Callable[[str, pa.DataType], str]
    type_name: Callable[[EngineTypes], str]
    error: str

    def key_sql(self, column: str, dtype: str, found: pa.DataType) -> str:
        """The expression for a key, in the one type in which keys of ``dtype`` are compared."""
        kind, have = feature_type(dtype).kind, family(found)
        types = ENGINE_TYPES[kind]
        if kind is Kind.TIME and have != "null":
            return self.time_us_sql(column, found)
        if types is None or (kind is Kind.BYTES and have != "null"):
            return column
        name = self.type_name(types)
        if kind is not Kind.INTEGER or have != "float":
            return f"CAST({column} AS {name})"
        whole = f"{column} % 1 = 0 AND {column} >= -{_BEYOND} AND {column} < {_BEYOND}"
        refuse = f"{self.error}('a key of type {dtype} holds a fraction or is out of range')"
        return (
            f"CASE WHEN {column} IS NULL THEN CAST(NULL AS {name}) "
            f"WHEN {whole} THEN CAST({column} AS {name}) ELSE CAST({refuse} AS {name}) END"
        )


_BEYOND: Final = "9223372036854775808e0"
"""The first float that is too large for an integer of 64 bits."""


def _time_us_sql(column: str, kind: pa.DataType) -> str:
    import pyarrow.types as pt

    if pt.is_timestamp(kind) and kind.unit == "ns":
        return f"epoch_ns({column}) // 1000"
    if pt.is_timestamp(kind) and kind.tz is not None:
        return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"
    return f"epoch_us(CAST({column} AS TIMESTAMP))"


DUCKDB: Final = Dialect(quoted, _time_us_sql, attrgetter("duckdb"), "error")


def key_type(dtype: str) -> pa.DataType:
    """The Arrow type in which keys of ``dtype`` are compared."""
    import pyarrow as pa

    types = ENGINE_TYPES[feature_type(dtype).kind]
    return arrow_type(dtype) if types is None else pa.type_for_alias(types.arrow)
