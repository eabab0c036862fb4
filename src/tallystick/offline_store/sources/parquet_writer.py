"""Writers of Parquet files: readers see a whole write or none of it, and no write gets lost."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import SystemClock
from tallystick.definitions.exact_cast import converted
from tallystick.errors import DataError, Problem
from tallystick.offline_store.sources.file_source import (
    is_delta,
    listed,
    open_source,
    source_location,
)
from tallystick.storage.atomic_files import replacing
from tallystick.storage.locations import Location
from tallystick.storage.locks import writer_lock

if TYPE_CHECKING:
    import pyarrow as pa

DATASET_FILE: Final = "dataset.parquet"
"""Name of the file of a dataset that is a folder."""


def write_file(table: pa.Table, path: Path) -> None:
    """Write a Parquet file beside ``path`` and rename it into place.

    File and name are on the disk once this returns.
    """
    import pyarrow.parquet as pq

    with replacing(path) as draft:
        pq.write_table(table, draft)


def put_file(table: pa.Table, location: Location) -> None:
    """Write a Parquet file to a location. Readers see none of it, or all.

    Raises:
        UnavailableError: The object store did not answer.
        DataError: It refused.
    """
    import pyarrow.parquet as pq

    location.write(lambda to: pq.write_table(table, to))


def add_file(table: pa.Table, folder: Location) -> Location:
    """Add a file to a folder, under a name that sorts behind those of earlier ones.

    Raises:
        UnavailableError: The object store did not answer.
        DataError: It refused.
    """
    name = f"written-{SystemClock().now_us():018d}-{uuid.uuid4().hex}.parquet"
    location = folder / name
    put_file(table, location)
    return location


def put_dataset(table: pa.Table, location: Location) -> None:
    """Write a whole dataset in place of the one that was there.

    As with Feast's stores a path is a file if it ends in ``.parquet``, and else a folder, which
    gets one file.

    Raises:
        DataError: The folder has Parquet files of others, or the object store refused.
        UnavailableError: The object store did not answer.
    """
    found = listed(location)
    is_file = location.path.endswith(".parquet") or location.path in {path for path, _, _ in found}
    if is_file and not (location.store.is_local and location.is_folder()):
        put_file(table, location)
        return
    file = location / DATASET_FILE
    if any(path != file.path for path, _, _ in found):
        raise DataError(
            f"A dataset cannot be saved to {location}: the folder has other Parquet files, which "
            "would be read as part of it.",
            hint="Name a folder of its own, or remove them.",
        )
    put_file(table, file)


def append(source: Any, table: pa.Table, *, repo_path: Path | str | None) -> None:
    """Append rows to a Feast ``FileSource``.

    A folder gets one more file, a Delta table one more commit. A single file is written again
    with the rows at its end, under a lock that all writers of this kind respect. Readers see the
    old file or the new one. An object store has no locks, so the path has to be a folder there.

    Args:
        source: Its path is a file or a folder. A file that does not exist yet is made.
        table: The rows, with all columns of the source, under its names or those of the view.
        repo_path: Folder from which a relative path is taken.

    Raises:
        DataError: The columns do not fit, or the path is a glob, a folder of partitions, or a file
            in an object store.
        MissingExtraError: It is a Delta table, and the package for these is not installed.
        UnavailableError: The object store did not answer.
    """
    import pyarrow as pa

    location = source_location(source, repo_path)
    mapping: Mapping[str, str] = source.field_mapping or {}
    if is_delta(source, location):
        from tallystick.offline_store.sources.delta_writer import commit_rows

        commit_rows(
            location,
            source.path,
            table,
            fitted=lambda rows, schema: fitted_to(schema, rows, mapping, source.path),
        )
        return
    if any(sign in source.path for sign in "*?["):
        raise DataError(
            f"Rows cannot be written to {source.path}: a glob does not say into which file.",
            hint="Make the source's path a folder.",
        )
    if location.is_folder():
        is_new = not listed(location)
        add_file(table if is_new else fitted(table, source, mapping, repo_path), location)
        return
    if not location.store.is_local:
        raise DataError(
            f"Rows cannot be added to the file {source.path}: an object store has no locks, so "
            "that of two writers one would be lost.",
            hint="Make the source's path a folder.",
        )
    path = location.local
    with writer_lock(path):
        if path.exists():
            import pyarrow.parquet as pq

            rows = fitted(table, source, mapping, repo_path)
            table = pa.concat_tables([pq.read_table(path, partitioning=None), rows])
        write_file(table, path)


def fitted(
    table: pa.Table, source: Any, mapping: Mapping[str, str], repo_path: Path | str | None
) -> pa.Table:
    """Rows in the source's columns, order and types.

    Raises:
        DataError: With every column that is missing or not of the source.
    """
    files = open_source(source, repo_path)
    if files.partitions:
        raise DataError(
            f"Rows cannot be added to {source.path}: its folders give "
            f"{', '.join(files.partitions)}, and rows for several could not be added in one step.",
            hint="Write them to the folder of their partition.",
        )
    return fitted_to(files.schema, table, mapping, source.path)


def fitted_to(
    schema: pa.Schema, table: pa.Table, mapping: Mapping[str, str], label: str
) -> pa.Table:
    """Rows in the columns, order and types of a schema.

    Args:
        schema: The columns that are needed.
        table: The rows, under the schema's names or those that ``mapping`` gives.
        mapping: Name in the schema → name in the rows.
        label: The source that has the schema, for messages.

    Raises:
        DataError: With every column that is missing or not in the schema.
    """
    import pyarrow as pa

    names = {
        name: name if name in table.column_names else mapping.get(name, name)
        for name in schema.names
    }
    lacking = [name for name, given in names.items() if given not in table.column_names]
    extra = [name for name in table.column_names if name not in names.values()]
    problems = [
        *(Problem(f"column {name}", "a column", "no such column") for name in lacking),
        *(Problem(f"column {name}", "no column of this name", "a column") for name in extra),
    ]
    if problems:
        raise DataError(f"The rows do not fit the source {label}.", problems)
    columns = {
        field.name: converted(
            table[names[field.name]], field.type, where=f"Column {field.name} for {label}"
        )
        for field in schema
    }
    return pa.table(columns, schema=schema)
