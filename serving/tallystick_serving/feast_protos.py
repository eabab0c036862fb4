"""Feast's protobuf values: entity keys into them, features out of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import index
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import SECOND_US, from_us, to_us
from tallystick.definitions.feature_types import feature_type
from tallystick.definitions.feature_view import Column
from tallystick.errors import DefinitionError, InputError, Problem
from tallystick.online_store.value_codec import PROTO_FIELD

if TYPE_CHECKING:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

logger = logging.getLogger(__name__)

_NULL_TIME: Final = -(2**63)
"""What Feast writes for a null time."""


def _integer(dtype: str) -> Callable[[Any], int]:
    low, high = feature_type(dtype).limits

    def take(value: Any) -> int:
        if isinstance(value, bool):
            raise TypeError("bool")
        number = index(value)
        if not low <= number <= high:
            raise ValueError(dtype)
        return number

    return take


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _binary(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(type(value).__name__)
    return bytes(value)


def _seconds(value: Any) -> int:
    """Whole seconds, as Feast keeps times in keys."""
    if not isinstance(value, datetime):
        raise TypeError(type(value).__name__)
    return to_us(value) // SECOND_US


_KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "INT32": _integer("INT32"),
    "INT64": _integer("INT64"),
    "STRING": _text,
    "BYTES": _binary,
    "UNIX_TIMESTAMP": _seconds,
}
"""Value types that a key may have → how a value of it is checked."""


class EntityProtos:
    """Makes Feast's entity keys from columns of key values.

    Args:
        join_keys: The key columns, in the order in which :meth:`of` is given their values.

    Raises:
        DefinitionError: A key has a type that cannot be a key.
    """

    def __init__(self, join_keys: Sequence[Column]) -> None:
        problems = [
            Problem(f"key {key.name}", " or ".join(_KEYS), key.dtype)
            for key in join_keys
            if key.dtype not in _KEYS
        ]
        if problems:
            raise DefinitionError("A view has keys that no online store can use.", problems)
        self._join_keys = tuple(join_keys)

    def of(self, columns: Sequence[Sequence[Any]]) -> tuple[list[EntityKey], list[int | None]]:
        """The entity keys of some rows, each once.

        Args:
            columns: Values of each join key, in the order given to the constructor.

        Returns:
            The entity keys, and for each row the place of its own among them; None where a key
            value is None.

        Raises:
            InputError: A value has another type than its key; every such column is listed.
        """
        parts = [
            self._column(key, values) for key, values in zip(self._join_keys, columns, strict=True)
        ]
        problems = [part for part in parts if isinstance(part, Problem)]
        if problems:
            raise InputError("Entity keys have the wrong type.", problems)
        rows = zip(*(part for part in parts if not isinstance(part, Problem)), strict=True)
        unique: dict[tuple[Any, ...], int] = {}
        places = [None if None in row else unique.setdefault(row, len(unique)) for row in rows]
        return [self._proto(row) for row in unique], places

    def blank(self) -> EntityKey:
        """An entity key of the right types, which need not exist."""
        blanks = {"STRING": "", "BYTES": b""}
        return self._proto([blanks.get(key.dtype, 0) for key in self._join_keys])

    def _proto(self, row: Sequence[Any]) -> EntityKey:
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value

        return EntityKey(
            join_keys=[key.name for key in self._join_keys],
            entity_values=[
                Value(**{PROTO_FIELD[key.dtype]: value})
                for key, value in zip(self._join_keys, row, strict=True)
            ],
        )

    @staticmethod
    def _column(key: Column, values: Sequence[Any]) -> list[Any] | Problem:
        take = _KEYS[key.dtype]
        taken: list[Any] = []
        for row, value in enumerate(values):
            try:
                taken.append(None if value is None else take(value))
            except (TypeError, ValueError):
                return Problem(f"{key.name}, row {row}", key.dtype, repr(value))
        return taken


class FeatureValues:
    """Reads values of one feature, as Tallystick represents its type in Python.

    A value of another type than the declared one is null, as it is in Tallystick's own store: it
    was written under another definition.

    Args:
        view: The view's name.
        column: The feature.
    """

    def __init__(self, view: str, column: Column) -> None:
        from feast.value_type import ValueType

        self._name = f"{view}:{column.name}"
        self._dtype = column.dtype
        self._field = PROTO_FIELD.get(column.dtype)
        self._value_type = ValueType[column.dtype]
        self._told = False

    def of(self, value: Value | None) -> Any:
        """The value in Python; None for null, for a value of another type, and for none at all."""
        field = None if value is None else value.WhichOneof("val")
        if field is None or field == "null_val":
            return None
        if self._field is None:
            return self._compound(value)
        if field != self._field:
            self._tell(field)
            return None
        content = getattr(value, field)
        if self._dtype == "UNIX_TIMESTAMP":
            return None if content == _NULL_TIME else from_us(content * SECOND_US)
        return content

    def _compound(self, value: Any) -> Any:
        from feast.type_map import feast_value_type_to_python_type

        return feast_value_type_to_python_type(value, self._value_type)

    def _tell(self, field: str) -> None:
        """Say once that values are unusable; a request has no place for it."""
        if not self._told:
            self._told = True
            logger.warning(
                "Values of %s lie in the online store as %s, not as %s, and count as null; "
                "write the view again.",
                self._name,
                field.removesuffix("_val").upper(),
                self._dtype,
            )


def values_of(
    features: Mapping[str, FeatureValues], rows: Sequence[Mapping[str, Value] | None]
) -> dict[str, list[Any]]:
    """Column by column what rows hold of some features; None where a row lacks one, or is none."""
    return {
        name: [None if row is None else feature.of(row.get(name)) for row in rows]
        for name, feature in features.items()
    }
