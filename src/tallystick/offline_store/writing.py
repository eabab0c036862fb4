"""Writing Parquet so that no reader ever sees half a file, and no write gets lost."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import SystemClock
from tallystick.errors import DataError, Problem
from tallystick.offline_store.columns import converted
from tallystick.offline_store.files import open_source, resolve

if TYPE_CHECKING:
    import pyarrow as pa


def write_file(table: pa.Table, path: Path) -> None:
    """Write a Parquet file beside ``path`` and put it in its place in one step."""
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        pq.write_table(table, draft)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def add_file(table: pa.Table, folder: Path) -> Path:
    """Add a file of its own to a folder; later ones sort behind earlier ones."""
    path = folder / f"written-{SystemClock().now_us():018d}-{uuid.uuid4().hex}.parquet"
    write_file(table, path)
    return path


def append(source: Any, table: pa.Table, *, repo_path: Path | str | None) -> None:
    """Append rows to a Feast ``FileSource``.

    A folder gets one more file. A single file is written anew with the rows at its end, under a
    lock that all writers of this kind respect; readers see the old file or the new one.

    Args:
        source: Its path is a file or a folder; a path without a file yet makes one.
        table: The rows, with all columns of the source, under its names or those of the view.
        repo_path: Folder from which a relative path is taken.

    Raises:
        DataError: The columns do not fit, or the path is a glob.
    """
    import pyarrow as pa

    place = resolve(source.path, repo_path)
    mapping: Mapping[str, str] = source.field_mapping or {}
    if any(sign in source.path for sign in "*?["):
        raise DataError(
            f"Rows cannot be written to {source.path}: a glob does not say into which file.",
            hint="Make the source's path a folder.",
        )
    if place.is_dir():
        empty = not any(place.rglob("*.parquet"))
        add_file(table if empty else fitted(table, source, mapping, repo_path), place)
        return
    with locked(place):
        if place.exists():
            import pyarrow.parquet as pq

            rows = fitted(table, source, mapping, repo_path)
            table = pa.concat_tables([pq.read_table(place, partitioning=None), rows])
        write_file(table, place)


def fitted(
    table: pa.Table, source: Any, mapping: Mapping[str, str], repo_path: Path | str | None
) -> pa.Table:
    """Rows in the source's columns, order and types.

    Raises:
        DataError: With every column that is missing or not of the source.
    """
    schema = open_source(source, repo_path).schema
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
        raise DataError(f"The rows do not fit the source {source.path}.", problems)
    columns = {
        field.name: converted(
            table[names[field.name]], field.type, where=f"Column {field.name} for {source.path}"
        )
        for field in schema
    }
    import pyarrow as pa

    return pa.table(columns, schema=schema)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only writer of ``path``, among processes and threads; a file beside it is the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
