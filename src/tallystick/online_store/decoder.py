"""From what Redis answered to columns with a status for each row; shared by reader and plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tallystick.errors import DamagedError, Problem
from tallystick.online_store.packed import RowCodec, definition_of
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
        self._codecs = {spec.definition_hash: RowCodec(spec)}

    def unknown(self, rows: Sequence[bytes | None]) -> set[str]:
        """Hashes of the definitions that have to be learnt before these rows can be decoded.

        Raises:
            DamagedError: Something that is no row lies in Redis.
        """
        return {definition_of(row) for row in rows if row is not None} - self._codecs.keys()

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
        for found, text in definitions.items():
            if text is not None:
                self._codecs[found] = RowCodec(ViewSpec.model_validate_json(text))

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
        count = len(rows)
        answer = ViewRows(
            status=[Status.NOT_FOUND] * count,
            event_us=[None] * count,
            created_us=[None] * count,
            write_us=[None] * count,
            definition=[None] * count,
            values={name: [None] * count for name in self._columns},
        )
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows):
            if row is not None:
                places.setdefault(definition_of(row), []).append(place)
        ttl_us = self._spec.ttl_us
        oldest_us = None if ttl_us is None else request_time_us - ttl_us
        for definition, where in places.items():
            packed = [row for row in rows if row is not None and definition_of(row) == definition]
            self._scatter(answer, definition, where, packed, oldest_us)
        return answer

    def _scatter(
        self,
        answer: ViewRows,
        definition: str,
        places: Sequence[int],
        packed: Sequence[bytes],
        oldest_us: int | None,
    ) -> None:
        """Decode rows of one definition and put them into their places."""
        codec = self._codecs[definition]
        if sorted(codec.spec.key_names) != sorted(self._spec.key_names):
            return  # the row is of another entity, whose key happens to have the same value
        stored = {column.name: column.dtype for column in codec.spec.columns}
        names = [name for name in self._columns if stored.get(name) == self._dtypes[name]]
        decoded = (
            codec.decode_protos(packed, names) if self._protos else codec.decode(packed, names)
        )
        fresh = [oldest_us is None or event_us >= oldest_us for event_us in decoded.event_us]
        for row, place in enumerate(places):
            answer.status[place] = Status.PRESENT if fresh[row] else Status.OUTSIDE_MAX_AGE
            answer.event_us[place] = decoded.event_us[row]
            answer.created_us[place] = decoded.created_us[row]
            answer.write_us[place] = decoded.write_us[row]
            answer.definition[place] = definition
        for name in names:
            column, values = answer.values[name], decoded.values[name]
            for row, place in enumerate(places):
                if fresh[row]:
                    column[place] = values[row]
