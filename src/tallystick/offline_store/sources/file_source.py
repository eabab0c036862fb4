"""Opening a Feast ``FileSource``: the files that it has now, and the columns that they share."""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.exact_cast import family
from tallystick.errors import DataError, DefinitionError
from tallystick.offline_store.sources.delta_table import open_delta
from tallystick.offline_store.sources.hive_partitions import folder_values
from tallystick.offline_store.sources.source_files import SourceFiles, file_schemas
from tallystick.storage.locations import (
    Location,
    Store,
    location_of,
    make_readable,
    store_errors,
)

if TYPE_CHECKING:
    import pyarrow as pa

_SHARED_TYPES: Final = {"text": "string", "bytes": "binary"}
"""Family of values → the type of a column that has several types of it."""

DELTA: Final = "DeltaFormat"
"""Feast's format of a source that is a Delta table."""


Snapshots = dict[Location, SourceFiles]
"""The version of each table that one answer is made of, however many views read it."""


def open_source(
    source: Any,
    repo_path: Path | str | None,
    *,
    declared: Mapping[str, str] | None = None,
    snapshots: Snapshots | None = None,
) -> SourceFiles:
    """Look up the files of a Feast source.

    A path is one Parquet file, a folder (its ``*.parquet`` files at any depth) or a glob, on this
    machine or in an object store. Files are ordered by path. Files and folders whose names start
    with a dot or an underscore are left out. Where every file is in a folder called ``name=value``,
    ``name`` is a column, unless the files have one of that name.

    A folder that is a Delta table is read as one, whether or not its source says so. Files that its
    log does not name do not count.

    Args:
        source: A Feast ``FileSource``.
        repo_path: The repo's folder, from which relative paths are taken.
        declared: Column → Feast type, for columns that folders' names give. The others are
            integers, dates or text, by what fits all folders.
        snapshots: The versions of Delta tables that the answer is made of, or None for the newest.

    Raises:
        DataError: There is no file, one cannot be read, two differ in a column's type, or a
            folder's name has no value of the declared type.
        DefinitionError: The source is of a kind that is not read here.
        MissingExtraError: It is a Delta table, and the package for these is not installed.
        UnavailableError: The object store did not answer.
    """
    import pyarrow as pa

    path = getattr(source, "path", None)
    file_format = type(getattr(source, "file_format", None)).__name__
    if not path or file_format not in {"NoneType", "ParquetFormat", DELTA}:
        raise DefinitionError(
            f"The source {getattr(source, 'name', source)!r} ({type(source).__name__}, "
            f"{file_format}) is not a FileSource that is read here.",
            hint="DuckDBOfflineStore reads feast.FileSource with Parquet files or a Delta table.",
        )
    location = source_location(source, repo_path)
    if is_delta(source, location):
        shared = {} if snapshots is None else snapshots
        if location not in shared:
            shared[location] = open_delta(location, path)
        return shared[location]
    make_readable(location.store)
    signature = listed(location)
    if not signature:
        raise DataError(
            f"The source {path} has no Parquet file: {location} does not exist or is empty.",
            hint="Write the source's data first, or correct its path.",
        )
    schema = common_schema(location.store, signature)
    partitions = folder_values(
        location.path, [each for each, _, _ in signature], set(schema.names), declared or {}
    )
    for name, values in partitions.items():
        schema = schema.append(pa.field(name, values.type))
    return SourceFiles(path, signature, schema, location.store, partitions)


def source_location(source: Any, repo_path: Path | str | None) -> Location:
    """Where a Feast ``FileSource`` has its files.

    Raises:
        DefinitionError: Its path names a store that is not read here.
    """
    endpoint = getattr(source, "s3_endpoint_override", None)
    return location_of(source.path, repo_path, endpoint=endpoint)


