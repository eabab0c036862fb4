"""Delta tables: the files of one version, read as Parquet, and what the table's log says of them.

The log names the files that count, gives the values of partitions, and has the number
of rows and the nulls, minimum and maximum of each column. So files that cannot matter are left out
without being opened. A feature that a table requires of its readers is supported here, or refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self
from urllib.parse import unquote

from tallystick.definitions.exact_cast import family
from tallystick.errors import DataError, MissingExtraError, TallystickError, UnavailableError
from tallystick.offline_store.sources.hive_partitions import SQL_TYPES
from tallystick.offline_store.sources.source_files import FileGroup, SourceFiles
from tallystick.storage.locations import (
    CONNECT_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    Location,
    make_readable,
)

if TYPE_CHECKING:
    import pyarrow as pa

READ_FEATURES: Final = frozenset(
    {"timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "deletionVectors", "columnMapping"}
)
"""Features that a table may require. Column mapping may be declared, but not used."""

DELETED_ROWS_MAX: Final = 100_000
"""Rows that deletion vectors may take from one table. They become part of every query."""

LOG_PRECISION_US: Final = 999
"""The log cuts times to milliseconds."""

_RETRIES: Final = 3
_TEXT_MAX: Final = 400
_NO_ANSWER: Final = ("error sending request", "(Connect)", "timed out", "dns error")
_UNOPENED: Final = re.compile(r"%[0-9A-Fa-f]{2}|[\[\]|^\\]")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m|↳")


@dataclass(frozen=True)
class DeltaFiles(SourceFiles):
    """The files of one version of a Delta table.

    Attributes:
        adds: The log's entry of each file, in order: ``num_records``, and the structs
            ``null_count``, ``min`` and ``max``, which lack columns without statistics.
        deleted: For each file the indexes of its rows that do not count.
        version: The table's version.
    """

    adds: pa.Table = None
    deleted: tuple[tuple[int, ...], ...] = ()
    version: int = 0

    are_fixed: ClassVar[bool] = True

    @property
    def table_version(self) -> int:
        """See :attr:`SourceFiles.table_version`."""
        return self.version

    @property
    def states(self) -> tuple[Any, ...]:
        """See :attr:`SourceFiles.states`: rows that a file has are those that count."""
        return tuple(zip(self.signature, self.deleted, strict=True))

    @cached_property
    def rows(self) -> int:
        """Number of rows in all files, those that do not count included."""
        rows = self.adds["num_records"]
        if rows.null_count:
            return sum(each.num_rows for each in self.footers)
        return sum(rows.to_pylist())

    def types(self, name: str) -> dict[pa.DataType, str]:
        """See :meth:`SourceFiles.types`. The table has one type for all files."""
        return {self.schema.field(name).type: self.label}

    def _group(self, schema: pa.Schema, indices: list[int]) -> FileGroup:
        import pyarrow as pa

        group = super()._group(schema, indices)
        expressions, types, sql = {**group.expressions}, {**group.types}, group.sql
        for column in self.schema:
            # The files of some writers have times without a zone.
            if pa.types.is_timestamp(types[column.name]) and column.name not in self.partitions:
                kind = "TIMESTAMP" if column.type.tz is None else "TIMESTAMPTZ"
                expressions[column.name] = f"CAST({expressions[column.name]} AS {kind})"
                types[column.name] = column.type
        gone = [(at, row) for at, index in enumerate(indices) for row in self.deleted[index]]
        if gone:
            files, rows = (", ".join(map(str, each)) for each in zip(*gone, strict=True))
            sql = (
                f"(SELECT *, file_index, file_row_number FROM {sql} "
                f"WHERE NOT EXISTS (SELECT 1 FROM (SELECT unnest([{files}]) AS gone_file, "
                f"unnest([{rows}]) AS gone_row) AS gone "
                "WHERE gone_file = file_index AND gone_row = file_row_number)) AS files"
            )
        return replace(group, sql=sql, expressions=expressions, types=types)

    def only(self, chosen: list[bool]) -> Self:
        """Some of the files, in their order."""
        import pyarrow as pa

        adds = self.adds.filter(pa.array(chosen, pa.bool_()))
        deleted = tuple(compress(self.deleted, chosen))
        return replace(super().only(chosen), adds=adds, deleted=deleted)

    def known_nulls(self, column: str) -> list[int | None]:
        """Nulls of a column in each file; None where the log does not have the number."""
        found = self._statistics("null_count", column)
        return [None] * len(self.signature) if found is None else found.to_pylist()

    def known_times(self, column: str) -> list[tuple[int, int] | None]:
        """First and last time of a column in each file; None where the log does not have them."""
        import pyarrow as pa

        first, last = (self._statistics(side, column) for side in ("min", "max"))
        if first is None or last is None or family(first.type) != "time":
            return [None] * len(self.signature)
        kind = pa.timestamp("us", tz=getattr(first.type, "tz", None))
        ends = (each.cast(kind).cast(pa.int64()).to_pylist() for each in (first, last))
        return [
            None
            if low is None or high is None
            else (low - LOG_PRECISION_US, high + LOG_PRECISION_US)
            for low, high in zip(*ends, strict=True)
        ]

    def _statistics(self, what: str, column: str) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if what not in self.adds.column_names:
            return None
        structs = self.adds[what]
        names = [each.name for each in structs.type]
        return (
            pc.struct_field(structs, names.index(column))
            if names.count(column) == 1 and not pa.types.is_nested(structs.type[column].type)
            else None
        )


def open_delta(location: Location, label: str) -> DeltaFiles:
    """The files of the newest version of a Delta table, in the order in which they were written.

    Args:
        location: The table's folder.
        label: It, as its owner wrote it, for messages.

    Raises:
        DataError: The table does not exist, cannot be read, or requires an unknown feature.
        MissingExtraError: The package for Delta is not installed.
        UnavailableError: The object store did not answer.
    """
    import pyarrow as pa

    table = opened(location, label)
    if table is None:
        raise DataError(
            f"The source {label} has no Delta table: {location} does not exist, or is none.",
            hint="Write the source's data first, or correct its path or its file_format.",
        )
    make_readable(location.store)
    require_readable(table, label)
    with translated(label):
        schema = pa.schema(table.schema().to_arrow())
        adds = pa.table(table.get_add_actions(flatten=False))
        adds = adds.sort_by([("modification_time", "ascending"), ("path", "ascending")])
        by = table.metadata().partition_columns
    paths = [_path(location, each, label) for each in adds["path"].to_pylist()]
    partitions = {name: _values(adds, name, label) for name in by}
    for name, values in partitions.items():
        kind = pa.field(name, values.type)
        schema = schema.set(schema.get_field_index(name), kind)
    changed = adds["modification_time"].to_pylist()
    sizes = adds["size_bytes"].to_pylist()
    return DeltaFiles(
        label,
        tuple(
            (path, at * 1_000_000, size)
            for path, at, size in zip(paths, changed, sizes, strict=True)
        ),
        schema.remove_metadata(),
        location.store,
        partitions,
        adds,
        _deleted(table, adds["path"].to_pylist(), label),
        table.version(),
    )


def opened(location: Location, label: str) -> Any:
    """Open the newest version of a table, a ``deltalake.DeltaTable``. None if it does not exist.

    Raises:
        DataError: It cannot be read.
        MissingExtraError: The package for Delta is not installed.
        UnavailableError: The object store did not answer.
    """
    try:
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError
    except ImportError as error:
        raise MissingExtraError(f"The Delta table {label}", "delta") from error
    if _UNOPENED.search(location.path):
        raise DataError(
            f"The Delta table {label} has a character in its path that deltalake rejects.",
            hint=r"Rename its folder:  %  before two digits, and  [ ] | ^ \  are such characters.",
        )
    with translated(label):
        try:
            return DeltaTable(str(location), storage_options=storage_options(location))
        except TableNotFoundError:
            return None


def require_readable(table: Any, label: str) -> None:
    """Refuse a table, by :func:`opened`, whose files cannot be read as plain Parquet.

    Raises:
        DataError: Its columns have other names in the files, or it requires an unknown feature.
    """
    with translated(label):
        unknown = sorted(set(table.protocol().reader_features or ()) - READ_FEATURES)
        mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    if mapping != "none":
        unknown.append("columnMapping")
    if unknown:
        raise DataError(
            f"The Delta table {label} cannot be read without {', '.join(unknown)}, "
            "which is not supported.",
            hint="Write it anew without, or read it on Spark as a SparkSource.",
        )


def storage_options(location: Location) -> dict[str, str] | None:
    """Options by which deltalake reaches the table's log. It finds credentials by itself."""
    store = location.store
    if store.is_local:
        return None
    options = {
        "connect_timeout": f"{CONNECT_TIMEOUT_S:g}s",
        "timeout": f"{REQUEST_TIMEOUT_S:g}s",
        "max_retries": str(_RETRIES),
        "retry_timeout": f"{REQUEST_TIMEOUT_S:g}s",
    }
    if store.scheme == "s3":
        options["AWS_REGION"] = store.filesystem.region
    if store.endpoint:
        has_scheme = "://" in store.endpoint
        options["AWS_ENDPOINT_URL"] = store.endpoint if has_scheme else f"https://{store.endpoint}"
        options["AWS_ALLOW_HTTP"] = str(store.endpoint.startswith("http://")).lower()
    return options


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turn the errors of the package for Delta into ours.

    Raises:
        UnavailableError: The object store did not answer.
        DataError: Anything else.
    """
    try:
        yield
    except TallystickError:
        raise
    except Exception as error:  # The package raises bare ones too.
        text = " ".join(_COLOURS.sub(" ", str(error)).split("\n   0:")[0].split())[:_TEXT_MAX]
        if any(sign in text for sign in _NO_ANSWER):
            raise UnavailableError(f"The store of {label}", text) from error
        raise DataError(
            f"The Delta table {label} cannot be used: {text}",
            hint="Correct the path, the credentials, or the table.",
        ) from error


def _path(location: Location, path: str, label: str) -> str:
    """A file's path in its store, from the log's."""
    if "://" in path or path.startswith(("/", "file:")):
        raise DataError(
            f"The Delta table {label} has files outside of its folder, which are not read.",
            hint="Copy the table whole rather than as a shallow clone.",
        )
    return f"{location.path}/{unquote(path)}"


def _values(adds: pa.Table, name: str, label: str) -> Any:
    """A partition's value for each file, in the types in which folders' names are read."""
    import pyarrow as pa
    import pyarrow.compute as pc

    structs = adds["partition"].combine_chunks()
    values = pc.struct_field(structs, structs.type.get_field_index(name))
    sort = family(values.type)
    held = {
        "integer": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "text": pa.string(),
        "time": pa.timestamp("us"),
    }
    if sort not in SQL_TYPES:
        raise DataError(
            f"The Delta table {label} is partitioned by {name} of type {values.type}, which is not "
            "supported.",
            hint="Partition it by whole numbers, text or times.",
        )
    return values.cast(held[sort])


def _deleted(table: Any, paths: Sequence[str], label: str) -> tuple[tuple[int, ...], ...]:
    """For each file the indexes of the rows that its deletion vector removes.

    Raises:
        DataError: There are more of them than can be held.
    """
    import pyarrow as pa

    none: tuple[tuple[int, ...], ...] = ((),) * len(paths)
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return none
    with translated(label):
        vectors = pa.table(table.deletion_vectors())
    depths = {path.count("/") + 1 for path in paths}
    rows: dict[str, tuple[int, ...]] = {}
    left = DELETED_ROWS_MAX
    for uri, selected in zip(vectors["filepath"], vectors["selection_vector"], strict=True):
        gone = [at for at, is_live in enumerate(selected.as_py()) if not is_live]
        left -= len(gone)
        # The file's path in the table is the end of this one, of unknown length.
        parts = uri.as_py().split("/")
        rows |= {"/".join(parts[-depth:]): tuple(gone) for depth in depths}
        if left < 0:
            raise DataError(
                f"The Delta table {label} has more than {DELETED_ROWS_MAX:,} rows that are deleted "
                "and still in its files.",
                hint="Rewrite these files:  REORG TABLE ... APPLY (PURGE)  in Spark.",
            )
    found = tuple(rows.get(path, ()) for path in paths)
    if sum(bool(each) for each in found) < vectors.num_rows:
        raise DataError(
            f"The Delta table {label} has deletion vectors that belong to none of its files.",
            hint="Rewrite its files:  REORG TABLE ... APPLY (PURGE)  in Spark.",
        )
    return found
