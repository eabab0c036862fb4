"""A feature view as Tallystick uses it, without Feast.

A :class:`ViewSpec` is made from a Feast view when definitions are read. The contract contains it,
the online store lays out rows by it, and the offline store reads history by it. Rows, log records
and contracts carry its hash, which says under which definition they were made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from tallystick.clock import duration_us

if TYPE_CHECKING:
    from feast import FeatureView


NO_ENTITY_KEY = "__dummy_id"
"""Feast's stand-in for the key of a view without entities; its value is an empty text."""


class Frozen(BaseModel):
    """Base class of records: immutable, and strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some other fields; it computes its cached properties itself."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def canonical_json(self) -> str:
        """The one JSON text of this value: sorted keys, no spaces."""
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False
        )


def digest(text: str, *, length: int = 16) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


class Column(Frozen):
    """A named column of a Feast value type, for example ``INT64``."""

    name: str
    dtype: str


def columns_of(fields: Iterable[Any]) -> tuple[Column, ...]:
    """Feast's fields as columns."""
    return tuple(
        Column(name=field.name, dtype=field.dtype.to_value_type().name) for field in fields
    )


class ViewSpec(Frozen):
    """A feature view: its keys, its columns, and how its history is read.

    Attributes:
        name: The view's name in Feast.
        join_keys: Key columns, in the order of the view's entities.
        columns: Feature columns, in the order of the view's schema.
        ttl_us: Microseconds after which a value is too old, or None for never.
        event_column: Column of the event time in the history.
        created_column: Column of the created time (when the row became known), if there is one.
        field_mapping: Name in the source → name in the view, where they differ.
    """

    name: str
    join_keys: tuple[Column, ...]
    columns: tuple[Column, ...]
    ttl_us: int | None
    event_column: str
    created_column: str | None
    field_mapping: dict[str, str] = Field(default_factory=dict)

    @cached_property
    def definition_hash(self) -> str:
        """Sixteen hexadecimal digits that change whenever the definition does.

        Where the source lies is left out: the same view read from another folder is the same view.
        """
        return digest(self.canonical_json())

    @property
    def key_names(self) -> tuple[str, ...]:
        """Names of the key columns."""
        return tuple(key.name for key in self.join_keys)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the feature columns."""
        return tuple(column.name for column in self.columns)

    @classmethod
    def from_feast(cls, view: FeatureView) -> ViewSpec:
        """Read a Feast view as it was applied (its key types are inferred by ``apply``)."""
        source: Any = view.batch_source
        mapping = dict(source.field_mapping or {})
        return cls(
            name=view.name,
            join_keys=columns_of(view.entity_columns),
            columns=columns_of(view.features),
            ttl_us=duration_us(view.ttl) or None if view.ttl else None,
            event_column=mapping.get(source.timestamp_field, source.timestamp_field),
            created_column=mapping.get(
                source.created_timestamp_column, source.created_timestamp_column
            )
            or None,
            field_mapping=mapping,
        )
