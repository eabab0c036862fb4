"""The files of a source, as one retrieval reads them: paths, schema, footers, SQL relation."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from tallystick.errors import DataError
from tallystick.offline_store.duckdb_connection import connect
from tallystick.offline_store.sources.hive_partitions import Partitions, list_sql
from tallystick.point_in_time.rule import POSITION, quoted
from tallystick.storage.locations import LOCAL, Store

if TYPE_CHECKING:
    import pyarrow as pa

_FILE_BITS: Final = 40
"""A row's position is its file's index above these bits, and its index in the file in them."""

FILE_INDEX_SQL: Final = f"({POSITION} >> {_FILE_BITS})"
"""The expression for the index of a row's file in its source, from the row's position."""


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

    @property
    def relation(self) -> str:
        """The files as a DuckDB relation, in source order, with every column of the source.

        A column that none of the files has, but others of the source, is null.
        """
        own = self.own_columns
        known = own | self.partitions.keys()
        columns = [
            self.own_columns_sql,
            "file_index",
            "file_row_number",
            *(list_sql(name, values) for name, values in self.partitions.items()),
            *null_sql([each for each in self.schema if each.name not in known]),
        ]
        return f"(SELECT {', '.join(columns)} FROM {self.read_sql}{self.live_rows_sql}) AS files"

    @property
    def own_columns(self) -> set[str]:
        """Columns that some file has."""
        return {name for each in self.footers for name in each.schema.to_arrow_schema().names}

    @property
    def own_columns_sql(self) -> str:
        """What is selected of the files themselves."""
        return "*"

    @property
    def live_rows_sql(self) -> str:
        """The condition that leaves out rows that do not count. Here all count."""
        return ""

    @property
    def position_sql(self) -> str:
        """The expression for the position of a row of :attr:`relation`.

        Positions ascend by file, then by row within a file. That of a row in the only file is read
        as it is, which costs the join less than a sum.
        """
        if len(self.signature) == 1:
            return "file_row_number"
        return f"CAST(file_index AS BIGINT) * {1 << _FILE_BITS} + file_row_number"

    @property
    def read_sql(self) -> str:
        """DuckDB's call that reads the files, with the columns that they have."""
        paths = ", ".join(
            "'" + self.store.address(path).replace("'", "''") + "'" for path, _, _ in self.signature
        )
        union = ", union_by_name = true" if len(self.signature) > 1 else ""
        return f"read_parquet([{paths}], hive_partitioning = false{union})"

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


def null_sql(columns: Sequence[pa.Field]) -> list[str]:
    """Columns of nulls, in their types."""
    import pyarrow as pa

    if not columns:
        return []
    with closing(connect()) as connection:
        kinds = connection.from_arrow(pa.schema(columns).empty_table()).types
    return [
        f"CAST(NULL AS {kind}) AS {quoted(each.name)}"
        for each, kind in zip(columns, kinds, strict=True)
    ]
