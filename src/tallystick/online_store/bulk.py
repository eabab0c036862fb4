"""Writing an Arrow table into Redis column by column, without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from tallystick.dtypes import arrow_type
from tallystick.errors import DataError, Problem
from tallystick.online_store.connection import SyncClient
from tallystick.online_store.keys import RowKeys
from tallystick.online_store.packed import FIXED, HAS_CREATED, VERSION, RowCodec
from tallystick.online_store.writer import WriteCounts, write_rows
from tallystick.repo import NO_ENTITY_KEY
from tallystick.view import Column, ViewSpec

if TYPE_CHECKING:
    import pyarrow as pa

_NUMPY: Final = {
    "INT32": "<i4",
    "INT64": "<i8",
    "FLOAT": "<f4",
    "DOUBLE": "<f8",
    "BOOL": "?",
    "UNIX_TIMESTAMP": "<i8",
}
_ROWS_AT_ONCE: Final = 50_000


def write_table(
    client: SyncClient, project: str, spec: ViewSpec, table: pa.Table, *, write_us: int
) -> WriteCounts:
    """Fold the rows of an Arrow table into Redis, in the table's order.

    Args:
        client: Redis.
        project: Feast project.
        spec: The view. The table has its key columns, its feature columns, its event column and, if
            the view has one, its created column; further columns are ignored.
        table: The rows. A null created time is taken as the event time.
        write_us: Write time of all rows, in microseconds.

    Raises:
        DataError: Columns are missing, or have values that do not fit their type; all are listed.
            Nothing is written.
        UnavailableError: Redis did not answer; writing the table again does no harm.
    """
    cast = _cast(spec, table)
    codec = RowCodec(spec)
    keys = RowKeys(project, spec.name, spec.join_keys)

    def rows() -> Iterator[tuple[bytes | None, bytes]]:
        for start in range(0, cast.num_rows, _ROWS_AT_ONCE):
            part = cast.slice(start, _ROWS_AT_ONCE).combine_chunks()
            names = [part.column(name).to_pylist() for name in spec.key_names]
            yield from zip(keys.of(names), _packed(codec, part, write_us), strict=True)

    return write_rows(client, project, spec, rows())


def _cast(spec: ViewSpec, table: pa.Table) -> pa.Table:
    """The columns that are needed, each in the type that holds it exactly."""
    import pyarrow as pa

    moment = Column(name=spec.event_column, dtype="UNIX_TIMESTAMP")
    wanted = {column.name: column for column in (*spec.join_keys, *spec.columns)}
    wanted[spec.event_column] = moment
    if spec.created_column is not None:
        wanted[spec.created_column] = Column(name=spec.created_column, dtype="UNIX_TIMESTAMP")
    problems = []
    arrays = {}
    for name, column in wanted.items():
        if name == NO_ENTITY_KEY and name not in table.column_names:
            arrays[name] = pa.chunked_array([pa.repeat("", table.num_rows)])
            continue
        if name not in table.column_names:
            problems.append(Problem(f"column {name}", column.dtype, "absent"))
            continue
        array = table.column(name)
        try:
            # Times finer than a microsecond are cut, as everywhere here; nothing else may change.
            if column.dtype == "UNIX_TIMESTAMP":
                arrays[name] = array.cast(arrow_type(column.dtype), safe=False)
            elif column.dtype in FIXED or column.dtype in {"STRING", "BYTES"}:
                arrays[name] = array.cast(arrow_type(column.dtype))
            else:
                arrays[name] = array
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(Problem(f"column {name}", column.dtype, f"{array.type} ({error})"))
    if not problems and arrays[spec.event_column].null_count:
        problems.append(Problem(f"column {spec.event_column}", "a time in each row", "nulls"))
    if problems:
        raise DataError(f"Rows of view {spec.name} cannot be stored.", problems)
    return pa.table(arrays)


def _packed(codec: RowCodec, table: pa.Table, write_us: int) -> Iterator[bytes]:
    """Packed rows of a table whose columns have their exact types."""
    import numpy as np
    import pyarrow as pa

    spec = codec.spec
    heads = np.zeros(table.num_rows, dtype=_head_type(codec))
    assert heads.dtype.itemsize == codec.layout.size
    event_us = table.column(spec.event_column).cast(pa.int64()).to_numpy()
    heads["version"] = VERSION
    heads["definition"] = np.frombuffer(codec.definition, dtype="V8")[0]
    heads["event"] = heads["created"] = event_us
    heads["write"] = write_us
    if spec.created_column is not None:
        created = table.column(spec.created_column)
        known = created.is_valid().to_numpy()
        heads["flags"][known] = HAS_CREATED
        heads["created"] = np.where(
            known, created.cast(pa.int64()).fill_null(0).to_numpy(), event_us
        )
    for place, column in enumerate(spec.columns):
        values = table.column(column.name)
        if values.null_count:
            byte, bit = codec.null_bits[column.name]
            heads["nulls"][:, byte] |= np.where(values.is_valid().to_numpy(), 0, bit).astype("u1")
        if column.dtype in FIXED:
            heads[f"c{place}"] = _numbers(values, column.dtype)
    tails = [_tails(table.column(column.name), column.dtype) for column in codec.variable]
    for column, contents in zip(codec.variable, tails, strict=True):
        place = spec.columns.index(column)
        heads[f"c{place}"] = [len(content) for content in contents]
    whole, size = heads.tobytes(), codec.layout.size
    starts = range(0, len(whole), size)
    if not tails:
        return (whole[start : start + size] for start in starts)
    return (
        b"".join((whole[start : start + size], *contents))
        for start, contents in zip(starts, zip(*tails, strict=True), strict=True)
    )


def _head_type(codec: RowCodec) -> list[tuple[Any, ...]]:
    """The struct of the codec as NumPy fields; a column's is named by its place in the view."""
    places = {column.name: place for place, column in enumerate(codec.spec.columns)}
    return [
        ("version", "u1"),
        ("definition", "V8"),
        ("flags", "u1"),
        ("event", "<i8"),
        ("created", "<i8"),
        ("write", "<i8"),
        ("nulls", "u1", (codec.null_bytes,)),
        *((f"c{places[column.name]}", _NUMPY[column.dtype]) for column in codec.fixed),
        *((f"c{places[column.name]}", "<u4") for column in codec.variable),
    ]


def _numbers(values: pa.ChunkedArray, dtype: str) -> Any:
    import pyarrow as pa

    if dtype == "UNIX_TIMESTAMP":
        values = values.cast(pa.int64())
    return values.fill_null(False if dtype == "BOOL" else 0).to_numpy()


def _tails(values: pa.ChunkedArray, dtype: str) -> list[bytes]:
    """Bytes of a variable column; empty for null."""
    contents = values.to_pylist()
    if dtype == "STRING":
        return [b"" if content is None else content.encode() for content in contents]
    if dtype == "BYTES":
        return [b"" if content is None else content for content in contents]
    from feast.type_map import python_values_to_proto_values
    from feast.value_type import ValueType

    present = [content for content in contents if content is not None]
    protos = iter(python_values_to_proto_values(present, ValueType[dtype]) if present else ())
    return [
        b"" if content is None else next(protos).SerializeToString(deterministic=True)
        for content in contents
    ]
