"""The values of chosen rows, by their position in the source's files."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from tallystick.errors import DataError
from tallystick.offline_store.sources.file_source import SourceFiles

if TYPE_CHECKING:
    import pyarrow as pa

NO_COLUMN: Final = "no column"
"""Stands for the rows of a file that has none of the columns."""


def bytes_of(files: SourceFiles, columns: Sequence[str]) -> int:
    """Bytes that some columns of a source take in memory, about, by what its files say."""
    wanted = set(columns)
    total = 0
    for metadata in files.footers:
        for group in range(metadata.num_row_groups):
            chunks = metadata.row_group(group)
            total += sum(
                chunk.total_uncompressed_size
                for chunk in map(chunks.column, range(chunks.num_columns))
                if chunk.path_in_schema.split(".")[0] in wanted
            )
    return total


def rows_at(files: SourceFiles, columns: Sequence[str], places: Sequence[Any]) -> pa.Table:
    """Rows of a source, in any order and as often as asked for.

    Args:
        files: The source.
        columns: Names of its columns.
        places: For each row of the answer its place in its file, null for a row of nulls; where
            there are several files, the place of its file comes before.

    Raises:
        DataError: A file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = list(dict.fromkeys(columns))
    if not names:
        return pa.table({})
    parts = [_part(files, at, names) for at in range(len(files.signature))]
    place = places[-1]
    if len(parts) > 1:
        first = [0]
        for part in parts:
            first.append(first[-1] + part.num_rows)
        place = pc.add(place, pa.array(first).take(places[0]))
    whole = pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})
    del parts
    for name in names:
        # A column that only files have which are not read, or none at all.
        if name not in whole.column_names:
            known = name in files.schema.names
            kind = files.schema.field(name).type if known else pa.null()
            whole = whole.append_column(name, pa.nulls(whole.num_rows, kind))
    chosen = place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place
    with ThreadPoolExecutor(max_workers=pa.cpu_count()) as threads:
        taken = threads.map(lambda name: whole[name].combine_chunks().take(chosen), names)
        return pa.table(dict(zip(names, taken, strict=True)))


def _part(files: SourceFiles, at: int, names: Sequence[str]) -> pa.Table:
    """Columns of one file, those of its folder included."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, _, _ = files.signature[at]
    try:
        file = pq.ParquetFile(
            path,
            filesystem=files.store.filesystem,
            coerce_int96_timestamp_unit=files.int96_unit,
        )
        have = [name for name in names if name in file.schema_arrow.names]
        rows = file.metadata.num_rows
        # Without any of the columns a table would not know how many rows it has.
        part = file.read(columns=have) if have else pa.table({NO_COLUMN: pa.nulls(rows)})
        part = files.conformed(part)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{files.store.text(path)} cannot be read: {error}",
            hint="The file is damaged; restore it, or write it again.",
        ) from error
    for name in have:
        own, common = part.schema.field(name).type, files.schema.field(name).type
        if getattr(own, "tz", None) != getattr(common, "tz", None):
            moments = part[name].cast(pa.timestamp(own.unit, tz=common.tz))
            part = part.set_column(part.column_names.index(name), name, moments)
    for name, values in files.partitions.items():
        if name in names:
            part = part.append_column(name, pa.repeat(values[at], rows))
    return part
