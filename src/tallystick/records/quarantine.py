"""Which requests an incident touched: one rule, for training and for monitoring alike.

An incident touches a request of its time whose key is among the affected ones: one of the values
that its record lists; or, if it lists none, one from the first to the last. Keys are compared part
by part: text by code points, numbers as numbers, and null comes first. A record cannot say NaN, so
that a NaN counts as null. Where a key cannot be compared, since the definitions have changed since,
every key counts as touched.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from tallystick.clock import arrow_to_us, to_us
from tallystick.definitions.contract import ViewUse
from tallystick.records.record_store import AffectedKeys, Cause, Incident, KeyValue

if TYPE_CHECKING:
    import pyarrow as pa

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Int8s = np.ndarray[Any, np.dtype[np.int8]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]

REPAIRABLE: Final[frozenset[Cause]] = frozenset(
    {
        "materialization_lag",
        "late_arrival",
        "correction_not_propagated",
        "out_of_order_write",
        "expired_or_ttl",
        "entity_missing",
        "definition_changed",
        "type_or_precision",
        "transform",
    }
)
"""Causes that leave no doubt about history: what should have been served is known."""


@dataclass(frozen=True)
class Quarantine:
    """What becomes of the requests that incidents touched.

    A request that incidents of both kinds touched is left out.

    Attributes:
        left_out: Incidents whose requests are left out.
        repaired: Incidents whose requests are kept, with the values expected.
        repairs: Whether any were to be.
    """

    left_out: tuple[Incident, ...] = ()
    repaired: tuple[Incident, ...] = ()
    repairs: bool = False

    @classmethod
    def of(
        cls, incidents: Iterable[Incident], *, model: str, views: Collection[str], repair: bool
    ) -> Self:
        """Sort the incidents of a model's views.

        Args:
            incidents: Of any model and view.
            model: The model's name.
            views: Names of its views.
            repair: Whether to keep what can be repaired; if not, all is left out.
        """
        mine = [each for each in incidents if each.model == model and each.view in views]
        causes = REPAIRABLE if repair else frozenset()
        return cls(
            left_out=tuple(each for each in mine if each.cause not in causes),
            repaired=tuple(each for each in mine if each.cause in causes),
            repairs=repair,
        )


def view_names(uses: Iterable[ViewUse]) -> set[str]:
    """The names under which incidents speak of views: their own, and their aliases."""
    return {name for use in uses for name in (use.name, use.spec.name)}


def touched(
    incidents: Iterable[Incident], times: pa.ChunkedArray, keys: Mapping[str, pa.ChunkedArray]
) -> Bools:
    """Whether any of the incidents touched each request.

    Args:
        incidents: The incidents; one that is open has no end.
        times: Request times, none null.
        keys: Entity key → its value in each request.

    Returns:
        Of shape (requests,).
    """
    request_us = np.asarray(arrow_to_us(times).to_numpy(), dtype=np.int64)
    parts: dict[str, _Part | None] = {}
    result = np.zeros(len(request_us), dtype=np.bool_)
    for incident in incidents:
        inside = ~result & (request_us >= to_us(incident.start))
        if not incident.is_open:
            inside &= request_us <= to_us(incident.end)
        rows = np.flatnonzero(inside)
        if len(rows) and incident.keys is not None:
            for name in incident.keys.names:
                if name in keys and name not in parts:
                    parts[name] = _part(keys[name])
            rows = _affected(incident.keys, parts, rows)
        result[rows] = True
    return result


class _Part(Protocol):
    """One part of the keys of some requests; every column has shape (requests,)."""

    def at(self, rows: Int64s) -> _Part:
        """The part of some of the requests, by ascending position."""
        ...

    def is_like(self, value: KeyValue) -> bool:
        """Whether a recorded value can be compared with it."""
        ...

    def signs(self, bound: KeyValue) -> Int8s:
        """-1, 0 or 1 where it is less than the bound, the same, or greater."""
        ...

    def places(self, values: Sequence[Any]) -> Int64s:
        """The position of the value that it is, -1 for none of them; null is none."""
        ...

    @property
    def is_null(self) -> Bools:
        """Where there is none."""
        ...


@dataclass(frozen=True)
class _Numbers:
    """Integers, floats or booleans, in the widest type of their kind."""

    values: np.ndarray[Any, Any]
    is_null: Bools

    def at(self, rows: Int64s) -> _Numbers:
        if len(rows) == len(self.values):
            return self
        return _Numbers(self.values[rows], self.is_null[rows])

    def is_like(self, value: KeyValue) -> bool:
        return value is None or isinstance(value, int | float)

    def signs(self, bound: KeyValue) -> Int8s:
        if bound is None:
            return (~self.is_null).astype(np.int8)
        near, side = self._nearest(bound)
        # What is equal to the nearest number is on the bound's side of it.
        above = self.values > near if side <= 0 else self.values >= near
        below = self.values < near if side >= 0 else self.values <= near
        return _signs(above, below, self.is_null)

    def places(self, values: Sequence[Any]) -> Int64s:
        near = [self._nearest(value) for value in values]
        same = {number: at for at, (number, side) in enumerate(near) if side == 0}
        ordered = np.array(sorted(same), dtype=self.values.dtype)
        ranks = _ranks(self.values, ordered)
        positions = np.array([same[number] for number in sorted(same)] + [-1], dtype=np.int64)
        return np.where(self.is_null, -1, positions[ranks])

    def _nearest(self, bound: Any) -> tuple[Any, int]:
        """A number of this type with none between it and the bound, and the sign of their gap.

        Python compares integers with floats exactly; NumPy would round the integer.
        """
        if self.values.dtype == np.int64:
            limits = np.iinfo(np.int64)
            inside = min(max(bound, int(limits.min)), int(limits.max))
            near: Any = math.floor(inside)
        else:
            try:
                near = float(bound)
            except OverflowError:
                near = math.inf if bound > 0 else -math.inf
        return near, int(near > bound) - int(near < bound)


@dataclass(frozen=True)
class _Text:
    """Text; Arrow compares its bytes, which is the order of code points."""

    values: pa.Array
    is_null: Bools

    def at(self, rows: Int64s) -> _Text:
        if len(rows) == len(self.values):
            return self
        return _Text(self.values.take(rows), self.is_null[rows])

    def is_like(self, value: KeyValue) -> bool:
        return value is None or isinstance(value, str)

    def signs(self, bound: KeyValue) -> Int8s:
        import pyarrow as pa
        import pyarrow.compute as pc

        if bound is None:
            return (~self.is_null).astype(np.int8)
        limit = pa.scalar(bound, pa.large_string())
        above, below = (
            compare(self.values, limit).fill_null(False).to_numpy(zero_copy_only=False)
            for compare in (pc.greater, pc.less)
        )
        return _signs(above, below, self.is_null)

    def places(self, values: Sequence[Any]) -> Int64s:
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.index_in(self.values, value_set=pa.array(values, pa.large_string()))
        found = found.fill_null(-1).to_numpy().astype(np.int64)
        return np.where(self.is_null, -1, found)


def _signs(above: Bools, below: Bools, is_null: Bools) -> Int8s:
    """What is above, below or neither as a sign; null is below everything."""
    signs = above.astype(np.int8) - below.astype(np.int8)
    signs[is_null] = -1
    return signs


def _part(column: pa.ChunkedArray) -> _Part | None:
    """The column in a form that can be compared; None if its type is none that a record can say."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as pt

    kind = column.type.value_type if pt.is_dictionary(column.type) else column.type
    if pt.is_floating(kind):
        values = column.cast(pa.float64()).to_numpy()
        return _Numbers(values, np.isnan(values))
    is_null = np.asarray(column.is_null().to_numpy(), dtype=np.bool_)
    if pt.is_integer(kind) or pt.is_boolean(kind):
        return _Numbers(pc.fill_null(column.cast(pa.int64()), 0).to_numpy(), is_null)
    if pt.is_string(kind) or pt.is_large_string(kind):
        text = column.cast(pa.large_string()).combine_chunks()
        return _Text(text, is_null)
    return None


