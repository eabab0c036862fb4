"""The registry of feature types: what each value type of Feast is in every engine and file.

A contract, a packed row and a log file name types as Feast does (``INT64``, ``STRING_LIST``), so
that none of them has to import Feast. Code that depends on a type looks it up here, or in a table
by :class:`Kind` that :func:`every_kind` has checked: such a table fails on import if it lacks a
kind. Importing this module imports no engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

from tallystick.errors import DefinitionError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")
Role: TypeAlias = Literal["feature", "entity key", "request field"]


class Kind(StrEnum):
    """What sort of values a type holds, and so how they are converted and compared."""

    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    TIME = "time"
    TEXT = "text"
    UUID = "uuid"
    DECIMAL = "decimal"
    BYTES = "bytes"
    LIST = "list"
    SET = "set"
    DOCUMENT = "document"


def every_kind(table: Mapping[Kind, T]) -> Mapping[Kind, T]:
    """A table that has a row for each kind of values.

    >>> every_kind({Kind.INTEGER: int, Kind.FLOAT: float})
    Traceback (most recent call last):
    TypeError: no row for bool, time, text, uuid, decimal, bytes, list, set, document
    """
    if missing := [kind for kind in Kind if kind not in table]:
        raise TypeError(f"no row for {', '.join(missing)}")
    return table


@dataclass(frozen=True, slots=True)
class FeatureType:
    """A value type of Feast.

    Attributes:
        name: Its name in Feast.
        kind: The sort of its values. In Python these are int, float, bool, aware UTC datetime,
            text (also UUID, in canonical form, and decimal), bytes, lists of these, and for a
            document what JSON can hold. A set is a sorted list without duplicates.
        arrow: Arrow's name of the type in which a column and the log hold it exactly; of a list or
            set, that of its members.
        proto_field: The field of Feast's ``Value`` that carries it.
        struct_code: Its format in :mod:`struct` and NumPy, where it has a fixed width; times are
            microseconds since 1970.
        member: Type of the members of a list or set.
    """

    name: str
    kind: Kind
    arrow: str
    proto_field: str
    struct_code: str | None = None
    member: FeatureType | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest value of an integer type, both included."""
        return _LIMITS[self.arrow]

    @property
    def is_key(self) -> bool:
        """Whether a join key may have it."""
        return self.name in KEY_TYPES

    @property
    def is_time(self) -> bool:
        """Whether its values are times."""
        return self.kind is Kind.TIME

    @property
    def is_number(self) -> bool:
        """Whether it goes to a model as a number; a BOOL as 0 or 1."""
        return self.kind in {Kind.INTEGER, Kind.FLOAT, Kind.BOOL}

    @property
    def is_document(self) -> bool:
        """Whether it is a map, struct, JSON or nested list: JSON text in the log."""
        return self.kind is Kind.DOCUMENT


_LIMITS: Final = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}


def _registry() -> Iterable[FeatureType]:
    scalars = [
        FeatureType("INT32", Kind.INTEGER, "int32", "int32_val", "i"),
        FeatureType("INT64", Kind.INTEGER, "int64", "int64_val", "q"),
        FeatureType("FLOAT", Kind.FLOAT, "float32", "float_val", "f"),
        FeatureType("DOUBLE", Kind.FLOAT, "float64", "double_val", "d"),
        FeatureType("BOOL", Kind.BOOL, "bool", "bool_val", "?"),
        FeatureType("UNIX_TIMESTAMP", Kind.TIME, "timestamp[us]", "unix_timestamp_val", "q"),
        FeatureType("STRING", Kind.TEXT, "string", "string_val"),
        FeatureType("UUID", Kind.UUID, "string", "uuid_val"),
        FeatureType("TIME_UUID", Kind.UUID, "string", "time_uuid_val"),
        FeatureType("DECIMAL", Kind.DECIMAL, "string", "decimal_val"),
        FeatureType("BYTES", Kind.BYTES, "binary", "bytes_val"),
    ]
    yield from scalars
    for kind in (Kind.LIST, Kind.SET):
        for each in scalars:
            field = f"{each.proto_field.removesuffix('_val')}_{kind}_val"
            yield FeatureType(f"{each.name}_{kind.name}", kind, each.arrow, field, member=each)
    for name in ("IMAGE_BYTES", "PDF_BYTES"):  # Feast has no lists of them
        yield FeatureType(name, Kind.BYTES, "binary", "bytes_val")
    for name in ("MAP", "MAP_LIST", "SCALAR_MAP", "JSON", "JSON_LIST", "STRUCT", "STRUCT_LIST"):
        yield FeatureType(name, Kind.DOCUMENT, "string", f"{name.lower()}_val")
    yield FeatureType("VALUE_LIST", Kind.DOCUMENT, "string", "list_val")
    yield FeatureType("VALUE_SET", Kind.DOCUMENT, "string", "set_val")