def is_delta(source: Any, location: Location) -> bool:
    """Whether a source is a Delta table, by its format or by what is at its location.

    Args:
        source: Has perhaps a ``file_format``, as Feast's sources and storages do.
        location: Its location.

    Raises:
        DataError, UnavailableError: The object store refused, or did not answer.
    """
    if type(getattr(source, "file_format", None)).__name__ == DELTA:
        return True
    return not any(sign in location.path for sign in "*?[") and location.is_delta_table()


def listed(location: Location) -> tuple[tuple[str, int, int], ...]:
    """Path, time of change and size of the files at a location, ordered by path."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSelector, FileType

    filesystem, path = location.store.filesystem, location.path
    with store_errors(str(location)):
        (here,) = filesystem.get_file_info([path])
        if here.type == FileType.File:
            infos = [here]
        elif any(sign in path for sign in "*?[") and here.type != FileType.Directory:
            if location.store.is_local:
                names = glob.glob(path, recursive=True)  # noqa: PTH207 - Path refuses absolute ones
            else:
                names = ArrowFSWrapper(filesystem).glob(path)
            infos = filesystem.get_file_info(names)
        else:
            folder = FileSelector(path, recursive=True, allow_not_found=True)
            found = filesystem.get_file_info(folder)
            infos = [info for info in found if info.path.endswith(".parquet")]
    found = [
        (info.path, info.mtime_ns or 0, info.size)
        for info in infos
        if info.type == FileType.File and not _is_hidden(info.path, path)
    ]
    return tuple(sorted(found, key=lambda each: each[0].split("/")))


def _is_hidden(path: str, root: str) -> bool:
    """Whether a file, or a folder that it is in below ``root``, is hidden from readers.

    Names that start with a dot or an underscore are, as in Hive and Spark: files that a writer has
    not committed yet are in such folders. A folder that gives a column is not.
    """
    above = re.split(r"[*?\[]", root, maxsplit=1)[0]
    if above != root:
        above = above.rpartition("/")[0]
    *folders, name = path.removeprefix(above).split("/")
    return name[:1] in {".", "_"} or any(
        folder[:1] in {".", "_"} and "=" not in folder for folder in folders
    )


@lru_cache(maxsize=256)
def common_schema(store: Store, signature: tuple[tuple[str, int, int], ...]) -> pa.Schema:
    """The columns of all files together, the wider type where they differ.

    Times whose zone differs are in UTC. A column whose types have no common one has the type of the
    first file that has it.

    Raises:
        DataError: A file is not Parquet, or has two columns of one name.
    """
    import pyarrow as pa

    fields: dict[str, dict[pa.DataType, None]] = {}
    for (path, _, _), schema in zip(signature, file_schemas(store, signature), strict=True):
        for column in schema:
            fields.setdefault(column.name, {})[column.type] = None
        if len(set(schema.names)) < len(schema.names):
            twice = next(name for name in schema.names if schema.names.count(name) > 1)
            raise DataError(
                f"{store.text(path)} has two columns that are called {twice}.",
                hint="Give each column of the file a name of its own.",
            )
    return pa.schema([(name, common_type([*types])) for name, types in fields.items()])


def common_type(types: Sequence[pa.DataType]) -> pa.DataType:
    """The type that holds the values of several types; the first where there is none."""
    import pyarrow as pa

    found = [kind for kind in types if not pa.types.is_null(kind)] or [*types]
    if len(found) == 1:
        return found[0]
    families = {*map(family, found)}
    if families <= _SHARED_TYPES.keys() and len(families) == 1:
        return pa.type_for_alias(_SHARED_TYPES[families.pop()])
    if families == {"time"}:
        zones = {getattr(kind, "tz", None) for kind in found}
        units = {kind.unit for kind in found if pa.types.is_timestamp(kind)}
        return pa.timestamp("ns" if "ns" in units else "us", tz=None if None in zones else "UTC")
    fields = [pa.schema([("column", kind)]) for kind in found]
    try:
        return pa.unify_schemas(fields, promote_options="permissive").field(0).type
    except pa.ArrowException:
        return found[0]
