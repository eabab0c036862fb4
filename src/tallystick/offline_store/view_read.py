"""A view as one retrieval reads it, and the relation that its history becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec
from tallystick.errors import InputError, Problem, did_you_mean
from tallystick.offline_store.sources.source_files import SourceFiles

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ViewRead:
    """A view as one retrieval reads it.

    Attributes:
        spec: The view.
        source: Its Feast ``FileSource``.
        name: Prefix of its columns in the answer.
        key_map: Key column of the view → column of the entity rows. Other keys map to themselves.
        columns: Features to read.
    """

    spec: ViewSpec
    source: Any
    name: str
    key_map: Mapping[str, str]
    columns: tuple[str, ...]

    @property
    def keys(self) -> tuple[Column, ...]:
        """The key columns that exist in data."""
        return tuple(key for key in self.spec.join_keys if key.name != NO_ENTITY_KEY)

    @property
    def features(self) -> tuple[Column, ...]:
        """The features to read, with types.

        Raises:
            InputError: The view has no such feature.
        """
        known = {column.name: column for column in self.spec.columns}
        unknown = [name for name in self.columns if name not in known]
        if unknown:
            raise InputError(
                f"View {self.spec.name} does not have every feature that is requested.",
                [Problem(name, did_you_mean(name, known), "no such feature") for name in unknown],
            )
        return tuple(known[name] for name in self.columns)

    def source_column(self, name: str) -> str:
        """The source's column for a column of the view."""
        mapping = self.spec.field_mapping
        return next((old for old, new in mapping.items() if new == name), name)

    def entity_column(self, key: str) -> str:
        """The entity rows' column for a key column of the view."""
        return self.key_map.get(key, key)


@dataclass(frozen=True)
class History:
    """A normalised history, ready for :mod:`tallystick.point_in_time.rule`.

    Its rows have a value in every key. Columns: ``key_0…``, ``value_0…``, ``event_us``,
    ``created_us``, ``visible_us`` and ``row_position``.

    Attributes:
        sql: The relation, in parentheses.
        keys: Names of its key columns. A view without entities has one, a constant.
        values: Names of its value columns, one per feature.
        columns: The source's columns behind ``values``.
        files: The files that are read.
        whole: The source with all its files.
        whole_sql: Returns the relation with all rows of the source.
        what: Its name in messages.
    """

    sql: str
    keys: tuple[str, ...]
    values: tuple[str, ...]
    columns: tuple[str, ...]
    files: SourceFiles
    whole: SourceFiles
    whole_sql: Callable[[], str]
    what: str

    def joined_by(self, entity_keys: pa.Table) -> pa.Table:
        """Keys and request times of entity rows, with every column that the join compares."""
        return entity_keys

    def with_created_time(self, matched: str) -> str:
        """The answer to ``as_of_sql``, with ``created_us`` as the time that is returned."""
        return matched
