"""The decoder of a view's rows: packed rows ↔ columns with a status for each row.

Serving's reader and Feast's plugin share it. Many rows with the same layout are read together, and
their columns are arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, cast

from tallystick.definitions.columns import joined, plain
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DamagedError, Problem
from tallystick.online_store.entity_value import BATCH_MIN, FoundRows, RowBatch
from tallystick.online_store.row_codec import Decoded, RowCodec, RowReader
from tallystick.online_store.row_layout import TAG, VALUES, view_tag
from tallystick.online_store.stored_definitions import parse_definition
from tallystick.point_in_time.feature_status import Status

_KINDS: Final = [bytes((flags & VALUES,)) for flags in range(256)]
"""Flags → the byte that follows the tag of a row in its kind; rows of one kind are read alike."""


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class ViewRows:
    """One view's rows for one request, column by column, in the order of the request's rows.

    Times and values are lists, or for many rows arrays of int64, float64 or bool without null.
    :func:`tallystick.definitions.columns.plain` makes a list of either.

    Attributes:
        status: Status of each row. A null feature of a PRESENT row is None in ``values``.
        event_us: Event time in microseconds, None if NOT_FOUND.
        created_us: Created time, None if NOT_FOUND or if the row has none.
        write_us: Time at which the row was written online, None if NOT_FOUND.
        definition: Hash of the definition under which the row was written, None if NOT_FOUND.
        values: Column → values, None where the row is not PRESENT, the value is null, or the row's
            definition has no column of that name and type.
        is_complete: Whether it is known that all rows are PRESENT and no value is None.
    """

    status: list[Status]
    event_us: Any
    created_us: Any
    write_us: Any
    definition: list[str | None]
    values: dict[str, Any]
    is_complete: bool = False


class UnknownDefinitionError(Exception):
    """The decoder needs the definition of a row first.

    Args:
        tag: Tag of the row.
    """

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        super().__init__(tag.hex())


class ViewDecoder:
    """Decodes a view's rows, also those that were written under another definition of it.

    Args:
        spec: The definition of the reader; its ttl is enforced.
        columns: Requested columns.
        protos: Whether values are given as Feast's ``Value`` rather than Python values.
        name: The view's name online, where it differs from that of the definition.

    Attributes:
        view: Tag of the view, with which its rows start.
    """

    def __init__(
        self,
        spec: ViewSpec,
        columns: Sequence[str],
        *,
        protos: bool = False,
        name: str | None = None,
    ) -> None:
        self._ttl_us = spec.ttl_us
        self._name = spec.name if name is None else name
        self.view = view_tag(self._name, spec.key_names)
        self._columns = tuple(columns)
        self._protos = protos
        self._dtypes = {column.name: column.dtype for column in spec.columns}
        self._codecs: dict[bytes, RowCodec] = {}
        self._readers: dict[bytes, _KindReader] = {}
        self._add(RowCodec(spec, self._name))

    def _add(self, codec: RowCodec) -> None:
        cells = [codec.cells[codec.index(name)] for name in self._common(codec)]
        if not self._protos and any(cell.needs_feast for cell in cells):
            import feast.type_map  # noqa: F401 takes seconds, so never during a request
        self._codecs[codec.tag] = codec

    def _common(self, codec: RowCodec) -> list[str]:
        """The requested columns that a definition has, by name and type."""
        stored = {column.name: column.dtype for column in codec.spec.columns}
        return [name for name in self._columns if stored.get(name) == self._dtypes[name]]

    def _reader(self, kind: bytes) -> _KindReader:
        """The reader of rows of a kind; made once."""
        reader = self._readers.get(kind)
        if reader is None:
            codec = self._codecs.get(kind[:TAG])
            if codec is None:
                raise UnknownDefinitionError(kind[:TAG])
            names = self._common(codec)
            reader = self._readers[kind] = _KindReader(
                rows=codec.reader(kind[TAG], names, protos=self._protos),
                definition=codec.spec.definition_hash,
                lacking=[name for name in self._columns if name not in names],
                reads_batches=codec.is_fixed and not self._protos,
            )
        return reader

    def add_definition(self, tag: bytes, stored: bytes | None) -> None:
        """Add the definition that Redis has for a tag.

        Raises:
            DamagedError: Redis has none, or another one.
        """
        codec = None
        if stored is not None:
            codec = RowCodec(parse_definition(stored)[0], self._name)
        if codec is None or codec.tag != tag:
            raise DamagedError(
                f"Rows of view {self._name} were written under a definition that Redis "
                "no longer has.",
                [Problem("definition", "a known tag", tag.hex())],
                hint="Materialize the view again.",
            )
        self._add(codec)

    def decode(self, rows: Sequence[bytes | None], *, request_time_us: int) -> ViewRows:
        """Decode the rows of a request.

        Args:
            rows: Packed rows, None for an entity without.
            request_time_us: Time of the request: a row whose event time is more than the view's ttl
                before it is OUTSIDE_MAX_AGE; the window's end is included.

        Raises:
            DamagedError: A row cannot be read.
            UnknownDefinitionError: A row's definition is needed first: :meth:`add_definition`.
        """
        oldest_us = self._oldest_us(request_time_us)
        kinds = [None if row is None else row[:TAG] + _KINDS[row[TAG]] for row in rows]
        if len(rows) == 1 or len(set(kinds)) == 1:
            return self._of_kind(kinds[0], rows, oldest_us)
        # Each kind is read by itself; then the rows are brought into the order of the request.
        order: list[int] = []
        parts = []
        for kind in dict.fromkeys(kinds):
            indices = [index for index, other in enumerate(kinds) if other == kind]
            parts.append(self._of_kind(kind, [rows[index] for index in indices], oldest_us))
            order += indices
        return _ordered(parts, order) if parts else self._absent(0)

    def decode_found(self, found: FoundRows, *, request_time_us: int) -> ViewRows:
        """Decode this view's rows among those of a request; as :meth:`decode`."""
        if not found.batches:
            return self.decode(found.rows[self.view], request_time_us=request_time_us)
        oldest_us = self._oldest_us(request_time_us)
        order: list[int] = []
        parts = []
        for batch in found.batches:
            order += batch.indices
            rows = batch.sections.get(self.view)
            if rows is None:
                parts.append(self._absent(len(batch.indices)))
            else:
                parts.append(self._of_batch(rows, oldest_us))
        if found.indices:
            order += found.indices
            parts.append(self.decode(found.rows[self.view], request_time_us=request_time_us))
        return parts[0] if len(parts) == 1 else _ordered(parts, order)

    def _oldest_us(self, request_time_us: int) -> int | None:
        """Event time before which a row is too old."""
        return None if self._ttl_us is None else request_time_us - self._ttl_us

    def _of_batch(self, rows: RowBatch, oldest_us: int | None) -> ViewRows:
        """Decode rows of one definition, of one kind after the other."""
        kinds = rows.flags & VALUES
        order: list[int] = []
        parts = []
        for flags in dict.fromkeys(kinds.tolist()):
            of_kind = kinds == flags
            some = rows if of_kind.all() else rows.selected(of_kind)
            kind = rows.tag + _KINDS[flags]
            reader = self._reader(kind)
            count = len(some.flags)
            if count < BATCH_MIN or not reader.reads_batches:
                parts.append(self._of_kind(kind, some.listed(), oldest_us))
            else:
                decoded = reader.rows.read_batch(some)
                late: list[int] = []
                if oldest_us is not None:
                    late = (decoded.event_us < oldest_us).nonzero()[0].tolist()
                parts.append(_view_rows(reader, decoded, late, count))
            if some is rows:
                return parts[0]
            order += of_kind.nonzero()[0].tolist()
        return _ordered(parts, order)

    def _of_kind(
        self, kind: bytes | None, rows: Sequence[bytes | None], oldest_us: int | None
    ) -> ViewRows:
        """Decode rows of one kind; None is that of entities without row."""
        if kind is None:
            return self._absent(len(rows))
        reader = self._reader(kind)
        decoded = reader.rows.read(cast("Any", rows))
        late: list[int] = []
        if oldest_us is not None and min(decoded.event_us) < oldest_us:
            late = [index for index, us in enumerate(decoded.event_us) if us < oldest_us]
        return _view_rows(reader, decoded, late, len(rows))

    def _absent(self, count: int) -> ViewRows:
        return ViewRows(
            status=[Status.NOT_FOUND] * count,
            event_us=[None] * count,
            created_us=[None] * count,
            write_us=[None] * count,
            definition=[None] * count,
            values={name: [None] * count for name in self._columns},
        )


