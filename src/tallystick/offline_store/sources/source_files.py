"""The files of a source, as one retrieval reads them: paths, schema, footers, SQL relation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from tallystick.definitions.exact_cast import family
from tallystick.errors import DataError, Problem
from tallystick.offline_store.sources.hive_partitions import Partitions, list_sql
from tallystick.point_in_time.rule import POSITION, text_sql
from tallystick.storage.locations import LOCAL, Store

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_BITS: Final = 40
"""A row's position is its file's index above these bits, and its index in the file in them."""

FILE_INDEX_SQL: Final = f"({POSITION} >> {_FILE_BITS})"
"""The expression for the index of a row's file in its source, from the row's position."""


def position_sql(file: str) -> str:
    """The expression for the position of a row, from the one for its file's index."""
    return f"({file}) * {1 << _FILE_BITS} + file_row_number"


@dataclass(frozen=True)
class FileGroup:
    """Files of a source that have the same columns and types, as a relation of an engine.

    Attributes:
        sql: The relation. Names of the source's columns do not occur in it, since an engine has
            names of its own and may not tell upper from lower case.
        expressions: Column of the source → the engine's expression for it.
        types: Column of the source → its type in these files, null where they do not have it.
        position: The expression for a row's position, which ascends by file, then by row.
        example: One of the files, for messages.
    """

    sql: str
    expressions: Mapping[str, str]
    types: Mapping[str, pa.DataType]
    position: str
    example: str

    def column(self, name: str) -> tuple[str, pa.DataType]:
        """The expression for a column of the source, and its type in these files."""
        return self.expressions[name], self.types[name]

    def select(self, columns: Mapping[str, str], condition: str = "true") -> str:
        """The query for some expressions under new names, and for the rows' position."""
        selected = {**columns, POSITION: self.position}
        texts = ", ".join(f"{expression} AS {name}" for name, expression in selected.items())
        return f"SELECT {texts} FROM {self.sql} WHERE {condition}"


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source as they are now.

    Attributes:
        label: The source's path as its owner wrote it, for messages.
        signature: Path, time of change in ns and size in bytes of each file, ordered by path.
        schema: Columns of all files together, and those that folders' names give.
        store: The file system or bucket that has them.
        partitions: Column that the folders' names give → its value for each file.
    """

    label: str
    signature: tuple[tuple[str, int, int], ...]
    schema: pa.Schema
    store: Store = LOCAL
    partitions: Partitions = field(default_factory=dict)

    are_fixed: ClassVar[bool] = False
    """Whether a file, once written, never changes under its name."""

    @property
    def table_version(self) -> int | None:
        """Version of the table that the files make up, or None for files without a table's log."""
        return None

    @property
    def states(self) -> tuple[Any, ...]:
        """For each file a value that differs once it has other rows."""
        return self.signature

    @property
    def footers(self) -> list[Any]:
        """The footer of each file, a ``pyarrow.parquet.FileMetaData``."""
        if self.store.is_local:
            return [footer(self.store, each) for each in self.signature]
        return footers_of(self.store, self.signature)

    @cached_property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(each.num_rows for each in self.footers)

    @cached_property
    def groups(self) -> list[FileGroup]:
        """The files as relations of DuckDB, which are the source together."""
        import pyarrow as pa

        if not self.signature:  # of an empty table
            lacking = dict.fromkeys(self.schema.names, "NULL")
            types = dict.fromkeys(lacking, pa.null())
            return [FileGroup("(SELECT 0 LIMIT 0) AS files", lacking, types, "0", self.label)]
        alike: dict[pa.Schema, list[int]] = {}
        for index, schema in enumerate(file_schemas(self.store, self.signature)):
            alike.setdefault(schema, []).append(index)
        return [self._group(schema, indices) for schema, indices in alike.items()]

    def _group(self, schema: pa.Schema, indices: list[int]) -> FileGroup:
        import pyarrow as pa

        expressions = {column.name: f"c{index}" for index, column in enumerate(schema)}
        types = {column.name: column.type for column in schema}
        for name, values in self.partitions.items():
            expressions[name] = list_sql(values.take(pa.array(indices)))
            types[name] = values.type
        for column in self.schema:
            expressions.setdefault(column.name, "NULL")
            types.setdefault(column.name, pa.null())
        paths = ", ".join(text_sql(self.store.address(self.signature[at][0])) for at in indices)
        inner = ", ".join(f"c{index}" for index in range(len(schema)))
        return FileGroup(
            sql=f"read_parquet([{paths}], hive_partitioning = false) AS files({inner})",
            expressions=expressions,
            types=types,
            position=self._position_sql(indices),
            example=self.store.text(self.signature[indices[0]][0]),
        )

    def _position_sql(self, indices: Sequence[int]) -> str:
        """The expression for the position of a row.

        That of a row in the only file is read as it is, which costs the join less than a sum.
        """
        import pyarrow as pa

        if len(self.signature) == 1:
            return "file_row_number"
        first, last = indices[0], indices[-1]
        file = f"CAST(file_index AS BIGINT) + {first}"
        if last - first >= len(indices):  # other files are in between
            file = list_sql(pa.array(indices))
        return position_sql(file)

    def types(self, name: str) -> dict[pa.DataType, str]:
        """The types that a column has in the files, null aside, and one of these files for each."""
        import pyarrow as pa

        found: dict[pa.DataType, str] = {}
        for group in self.groups:
            if group.types[name] != pa.null():
                found.setdefault(group.types[name], group.example)
        return found

    def unshared(self, names: Iterable[str]) -> list[Problem]:
        """A problem for each of some columns whose types in the files have no common one."""
        return [
            Problem(f"column {name}", "one type in all files", types_text(types))
            for name in names
            for types in [self.types(name)]
            if not _share_one(types)
        ]

    def only(self, chosen: list[bool]) -> Self:
        """Some of the files, in their order. The schema stays that of all."""
        import pyarrow as pa

        mask = pa.array(chosen, pa.bool_())
        return replace(
            self,
            signature=tuple(compress(self.signature, chosen)),
            partitions={name: values.filter(mask) for name, values in self.partitions.items()},
        )

    def known_nulls(self, column: str) -> list[int | None]:  # noqa: ARG002 - unknown here
        """Nulls of a column in each file, known without opening it, or None if unknown."""
        return [None] * len(self.signature)

    def known_times(self, column: str) -> list[tuple[int, int] | None]:  # noqa: ARG002 - likewise
        """Times between which a column is in each file, as :meth:`known_nulls`.

        Both are included, in microseconds since 1970 in UTC.
        """
        return [None] * len(self.signature)


