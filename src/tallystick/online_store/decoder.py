"""From what Redis answered to columns with a status for each row; shared by reader and plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tallystick.errors import DamagedError, Problem
from tallystick.online_store.packed import HEAD_BYTES, RowCodec, definition_of, head_of
from tallystick.view import ViewSpec


class Status(StrEnum):
    """Whether a view has a row for a key at the request's time."""

    PRESENT = "PRESENT"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


@dataclass(frozen=True, slots=True)
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
    """

    status: list[Status]
    event_us: list[int | None]
    created_us: list[int | None]
    write_us: list[int | None]
    definition: list[str | None]
    values: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How rows of one definition are read.

    Attributes:
        codec: The definition's codec.
        names: Columns wanted that it has, by name and type.
        lacking: Columns wanted that it has not.
        same_entity: Whether its rows belong to the same entity.
    """

    codec: RowCodec
    names: list[str]
    lacking: list[str]
    same_entity: bool


class ViewDecoder:
    """Reads a view's rows, also those that were written under another definition of it.

    Args:
        spec: The definition by which rows are wanted; its ttl is enforced.
        columns: Columns wanted.
        protos: Whether values are given as Feast's ``Value`` rather than Python values.
    """

    def __init__(self, spec: ViewSpec, columns: Sequence[str], *, protos: bool = False) -> None:
        self._spec = spec
        self._columns = tuple(columns)
        self._protos = protos
        self._dtypes = {column.name: column.dtype for column in spec.columns}
        self._readings: dict[bytes, _Reading] = {}
        self._add(spec)

    def _add(self, written: ViewSpec) -> None:
        """Work out once how rows of a definition are read."""
        stored = {column.name: column.dtype for column in written.columns}
        self._readings[head_of(written.definition_hash)] = _Reading(
            codec=RowCodec(written),
            names=[name for name in self._columns if stored.get(name) == self._dtypes[name]],
            lacking=[name for name in self._columns if stored.get(name) != self._dtypes[name]],
            same_entity=sorted(written.key_names) == sorted(self._spec.key_names),
        )

    def unknown(self, rows: Sequence[bytes | None]) -> set[str]:
        """Hashes of the definitions that have to be learnt before these rows can be decoded.

        Raises:
            DamagedError: Something that is no row lies in Redis.
        """
        heads = {row[:HEAD_BYTES] for row in rows if row is not None}
        return {definition_of(head) for head in heads - self._readings.keys()}

    def learn(self, definitions: Mapping[str, bytes | None]) -> None:
        """Take definitions by hash, as they lie in Redis.

        Raises:
            DamagedError: One is not there.
        """
        missing = [found for found, text in definitions.items() if text is None]
        if missing:
            raise DamagedError(
                f"Rows of view {self._spec.name} were written under a definition that Redis "
                "no longer has.",
                [Problem("definition", "a known hash", found) for found in missing],
                hint="Materialize the view again.",
            )
        for text in definitions.values():
            if text is not None:
                self._add(ViewSpec.model_validate_json(text))

    def decode(self, rows: Sequence[bytes | None], *, request_time_us: int) -> ViewRows:
        """Decode what Redis answered for each row of a request.

        Args:
            rows: Packed rows, None where there is none.
            request_time_us: Time of the request: a row whose event time is more than the view's ttl
                before it is OUTSIDE_MAX_AGE; the window's end is included.

        Raises:
            DamagedError: A row cannot be read.
            KeyError: A definition is unknown; see :meth:`unknown`.
        """
        ttl_us = self._spec.ttl_us
        oldest_us = None if ttl_us is None else request_time_us - ttl_us
        heads = [None if row is None else row[:HEAD_BYTES] for row in rows]
        found = {head for head in heads if head is not None}
        if len(found) == 1 and None not in heads:
            present = [row for row in rows if row is not None]
            return self._of_one_definition(self._readings[found.pop()], present, oldest_us)
        answer = self._absent(len(rows))
        for head in found:
            places = [place for place, other in enumerate(heads) if other == head]
            packed = [row for row in (rows[place] for place in places) if row is not None]
            part = self._of_one_definition(self._readings[head], packed, oldest_us)
            for whole, some in zip(self._lists(answer), self._lists(part), strict=True):
                for place, value in zip(places, some, strict=True):
                    whole[place] = value
        return answer

    def _absent(self, count: int) -> ViewRows:
        return ViewRows(
            status=[Status.NOT_FOUND] * count,
            event_us=[None] * count,
            created_us=[None] * count,
            write_us=[None] * count,
            definition=[None] * count,
            values={name: [None] * count for name in self._columns},
        )

    def _of_one_definition(
        self, reading: _Reading, packed: Sequence[bytes], oldest_us: int | None
    ) -> ViewRows:
        """Decode rows that were all written under one definition."""
        count = len(packed)
        if not reading.same_entity:
            return self._absent(count)  # the other entity's key happens to have the same value
        codec, names = reading.codec, reading.names
        decoded = (
            codec.decode_protos(packed, names) if self._protos else codec.decode(packed, names)
        )
        status = [Status.PRESENT] * count
        values = decoded.values
        for name in reading.lacking:
            values[name] = [None] * count
        if oldest_us is not None and min(decoded.event_us, default=oldest_us) < oldest_us:
            for place, event_us in enumerate(decoded.event_us):
                if event_us < oldest_us:
                    status[place] = Status.OUTSIDE_MAX_AGE
                    for column in values.values():
                        column[place] = None
        return ViewRows(
            status=status,
            event_us=[*decoded.event_us],
            created_us=decoded.created_us,
            write_us=[*decoded.write_us],
            definition=[codec.spec.definition_hash] * count,
            values=values,
        )

    def _lists(self, rows: ViewRows) -> list[list[Any]]:
        """All lists of ``rows``, always in the same order."""
        return [
            rows.status,
            rows.event_us,
            rows.created_us,
            rows.write_us,
            rows.definition,
            *(rows.values[name] for name in self._columns),
        ]