@dataclass(frozen=True, slots=True)
class _KindReader:
    """The reader of rows of one kind.

    Attributes:
        rows: Reads the columns that their definition has.
        definition: Its hash.
        lacking: Requested columns that it does not have.
        reads_batches: Whether many rows can be read together.
    """

    rows: RowReader
    definition: str
    lacking: list[str]
    reads_batches: bool


def _view_rows(reader: _KindReader, decoded: Decoded, late: list[int], count: int) -> ViewRows:
    """Decoded rows with their status, without the values of rows that are too old."""
    values = decoded.values
    for name in reader.lacking:
        values[name] = [None] * count
    status = [Status.PRESENT] * count
    if late:
        values = {name: plain(column) for name, column in values.items()}
        for index in late:
            status[index] = Status.OUTSIDE_MAX_AGE
            for column in values.values():
                column[index] = None
    return ViewRows(
        status=status,
        event_us=decoded.event_us,
        created_us=decoded.created_us,
        write_us=decoded.write_us,
        definition=[reader.definition] * count,
        values=values,
        is_complete=not (late or reader.rows.has_nulls or reader.lacking),
    )


def _ordered(parts: Sequence[ViewRows], indices: Sequence[int]) -> ViewRows:
    """The rows of several parts, one after the other, sorted by their indices."""
    order = sorted(range(len(indices)), key=indices.__getitem__)
    take = itemgetter(*order)  # there are two parts, and so two rows at least

    def of(columns: Iterable[Any]) -> Any:
        column = joined(list(columns))
        return list(take(column)) if isinstance(column, list) else column.take(order)

    return ViewRows(
        status=of(part.status for part in parts),
        event_us=of(part.event_us for part in parts),
        created_us=of(part.created_us for part in parts),
        write_us=of(part.write_us for part in parts),
        definition=of(part.definition for part in parts),
        values={name: of(part.values[name] for part in parts) for name in parts[0].values},
        is_complete=all(part.is_complete for part in parts),
    )
