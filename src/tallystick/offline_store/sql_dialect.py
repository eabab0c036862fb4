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
from tallystick.definitions.feature_view import Column
from tallystick.point_in_time.rule import quoted, text_sql

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
        time_of_us: The function that makes a time of microseconds since 1970.
        error: The function that fails with a message.
    """

    quoted: Callable[[str], str]
    time_us_sql: Callable[[str, pa.DataType], str]
    type_name: Callable[[EngineTypes], str]
    time_of_us: str
    error: str

    def key_sql(self, column: str, found: pa.DataType, declared: Column) -> str:
        """The expression for a key, in the one type in which keys of its type are compared.

        Args:
            column: The expression for it as it is in the source.
            found: Its type in the source.
            declared: Its name and its type in Feast.
        """
        kind, have = feature_type(declared.dtype).kind, family(found)
        types = ENGINE_TYPES[kind]
        if kind is Kind.TIME and have != "null":
            return self.time_us_sql(column, found)
        if types is None or (kind is Kind.BYTES and have != "null"):
            return column
        wide = self.type_name(types)
        if kind is Kind.FLOAT and have == "decimal":
            # The cast of a decimal to a float is not the nearest one.
            return f"CAST(CAST({column} AS {self.type_name(_TEXT)}) AS {wide})"
        if kind is not Kind.INTEGER or have not in {"float", "decimal"}:
            return f"CAST({column} AS {wide})"
        whole = f"{column} % 1 = 0"
        if have == "float":
            whole += f" AND {column} >= -{_BEYOND} AND {column} < {_BEYOND}"
        return self._cast_if(whole, column, wide, f"{declared.name}: {declared.dtype}")

    def value_sql(self, column: str, found: pa.DataType, declared: Column) -> str:
        """The expression for a feature that has several types in a source; as :meth:`key_sql`."""
        if family(found) == "null":
            return "NULL"
        value = self.key_sql(column, found, declared)
        return f"{self.time_of_us}({value})" if feature_type(declared.dtype).is_time else value

    def widened_sql(self, column: str, found: pa.DataType, common: pa.DataType) -> str:
        """The expression for a column of some files in the type that those of all files share."""
        if family(found) != "integer" or family(common) != "float":
            return column
        exact = f"{column} BETWEEN -{_FLOAT_EXACT} AND {_FLOAT_EXACT}"
        return self._cast_if(exact, column, self.type_name(_DOUBLE), "a column that has floats")

    def _cast_if(self, condition: str, column: str, wide: str, what: str) -> str:
        """The expression that casts what meets a condition, and fails for the rest."""
        message = f"{text_sql(f'{what} cannot hold ')} || CAST({column} AS {self.type_name(_TEXT)})"
        return (
            f"CASE WHEN {column} IS NULL THEN CAST(NULL AS {wide}) "
            f"WHEN {condition} THEN CAST({column} AS {wide}) "
            f"ELSE CAST({self.error}({message}) AS {wide}) END"
        )


_FLOAT_EXACT: Final = 2**53
"""Whole numbers up to it are floats as well."""

_TEXT: Final = EngineTypes("string", "VARCHAR", "STRING")
_DOUBLE: Final = EngineTypes("float64", "DOUBLE", "DOUBLE")

_BEYOND: Final = "9223372036854775808e0"
"""The first float that is too large for an integer of 64 bits."""


def _time_us_sql(column: str, kind: pa.DataType) -> str:
    import pyarrow.types as pt

    if pt.is_timestamp(kind) and kind.unit == "ns":
        return f"epoch_ns({column}) // 1000"
    if pt.is_timestamp(kind) and kind.tz is not None:
        return f"epoch_us(CAST({column} AS TIMESTAMPTZ))"
    return f"epoch_us(CAST({column} AS TIMESTAMP))"


DUCKDB: Final = Dialect(quoted, _time_us_sql, attrgetter("duckdb"), "make_timestamp", "error")


def key_type(dtype: str) -> pa.DataType:
    """The Arrow type in which keys of ``dtype`` are compared."""
    import pyarrow as pa

    types = ENGINE_TYPES[feature_type(dtype).kind]
    return arrow_type(dtype) if types is None else pa.type_for_alias(types.arrow)
