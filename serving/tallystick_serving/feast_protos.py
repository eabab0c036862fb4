"""Feast's protobuf values: entity keys into them, features out of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tallystick.definitions.feature_types import feature_type
from tallystick.definitions.feature_view import Column
from tallystick.definitions.join_keys import key_columns, require_key_types
from tallystick.online_store.value_codec import is_null, value_codec

if TYPE_CHECKING:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

logger = logging.getLogger(__name__)


class EntityProtos:
    """Makes Feast's entity keys from columns of key values.

    Args:
        join_keys: The key columns, in the order in which :meth:`of` is given their values.

    Raises:
        DefinitionError: A key has a type that cannot be a key.
    """

    def __init__(self, join_keys: Sequence[Column]) -> None:
        require_key_types(join_keys)
        self._join_keys = tuple(join_keys)

    def of(self, columns: Sequence[Sequence[Any]]) -> tuple[list[EntityKey], list[int | None]]:
        """The entity keys of some rows, each once.

        Args:
            columns: Values of each join key, in the order given to the constructor.

        Returns:
            The entity keys, and for each row the index of its own among them; None where a key
            value is None.

        Raises:
            InputError: A value has another type than its key; every such column is listed.
        """
        unique: dict[tuple[Any, ...], int] = {}
        indices = [
            None if None in row else unique.setdefault(row, len(unique))
            for row in zip(*key_columns(self._join_keys, columns), strict=True)
        ]
        return [self._proto(row) for row in unique], indices

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
                Value(**{feature_type(key.dtype).proto_field: value})
                for key, value in zip(self._join_keys, row, strict=True)
            ],
        )


class FeatureValues:
    """Reads values of one feature, as Tallystick represents its type in Python.

    A value of another type than the declared one is null, as it is in Tallystick's own store: it
    was written under another definition.

    Args:
        view: The view's name.
        column: The feature.
    """

    def __init__(self, view: str, column: Column) -> None:
        self._name = f"{view}:{column.name}"
        self._dtype = column.dtype
        self._field = feature_type(column.dtype).proto_field
        self._codec = value_codec(column.dtype)
        self._has_warned = False

    def of(self, value: Value | None) -> Any:
        """The value in Python; None for null, for a value of another type, and for none at all."""
        if value is None or is_null(value):
            return None
        field = str(value.WhichOneof("val"))
        if field == self._field:
            return self._codec.read_proto(value)
        self._warn(field)
        return None

    def _warn(self, field: str) -> None:
        """Say once that values are unusable; a response has no field for it."""
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "Values of %s are stored online as %s, not as %s, and count as null; "
                "write the view again.",
                self._name,
                field.removesuffix("_val").upper(),
                self._dtype,
            )
