"""From what Redis answered to columns with a status for each row; shared by reader and plugin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from operator import itemgetter
from typing import Any, Final, cast

from tallystick.errors import DamagedError, Problem
from tallystick.online_store.layout import TAG, VALUES, view_tag
from tallystick.online_store.packed import RowCodec, RowReader
from tallystick.view import ViewSpec

_VALUES: Final = [bytes((flags & VALUES,)) for flags in range(256)]


class Status(StrEnum):
    """Whether a view has a row for a key at the request's time."""

    PRESENT = "PRESENT"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


@dataclass(slots=True)  # not frozen: that triples the time to make one, on the hottest path
class ViewRows:
    """One view's rows for one request, column by column, in the order of the request's rows.

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
    event_us: list[int | None]
    created_us: list[int | None]
    write_us: list[int | None]
    definition: list[str | None]
    values: dict[str, list[Any]]
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
        """What reads rows with this tag and these flags; made once."""
        reader = self._readers.get(kind)
        if reader is None:
            codec = self._codecs.get(kind[:TAG])
            if codec is None:
                raise UnknownDefinitionError(kind[:TAG])
            names = self._common(codec)
            reader = self._readers[kind] = _Reader(
                rows=codec.reader(kind[TAG], names, protos=self._protos),
                definition=codec.spec.definition_hash,
                lacking=[name for name in self._columns if name not in names],
            )
        return reader

    def learn(self, tag: bytes, written: bytes | None) -> None:
        """Take a definition, as Redis has it for a tag.

        Raises:
            DamagedError: Redis has none, or another one.
        """
        spec = None if written is None else ViewSpec.model_validate_json(written)
        if spec is None or RowCodec(spec, self._name).tag != tag:
            raise DamagedError(
                f"Rows of view {self._name} were written under a definition that Redis "
                "no longer has.",
                [Problem("definition", "a known tag", tag.hex())],
                hint="Materialize the view again.",
            )
        self._add(spec)

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
        ttl_us = self._spec.ttl_us
        oldest_us = None if ttl_us is None else request_time_us - ttl_us
        if not rows:
            return self._absent(0)
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
        return _ordered(parts, sorted(range(len(order)), key=order.__getitem__))

    def _of_one_kind(
        self, kind: bytes | None, rows: Sequence[bytes | None], oldest_us: int | None
    ) -> ViewRows:
        """Decode rows of one definition whose values lie alike."""
        count = len(rows)
        if kind is None:
            return self._absent(count)
        reader = self._reader(kind)
        decoded = reader.rows.read(cast("Sequence[bytes]", rows))
        values = decoded.values
        for name in reader.lacking:
            values[name] = [None] * count
        status = [Status.PRESENT] * count
        is_complete = not reader.rows.has_nulls and not reader.lacking
        event_us = cast("list[int]", decoded.event_us)
        if oldest_us is not None and min(event_us) < oldest_us:
            is_complete = False
            for place, moment_us in enumerate(event_us):
                if moment_us < oldest_us:
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
            is_complete=is_complete,
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
        lacking: Columns wanted that it has not.
    """

    rows: RowReader
    definition: str
    lacking: list[str]


def _ordered(parts: Sequence[ViewRows], order: Sequence[int]) -> ViewRows:
    """The rows of several parts, of which row ``order[n]`` of all parts together comes n-th."""
    take = itemgetter(*order)  # there are two parts, and so two rows at least

    def of(lists: Iterable[list[Any]]) -> list[Any]:
        return list(take(list(chain.from_iterable(lists))))

    return ViewRows(
        status=of(part.status for part in parts),
        event_us=of(part.event_us for part in parts),
        created_us=of(part.created_us for part in parts),
        write_us=of(part.write_us for part in parts),
        definition=of(part.definition for part in parts),
        values={name: of(part.values[name] for part in parts) for name in parts[0].values},
        is_complete=all(part.is_complete for part in parts),
    )