FEATURE_TYPES: Final[Mapping[str, FeatureType]] = {each.name: each for each in _registry()}
"""Name in Feast → type, of every type that is supported."""

KEY_TYPES: Final = ("INT32", "INT64", "STRING", "BYTES", "UNIX_TIMESTAMP")
"""Types that a join key may have."""

REFUSED: Final[Mapping[str, str]] = {
    "UNKNOWN": "a type of feast.types",
    "NULL": "a type that has values",
    "ZONED_TIMESTAMP": "UNIX_TIMESTAMP, and a STRING for the zone",
}
"""Name in Feast → what to declare instead, of every type that is not supported."""


@dataclass(frozen=True, slots=True)
class EngineTypes:
    """The widest types of a kind, in which values of several physical types are compared.

    Attributes:
        arrow: Arrow's name of it; times are microseconds since 1970.
        duckdb: DuckDB's.
        spark: Spark's.
    """

    arrow: str
    duckdb: str
    spark: str


_TEXT: Final = EngineTypes("string", "VARCHAR", "STRING")
_INTEGER: Final = EngineTypes("int64", "BIGINT", "BIGINT")

ENGINE_TYPES: Final[Mapping[Kind, EngineTypes | None]] = every_kind(
    {
        Kind.INTEGER: _INTEGER,
        Kind.FLOAT: EngineTypes("float64", "DOUBLE", "DOUBLE"),
        Kind.BOOL: EngineTypes("bool", "BOOLEAN", "BOOLEAN"),
        Kind.TIME: _INTEGER,
        Kind.TEXT: _TEXT,
        Kind.UUID: _TEXT,
        Kind.DECIMAL: _TEXT,
        Kind.BYTES: EngineTypes("binary", "BLOB", "BINARY"),
        Kind.LIST: None,
        Kind.SET: None,
        Kind.DOCUMENT: None,
    }
)
"""Kind → the types in which engines compare its values; None where they have no order."""


def feature_type(name: str) -> FeatureType:
    """The type that Feast calls ``name``.

    Raises:
        DefinitionError: It is not supported.
    """
    if name not in FEATURE_TYPES:
        raise DefinitionError(f"Feast's type {name} is not supported; declare {_instead(name)}.")
    return FEATURE_TYPES[name]


def type_problems(role: Role, columns: Mapping[str, str]) -> list[Problem]:
    """The one rule of what a column may be: why columns cannot have their types.

    Args:
        role: What the columns are.
        columns: Name → type in Feast.

    >>> for problem in type_problems("feature", {"x": "NULL", "y": "MAP"}):
    ...     print(problem)
    feature x: expected a type that has values, got NULL
    >>> for problem in type_problems("entity key", {"id": "DOUBLE"}):
    ...     print(problem)
    entity key id: expected INT32 or INT64 or STRING or BYTES or UNIX_TIMESTAMP, got DOUBLE
    """
    problems = []
    for column, name in columns.items():
        own = FEATURE_TYPES.get(name)
        expected = None
        if own is None:
            expected = _instead(name)
        elif role == "entity key" and not own.is_key:
            expected = " or ".join(KEY_TYPES)
        elif role == "request field" and own.is_document:
            expected = "a scalar, or a list or set of scalars"
        if expected is not None:
            problems.append(Problem(f"{role} {column}", expected, name))
    return problems


def _instead(name: str) -> str:
    return REFUSED.get(name, "a type of Feast 0.67")


@cache
def arrow_type(name: str) -> pa.DataType:
    """The Arrow type that holds a type of Feast exactly, also in the log.

    Times are microseconds in UTC. Documents have no single Arrow type in Feast; they are held as
    JSON text.

    Raises:
        DefinitionError: The type is not supported.
    """
    import pyarrow as pa

    own = feature_type(name)
    if own.member is not None:
        return pa.list_(arrow_type(own.member.name))
    return pa.timestamp("us", tz="UTC") if own.kind is Kind.TIME else pa.type_for_alias(own.arrow)