@lru_cache(maxsize=4096)
def footer(store: Store, file: tuple[str, int, int]) -> Any:
    """The footer of a Parquet file, a ``pyarrow.parquet.FileMetaData``.

    Raises:
        DataError: It is not Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, _, size = file
    if not size:
        raise DataError(
            f"{store.text(path)} is not a Parquet file that can be read: it is empty.",
            hint="Remove it, or write it again.",
        )
    try:
        return pq.read_metadata(path, filesystem=store.filesystem)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{store.text(path)} is not a Parquet file that can be read: {error}",
            hint="Remove it, or write it again.",
        ) from error


def footers_of(store: Store, signature: Sequence[tuple[str, int, int]]) -> list[Any]:
    """As :func:`footer`, of several files at once."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        return list(threads.map(lambda file: footer(store, file), signature))


@lru_cache(maxsize=256)
def file_schemas(store: Store, signature: tuple[tuple[str, int, int], ...]) -> list[pa.Schema]:
    """The columns of each file."""
    footers = footers_of(store, signature)
    return [each.schema.to_arrow_schema().remove_metadata() for each in footers]


def types_text(types: Mapping[pa.DataType, str]) -> str:
    """Types of a column and the files that have them, for messages."""
    return ", ".join(f"{kind} in {file}" for kind, file in types.items())


def _share_one(types: Iterable[pa.DataType]) -> bool:
    """Whether one type can hold the values of several."""
    families = {family(kind) for kind in types}
    is_one = len(families) <= 1 or families <= {"integer", "float", "decimal"}
    return is_one and not has_naive_beside_zoned(types)


def has_naive_beside_zoned(types: Iterable[pa.DataType]) -> bool:
    """Whether some times have a zone and others have none.

    It is unknown then whether those without are in UTC or of the zone of their writer.
    """
    import pyarrow as pa

    return len({kind.tz is None for kind in types if pa.types.is_timestamp(kind)}) > 1
