"""Writing an Arrow table into Redis column by column, without a Python object per value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.exact_cast import exact_column
from tallystick.definitions.feature_view import NO_ENTITY_KEY, Column, ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.redis_connection import SyncClient
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import (
    CREATED,
    FAR_CREATED,
    FAR_WRITE,
    INT32,
    LATER,
    LATER_WRITE,
    LONG,
    LONG_INTEGERS,
    NEAR,
    NEAR_CREATED,
    NEAR_WRITE,
    NO_CREATED,
    NULLS,
    SAME_CREATED,
    SHORT_MAX,
    WRITE,
    Layout,
)
from tallystick.online_store.row_times import head_bytes
from tallystick.online_store.row_writer import WriteCounts, write_rows
from tallystick.online_store.value_codec import FIRST_US, LAST_US, ValueCodec

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.online_store.journal.write_journal import Journal

_ROWS_AT_ONCE: Final = 50_000


def write_table(
    client: SyncClient,
    project: str,
    spec: ViewSpec,
    table: pa.Table,
    *,
    write_us: int,
    key_ttl_s: int | None = None,
    journal: Journal | None = None,
) -> WriteCounts:
    """Fold the rows of an Arrow table into Redis, in the table's order.

    Args:
        client: Redis.
        project: Feast project.
        spec: The view. The table has its key columns, its feature columns, its event column and, if
            the view has one, its created column; further columns are ignored.
        table: The rows. A null created time is taken as the event time.
        write_us: Write time of all rows, in microseconds.
        key_ttl_s: See :func:`tallystick.online_store.row_writer.write_rows`.
        journal: Where the write is recorded; None for nowhere.

    Raises:
        DataError: Columns are missing, or have values that do not fit their type; all are listed.
            Nothing is written.
        DefinitionError: The view's tag stands for another view or definition.
        UnavailableError: Redis did not answer; writing the table again does no harm.
    """
    cast = _cast(spec, table)
    codec = RowCodec(spec)
    keys = EntityKeys(project, spec.join_keys)

    def rows() -> Iterator[tuple[bytes | None, bytes]]:
        for start in range(0, cast.num_rows, _ROWS_AT_ONCE):
            part = cast.slice(start, _ROWS_AT_ONCE).combine_chunks()
            names = [part.column(name).to_pylist() for name in spec.key_names]
            yield from zip(keys.of(names), packed_rows(codec, part, write_us), strict=True)

    if journal is None or not cast.num_rows:
        return write_rows(client, project, codec, rows(), key_ttl_s=key_ttl_s)
    from tallystick.online_store.journal.journal_entry import entry_of_table

    entry = entry_of_table(spec, cast, write_us=write_us)
    with journal.recording(client, project, codec, entry):
        return write_rows(client, project, codec, rows(), key_ttl_s=key_ttl_s)


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
            arrays[name] = exact_column(array, column.dtype)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            problems.append(Problem(f"column {name}", column.dtype, f"{array.type} ({error})"))
    problems += _unfit(spec, arrays)
    if not problems and arrays[spec.event_column].null_count:
        problems.append(Problem(f"column {spec.event_column}", "a time in each row", "nulls"))
    if problems:
        raise DataError(f"Rows of view {spec.name} cannot be stored.", problems)
    return pa.table(arrays)


def _unfit(spec: ViewSpec, arrays: Mapping[str, pa.ChunkedArray]) -> list[Problem]:
    """Values that have their column's type and yet cannot be stored as they are."""
    import pyarrow as pa
    import pyarrow.compute as pc

    problems = []
    for column in spec.columns:
        array = arrays.get(column.name)
        if array is None or not len(array) or column.dtype != "UNIX_TIMESTAMP":
            continue
        span = pc.min_max(array.cast(pa.int64()))
        first, last = span["min"].as_py(), span["max"].as_py()
        if first is not None and not FIRST_US <= first <= last <= LAST_US:
            problems.append(
                Problem(f"column {column.name}", "times of the years 1 to 9999", "others")
            )
    return problems


def packed_rows(codec: RowCodec, table: pa.Table, write_us: int) -> list[bytes]:
    """Pack the rows of a table whose columns have their exact types, as :class:`RowCodec` does."""
    import numpy as np

    columns = _Columns(codec, table, write_us)
    rows: list[bytes] = [b""] * table.num_rows
    for flags in np.unique(columns.flags).tolist():
        places = np.flatnonzero(columns.flags == flags)
        layout = codec.layout(flags)
        heads = columns.heads(layout, places)
        whole, size = heads.tobytes(), layout.struct.size
        for start, place in zip(range(0, len(whole), size), places.tolist(), strict=True):
            rows[place] = b"".join(
                (
                    whole[start : start + size],
                    *(content[place] for content in columns.contents.values()),
                )
            )
    return rows