def _affected(keys: AffectedKeys, columns: Mapping[str, _Part | None], rows: Int64s) -> Int64s:
    """Those of some requests whose keys are among the affected ones."""
    found = [columns.get(name) for name in keys.names]
    parts = [part for part in found if part is not None]
    told = [_told(key) for key in keys.values or (keys.first, keys.last)]
    if len(parts) < len(found) or not all(
        part.is_like(value) for key in told for part, value in zip(parts, key, strict=True)
    ):
        return rows
    if keys.values:
        return _among(parts, told, rows)
    first, last = told
    return _between(parts, first, last, rows)


def _told(key: tuple[KeyValue, ...]) -> tuple[KeyValue, ...]:
    """A key as a record that was written and read says it."""
    return tuple(None if isinstance(part, float) and math.isnan(part) else part for part in key)


def _between(
    parts: Sequence[_Part], first: Sequence[KeyValue], last: Sequence[KeyValue], rows: Int64s
) -> Int64s:
    """Those of some requests whose keys are not less than the first and not greater than the last.

    The first part that differs from a bound decides; those that are outside are not looked at
    again.
    """
    low = high = np.zeros(len(rows), dtype=np.int8)
    for part, least, most in zip(parts, first, last, strict=True):
        own = part.at(rows)
        low = np.where(low == 0, own.signs(least), low)
        high = np.where(high == 0, own.signs(most), high)
        inside = (low >= 0) & (high <= 0)
        rows, low, high = rows[inside], low[inside], high[inside]
    return rows


def _among(parts: Sequence[_Part], values: Sequence[tuple[KeyValue, ...]], rows: Int64s) -> Int64s:
    """Those of some requests whose keys are among the values.

    Each beginning of a key has a number; requests for which none of the values begins so are not
    looked at again.
    """
    numbers = np.zeros(len(rows), dtype=np.int64)
    known: dict[tuple[KeyValue, ...], int] = {(): 0}
    for at, part in enumerate(parts):
        own = part.at(rows)
        distinct = list(dict.fromkeys(value[at] for value in values if value[at] is not None))
        place: dict[KeyValue, int] = {value: here for here, value in enumerate(distinct)}
        place[None] = len(distinct)
        places = np.where(own.is_null, len(distinct), own.places(distinct))
        width = len(place)
        begun = {value[: at + 1]: known[value[:at]] * width + place[value[at]] for value in values}
        wanted = np.array(sorted(set(begun.values())), dtype=np.int64)
        numbers = _ranks(np.where(places < 0, -1, numbers * width + places), wanted)
        rank = {number: here for here, number in enumerate(wanted.tolist())}
        known = {begin: rank[number] for begin, number in begun.items()}
        begins = numbers >= 0
        rows, numbers = rows[begins], numbers[begins]
    return rows


def _ranks(values: Any, ordered: Any) -> Int64s:
    """The position of each value among distinct ascending ones, -1 for none of them."""
    if not len(ordered):
        return np.full(len(values), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return np.where(ordered[at] == values, at, -1)
