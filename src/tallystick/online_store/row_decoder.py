"""From what Redis answered to columns with a status for each row; shared by reader and plugin.

Where many rows lie alike they are read at once, and their columns are arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, cast

from tallystick.definitions.columns import joined, plain
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DamagedError, Problem
from tallystick.online_store.definition_tags import StoredDefinition
from tallystick.online_store.entity_value import BATCH_MIN, FoundRows, RowBatch
from tallystick.online_store.row_codec import Decoded, RowCodec, RowReader
from tallystick.online_store.row_layout import TAG, VALUES, view_tag
from tallystick.point_in_time.feature_status import Status

_VALUES: Final = [bytes((flags & VALUES,)) for flags in range(256)]


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class ViewRows:
    """One view's rows for one request, column by column, in the order of the request's rows.

    Times and values are lists; of many rows they may be arrays of int64, float64 or bool, in which
    then nothing is missing. :func:`tallystick.definitions.columns.plain` makes a list of either.

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
    """A row's definition has to be learnt first.

    Args:
        tag: Tag of the row.
    """

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        super().__init__(tag.hex())


class ViewDecoder:
    """Reads a view's rows, also those that were written under another definition of it.

    Args:
        spec: The definition by which rows are wanted; its ttl is enforced.
        columns: Columns wanted.
        protos: Whether values are given as Feast's ``Value`` rather than Python values.
        name: The view's name online, where it is not that of the definition.

    Attributes:
        view: Tag of the view, which its rows start with.
    """

    def __init__(
        self,
        spec: ViewSpec,
        columns: Sequence[str],
        *,
        protos: bool = False,
        name: str | None = None,
    ) -> None:
        self._spec = spec
        self._name = spec.name if name is None else name
        self.view = view_tag(self._name, spec.key_names)
        self._columns = tuple(columns)
        self._protos = protos
        self._dtypes = {column.name: column.dtype for column in spec.columns}
        self._codecs: dict[bytes, RowCodec] = {}
        self._readers: dict[bytes, _Reader] = {}
        self._add(spec)

    def _add(self, written: ViewSpec) -> None:
        """Take a definition under which rows may have been written."""
        codec = RowCodec(written, self._name)
        if not self._protos and codec.needs_feast(self._common(codec)):
            import feast.type_map  # noqa: F401 takes seconds, and so never within a request
        self._codecs[codec.tag] = codec

    def _common(self, codec: RowCodec) -> list[str]:
        """The columns wanted that a definition has, by name and type."""
        stored = {column.name: column.dtype for column in codec.spec.columns}
        return [name for name in self._columns if stored.get(name) == self._dtypes[name]]

    def _reader(self, kind: bytes) -> _Reader:
        """The reader of rows with this tag and these flags; made once."""
        reader = self._readers.get(kind)
        if reader is None:
            codec = self._codec(kind[:TAG])
            names = self._common(codec)
            reader = self._readers[kind] = _Reader(
                rows=codec.reader(kind[TAG], names, protos=self._protos),
                definition=codec.spec.definition_hash,
                lacking=[name for name in self._columns if name not in names],
                reads_batches=codec.is_fixed and not self._protos,
            )
        return reader

    def _codec(self, tag: bytes) -> RowCodec:
        codec = self._codecs.get(tag)
        if codec is None:
            raise UnknownDefinitionError(tag)
        return codec

    def learn(self, tag: bytes, written: bytes | None) -> None:
        """Take a definition, as Redis has it for a tag.

        Raises:
            DamagedError: Redis has none, or another one.
        """
        if written is None:
            raise DamagedError(
                f"Rows of view {self._name} were written under a definition that Redis "
                "no longer has.",
                [Problem("definition", "a known tag", tag.hex())],
                hint="Materialize the view again.",
            )
        self._add(StoredDefinition.parse(written).spec)

    def decode(self, rows: Sequence[bytes | None], *, request_time_us: int) -> ViewRows:
        """Decode what Redis answered for each row of a request.

        Args:
            rows: Packed rows, None where there is none.
            request_time_us: Time of the request: a row whose event time is more than the view's ttl
                before it is OUTSIDE_MAX_AGE; the window's end is included.

        Raises:
            DamagedError: A row cannot be read.
            UnknownDefinitionError: A row was written under a definition that has to be learnt.
        """
        oldest_us = self._oldest_us(request_time_us)
        if not rows:
            return self._absent(0)
        if len(rows) == 1:
            if rows[0] is None:
                return self._absent(1)
            return self._of_one_kind(rows[0][:TAG] + _VALUES[rows[0][TAG]], rows, oldest_us)
        kinds = [None if row is None else row[:TAG] + _VALUES[row[TAG]] for row in rows]
        found = dict.fromkeys(kinds)
        if len(found) == 1:
            return self._of_one_kind(kinds[0], rows, oldest_us)
        # What has to be read otherwise is read apart, and then brought into the order of the rows.
        order: list[int] = []
        parts = []
        for kind in found:
            places = [place for place, other in enumerate(kinds) if other == kind]
            parts.append(self._of_one_kind(kind, [rows[place] for place in places], oldest_us))
            order += places
        return _ordered(parts, order)

    def decode_found(self, found: FoundRows, *, request_time_us: int) -> ViewRows:
        """Decode this view's rows of what was found for a request; as :meth:`decode`."""
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
                parts.append(self._of_table(rows, oldest_us))
        if found.indices:
            order += found.indices
            parts.append(self.decode(found.rows[self.view], request_time_us=request_time_us))
        return parts[0] if len(parts) == 1 else _ordered(parts, order)

    def _oldest_us(self, request_time_us: int) -> int | None:
        """Event time before which a row is too old."""
        ttl_us = self._spec.ttl_us
        return None if ttl_us is None else request_time_us - ttl_us

    def _of_table(self, rows: RowBatch, oldest_us: int | None) -> ViewRows:
        """Decode rows of one definition."""
        kinds = rows.flags & VALUES
        if (kinds == kinds[0]).all():
            return self._of_alike(rows, int(kinds[0]), oldest_us)
        order: list[int] = []
        parts = []
        for kind in dict.fromkeys(kinds.tolist()):
            chosen = kinds == kind
            order += chosen.nonzero()[0].tolist()
            parts.append(self._of_alike(rows.selected(chosen), kind, oldest_us))
        return _ordered(parts, order)

    def _of_alike(self, rows: RowBatch, flags: int, oldest_us: int | None) -> ViewRows:
        """Decode rows of one definition whose values lie alike."""
        kind = rows.tag + _VALUES[flags]
        reader = self._reader(kind)
        if len(rows.flags) < BATCH_MIN or not reader.reads_batches:
            return self._of_one_kind(kind, rows.listed(), oldest_us)
        decoded = reader.rows.read_batch(rows)
        late: list[int] = []
        if oldest_us is not None:
            late = (decoded.event_us < oldest_us).nonzero()[0].tolist()
        return self._rows(reader, decoded, late, len(rows.flags))

    def _of_one_kind(
        self, kind: bytes | None, rows: Sequence[bytes | None], oldest_us: int | None
    ) -> ViewRows:
        """Decode rows of one definition whose values lie alike."""
        count = len(rows)
        if kind is None:
            return self._absent(count)
        reader = self._reader(kind)
        decoded = reader.rows.read(cast("Any", rows))
        late: list[int] = []
        if oldest_us is not None and min(decoded.event_us) < oldest_us:
            late = [place for place, us in enumerate(decoded.event_us) if us < oldest_us]
        return self._rows(reader, decoded, late, count)

    def _rows(self, reader: _Reader, decoded: Decoded, late: list[int], count: int) -> ViewRows:
        """What was decoded, without the values of rows that are too old."""
        values = decoded.values
        for name in reader.lacking:
            values[name] = [None] * count
        status = [Status.PRESENT] * count
        if late:
            values = {name: plain(column) for name, column in values.items()}
            for place in late:
                status[place] = Status.OUTSIDE_MAX_AGE
                for column in values.values():
                    column[place] = None
        return ViewRows(
            status=status,
            event_us=decoded.event_us,
            created_us=decoded.created_us,
            write_us=decoded.write_us,
            definition=[reader.definition] * count,
            values=values,
            is_complete=not (late or reader.rows.has_nulls or reader.lacking),
        )

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
class _Reader:
    """How rows of one definition whose values lie alike are read.

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


def _ordered(parts: Sequence[ViewRows], places: Sequence[int]) -> ViewRows:
    """The rows of several parts, one after the other, brought to their places."""
    order = sorted(range(len(places)), key=places.__getitem__)
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
