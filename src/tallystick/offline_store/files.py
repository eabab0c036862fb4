"""The Parquet files behind a Feast ``FileSource``: which they are, and what columns they have."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.errors import DataError, DefinitionError

if TYPE_CHECKING:
    import pyarrow as pa

POSITION = ("file_position", "row_position")
"""Columns by which the rows of a source ascend: files by name, then rows within a file."""


@dataclass(frozen=True)
class SourceFiles:
    """The files of a source as they are now.

    Attributes:
        label: The source's path as its owner wrote it, for messages.
        signature: Path, time of change in ns and size in bytes of each file, ordered by path.
        schema: Columns of all files together.
    """

    label: str
    signature: tuple[tuple[str, int, int], ...]
    schema: pa.Schema

    @cached_property
    def rows(self) -> int:
        """Number of rows in all files."""
        import pyarrow.parquet as pq

        return sum(pq.read_metadata(path).num_rows for path, _, _ in self.signature)

    @property
    def relation(self) -> str:
        """The files as a DuckDB relation, in source order."""
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path, _, _ in self.signature)
        union = ", union_by_name = true" if len(self.signature) > 1 else ""
        return f"read_parquet([{paths}], hive_partitioning = false{union})"


def resolve(path: str, repo_path: Path | str | None) -> Path:
    """The place of a source: relative paths are taken from the repo's folder.

    Raises:
        DefinitionError: The path names another machine.
    """
    if "://" in path and not path.startswith("file://"):
        raise DefinitionError(
            f"The source {path} is not on this machine.",
            hint="DuckDBOfflineStore reads Parquet files, folders and globs of local paths.",
        )
    return Path(repo_path or ".", path.removeprefix("file://"))


def open_source(source: Any, repo_path: Path | str | None) -> SourceFiles:
    """Look up the files of a Feast source.

    A path is one Parquet file, a folder (its ``*.parquet`` files at any depth) or a glob. Files are
    ordered by path; those whose name starts with a dot or an underscore are left out.

    Args:
        source: A Feast ``FileSource``.
        repo_path: The repo's folder, from which relative paths are taken.

    Raises:
        DataError: There is no file, one cannot be read, or two differ in a column's type.
        DefinitionError: The source is of a kind that is not read here.
    """
    path = getattr(source, "path", None)
    file_format = type(getattr(source, "file_format", None)).__name__
    if not path or file_format not in {"NoneType", "ParquetFormat"}:
        raise DefinitionError(
            f"The source {getattr(source, 'name', source)!r} ({type(source).__name__}, "
            f"{file_format}) is no Parquet FileSource.",
            hint="DuckDBOfflineStore reads feast.FileSource with Parquet files.",
        )
    place = resolve(path, repo_path)
    if place.is_file():
        files = [place]
    elif place.is_dir():
        files = sorted(place.rglob("*.parquet"))
    else:
        # Path.glob refuses absolute patterns.
        names = glob.glob(str(place), recursive=True)  # noqa: PTH207
        files = sorted(Path(name) for name in names)
    files = [file for file in files if file.is_file() and file.name[0] not in "._"]
    if not files:
        raise DataError(
            f"The source {path} has no Parquet file: {place} does not exist or is empty.",
            hint="Write the source's data first, or correct its path.",
        )
    signature = tuple(
        (file.as_posix(), stat.st_mtime_ns, stat.st_size)
        for file in files
        for stat in (file.stat(),)
    )
    return SourceFiles(path, signature, common_schema(signature))


@lru_cache(maxsize=256)
def common_schema(signature: tuple[tuple[str, int, int], ...]) -> pa.Schema:
    """The columns of all files together, the wider type where they differ.

    Raises:
        DataError: A file is not Parquet, or two files do not fit together.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = []
    for path, _, _ in signature:
        try:
            schemas.append(pq.read_schema(path).remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(
            f"The files beside {signature[0][0]} have columns of different types: {error}"
        ) from error