class _Columns:
    """Columns of a table as rows hold them, and which flags each row gets."""

    def __init__(self, codec: RowCodec, table: pa.Table, write_us: int) -> None:
        import numpy as np

        spec = codec.spec
        count = table.num_rows
        self._codec = codec
        self._write_us = write_us
        self._event = _microseconds(table.column(spec.event_column))
        self._created = self._event
        has_created = np.zeros(count, dtype=bool)
        if spec.created_column is not None:
            created = table.column(spec.created_column)
            has_created = created.is_valid().to_numpy()
            self._created = np.where(has_created, _microseconds(created), self._event)
        self._nulls = np.zeros((count, codec.null_bytes), dtype="u1")
        self._numbers: dict[int, Any] = {}
        self.contents: dict[int, list[bytes]] = {}
        for place, (column, cell) in enumerate(zip(spec.columns, codec.cells, strict=True)):
            values = table.column(column.name)
            if values.null_count:
                absent = ~values.is_valid().to_numpy()
                self._nulls[absent, place >> 3] |= 1 << (place & 7)
            if cell.code is None:
                self.contents[place] = _contents(values, column, cell)
            else:
                self._numbers[place] = _numbers(values, column.dtype)
        self._lengths = {
            place: np.fromiter(map(len, content), dtype="i8", count=count)
            for place, content in self.contents.items()
        }
        self.flags = self._flags(has_created)

    def _flags(self, has_created: Any) -> Any:
        import numpy as np

        # Differences may overflow where times are absurd; they are then not near, as they should.
        with np.errstate(over="ignore"):
            after = self._created - self._event
            written = self._write_us - self._event
        far = ~((after > 0) & (after < NEAR) & (self._created > self._event))
        kind = np.where(far, FAR_CREATED, NEAR_CREATED)
        kind[self._created == self._event] = SAME_CREATED
        flags = np.where(has_created, kind, NO_CREATED)
        near = (written >= 0) & (written < LATER) & (self._event <= self._write_us)
        flags |= np.where(near & (written < NEAR), NEAR_WRITE, LATER_WRITE)
        flags[~near] += FAR_WRITE - LATER_WRITE
        for place in self._codec.integers:
            numbers = self._numbers[place]
            flags[(numbers < INT32[0]) | (numbers > INT32[-1])] |= LONG_INTEGERS
        flags[self._nulls.any(axis=1)] |= NULLS
        contents = sum(self._lengths.values(), np.zeros(len(flags), dtype="i8"))
        for value in np.unique(flags).tolist():
            layout = self._codec.layout(value)
            is_long = (flags == value) & (
                contents + layout.struct.size - head_bytes(layout.flags) > SHORT_MAX
            )
            flags[is_long] |= LONG
        return flags

    def heads(self, layout: Layout, places: Any) -> Any:
        """All but the contents of the rows at ``places``, which have this layout."""
        import numpy as np

        heads = np.zeros(len(places), dtype=layout.dtype)
        assert heads.dtype.itemsize == layout.struct.size
        event = self._event[places]
        heads["head"] = np.frombuffer(self._codec.tag + bytes((layout.flags,)), dtype="u1")
        heads["event"] = event
        if layout.flags & CREATED == NEAR_CREATED:
            heads["created"] = self._created[places] - event
        elif layout.flags & CREATED == FAR_CREATED:
            heads["created"] = self._created[places]
        if layout.flags & WRITE == FAR_WRITE:
            heads["write"] = self._write_us
        else:
            heads["write_low"] = (self._write_us - event) & 0xFFFFFFFF
        if layout.flags & WRITE == LATER_WRITE:
            heads["write_high"] = (self._write_us - event) >> 32
        if layout.flags & NULLS:
            heads["nulls"] = self._nulls[places]
        for place, numbers in self._numbers.items():
            heads[f"c{place}"] = numbers[places]
        length = layout.struct.size - head_bytes(layout.flags)
        for place, lengths in self._lengths.items():
            heads[f"c{place}"] = lengths[places]
            length = length + lengths[places]
        heads["length"] = length
        return heads


def _microseconds(times: pa.ChunkedArray) -> Any:
    import pyarrow as pa

    return times.cast(pa.int64()).fill_null(0).to_numpy()


def _numbers(values: pa.ChunkedArray, dtype: str) -> Any:
    if dtype == "UNIX_TIMESTAMP":
        return _microseconds(values)
    return values.fill_null(False if dtype == "BOOL" else 0).to_numpy()


def _contents(values: pa.ChunkedArray, column: Column, codec: ValueCodec) -> list[bytes]:
    """Bytes of a variable column; empty for null.

    Raises:
        DataError: A value cannot be stored, for example a list with a null among its members.
    """
    try:
        return [
            b"" if content is None else codec.from_python(content)
            for content in values.to_pylist(maps_as_pydicts="strict")
        ]
    except (TypeError, ValueError, OverflowError) as error:
        problem = Problem(f"column {column.name}", column.dtype, f"{values.type} ({error})")
        raise DataError("A column cannot be stored.", [problem]) from error
