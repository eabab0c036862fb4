"""The log's Parquet files: written with checksums, and compared with their schema when read."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.contract import ModelContract
from tallystick.errors import ContractError, DamagedError, Problem, UnavailableError
from tallystick.prediction_log.manifest import LogFile
from tallystick.prediction_log.streams import Stream, compacted_contract
from tallystick.storage.locations import Location, has_no_answer, store_errors

if TYPE_CHECKING:
    import pyarrow as pa

Columns = Callable[[ModelContract], Collection[str]]
_END_BYTES: Final = 1 << 16
"""Bytes that are read at once to find where a file's metadata begin."""


def write_rows(file: Location, table: pa.Table) -> int:
    """Write a file of the log, and return its size in bytes."""
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

    return file.write(content)


def footer_of(file: Location) -> int:
    """The checksum of a file's end, which the checksums of its pages do not cover."""
    with store_errors(str(file)):
        return zlib.crc32(_end_of(file))


def read_file(
    location: Location, stream: Stream, file: LogFile, columns: Columns | None = None
) -> tuple[ModelContract, pa.Table]:
    """Read a file and its contract, after comparing the file's schema with the contract.

    Args:
        location: Folder of the log.
        stream: The stream of its rows.
        file: The file.
        columns: Contract → which columns; all by default.

    Raises:
        FileNotFoundError: It does not exist any more.
        UnavailableError: The store did not answer.
        DamagedError: It cannot be read, or fails a checksum.
        ContractError: It has other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    contract = compacted_contract(location, stream, file.model, file.contract)
    expected = stream.schema(contract)
    names = None if columns is None else list(columns(contract))
    there = location / file.path
    try:
        end = _end_of(there)
        with pq.ParquetFile(
            there.path,
            metadata=pq.read_metadata(pa.BufferReader(end)),
            filesystem=there.store.filesystem,
            page_checksum_verification=True,
        ) as opened:
            if not opened.schema_arrow.equals(expected):
                _check_schema(str(there), expected, opened.schema_arrow)
            if zlib.crc32(end) != file.footer:
                raise ValueError("its end fails its checksum")  # noqa: TRY301 handled below
            table = opened.read(columns=names)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        if has_no_answer(error):
            raise UnavailableError(f"The store of {there}", str(error)) from error
        raise DamagedError(
            f"Log file {there} cannot be read: {error}",
            hint="Restore it from a backup, or take it out of the log:  tally log forget FILE",
        ) from error
    return contract, table if names is None else table.select(names)


def _end_of(file: Location) -> bytes:
    """The bytes from the metadata of a Parquet file on."""
    with file.store.filesystem.open_input_file(file.path) as opened:
        size = opened.size()
        start = max(0, size - _END_BYTES)
        end: bytes = opened.read_at(size - start, start)
        needed = int.from_bytes(end[-8:-4], "little") + 8
        if len(end) < needed <= size:
            end = opened.read_at(needed, size - needed)
        return end[-needed:]


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
