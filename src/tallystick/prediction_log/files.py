"""The log's Parquet files: written with checksums, and compared with their schema when read."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tallystick.errors import ContractError, DamagedError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.prediction_log.sink import Sink


def write_rows(sink: Sink, name: str, table: pa.Table) -> int:
    """Write a file of the log, and give its size in bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Numbers seldom repeat, and looking for a dictionary of them takes most of the time.
    dictionary = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) and field.name != "prediction_id"
    ]

    def content(to: Any) -> None:
        pq.write_table(
            table,
            to,
            compression="zstd",
            compression_level=1,
            use_dictionary=dictionary,
            write_page_checksum=True,
        )

    return sink.write(name, content)


def read_file(
    sink: Sink, name: str, expected: pa.Schema, columns: Collection[str] | None = None
) -> pa.Table:
    """Read a file, or some columns of it, after comparing its schema with the expected one.

    Raises:
        FileNotFoundError: It is gone.
        DamagedError: It cannot be read, or fails a checksum.
        ContractError: It has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(
            sink.path(name), filesystem=sink.filesystem, page_checksum_verification=True
        ) as file:
            if not file.schema_arrow.equals(expected):
                _check_schema(sink.text(name), expected, file.schema_arrow)
            table = file.read(columns=None if columns is None else list(columns))
            return table if columns is None else table.select(list(columns))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(
            f"Log file {sink.text(name)} cannot be read: {error}",
            hint="Restore it from a backup; or take it out of the log:  tally log forget FILE",
        ) from error


def _check_schema(name: str, expected: pa.Schema, got: pa.Schema) -> None:
    ours = {field.name: str(field.type) for field in expected}
    theirs = {field.name: str(field.type) for field in got}
    problems = [
        Problem(f"column {column}", ours.get(column, "absent"), theirs.get(column, "absent"))
        for column in sorted(ours.keys() | theirs.keys())
        if ours.get(column) != theirs.get(column)
    ]
    if problems:
        raise ContractError(f"Log file {name} does not fit the contract beside it.", problems)
