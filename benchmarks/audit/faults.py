"""Faults that are really made: on the way online, in Redis, in a server, or in the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.audit.declared import KEYS, ON_DEMAND
from benchmarks.audit.replay import (
    HOUR,
    Fault,
    Key,
    Refresh,
    ServerFault,
    World,
    Written,
    history_of,
    keys_of,
    stamped_rows,
    stamps_us,
)
from benchmarks.audit.scene import START, Batch

from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_view import ViewSpec
from tallystick.model_bundle.bundle import Bundle
from tallystick.online_store.redis_commands import mget
from tallystick.point_in_time.on_demand import Transforms
from tallystick.records.causes import Cause

STALE_HOURS: Final = 18
"""Hours for which a writer held the row with which it then overwrote a newer one."""
AHEAD: Final = timedelta(hours=4)
"""How early rows of the future are written."""


@dataclass(frozen=True, kw_only=True)
class Lag(Fault):
    """Runs of materialization from ``first`` to before ``end`` leave the keys out; then they go."""

    cause: Cause = Cause.MATERIALIZATION_LAG
    first: datetime
    end: datetime
    _held: list[pa.Table] = field(default_factory=list)

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        self._held.append(rows)
        if self.first <= refresh.until < self.end:
            return []
        written = [(refresh.world.specs[self.view], table) for table in self._held]
        self._held.clear()
        return written


@dataclass(frozen=True, kw_only=True)
class NoCorrections(Fault):
    """Materialization by event time: a row whose event is online already is left out."""

    cause: Cause = Cause.CORRECTION_NOT_PROPAGATED
    _events_us: dict[Key, int] = field(default_factory=dict)

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        stamped = list(
            zip(keys_of(rows, self.view), stamps_us(rows, "event_time").tolist(), strict=True)
        )
        new = [event_us > self._events_us.get(key, event_us - 1) for key, event_us in stamped]
        for key, event_us in stamped:
            self._events_us[key] = max(event_us, self._events_us.get(key, event_us))
        return super().feed(refresh, rows.filter(pa.array(new, pa.bool_())))


@dataclass(frozen=True, kw_only=True)
class Dropped(Fault):
    """The keys never go online."""

    cause: Cause = Cause.ENTITY_MISSING

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        del refresh, rows
        return []


@dataclass(frozen=True, kw_only=True)
class Redefined(Fault):
    """From ``first`` on the keys' rows are written under a definition with narrower numbers."""

    cause: Cause = Cause.DEFINITION_CHANGED
    first: datetime

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        world = refresh.world
        specs = world.specs if refresh.until < self.first else world.redefined
        return [(specs[self.view], rows)]


@dataclass(frozen=True, kw_only=True)
class Cast(Fault):
    """A column is cast on the way online, or its nulls are filled."""

    cause: Cause = Cause.TYPE_OR_PRECISION

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        for name, cast in CASTS[self.view].items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, cast(rows[name]))
        return super().feed(refresh, rows)


def _to_float32(column: Any) -> Any:
    return column.cast(pa.float32()).cast(pa.float64())


def _to_seconds(column: Any) -> Any:
    return column.cast(pa.timestamp("s", tz="UTC"), safe=False).cast(column.type)


CASTS: Final[dict[str, dict[str, Callable[[Any], Any]]]] = {
    "activity": {"score": _to_float32, "spend": pc.trunc, "last_seen": _to_seconds},
    "state": {"price": pc.trunc, "stock": lambda column: pc.fill_null(column, 0)},
    "pairing": {"ratio": lambda column: pc.fill_null(column, 0.0), "total": _to_float32},
    "profile": {"size": _to_float32, "capacity": lambda column: pc.fill_null(column, 0)},
}
"""View → column → its cast on the way."""


@dataclass(frozen=True, kw_only=True)
class Early(Fault):
    """Rows are written hours before they are known."""

    cause: Cause = Cause.EARLY_VISIBILITY

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        after, until = refresh.after, refresh.until
        ahead = None if after is None else after + AHEAD
        rows = refresh.world.visible(self.view, after=ahead, until=until + AHEAD)
        mine = [key in self.keys for key in keys_of(rows, self.view)]
        return super().feed(refresh, rows.filter(pa.array(mine, pa.bool_())))


@dataclass(frozen=True, kw_only=True)
class Overwritten(Fault):
    """A writer that does not compare puts back a row that it had read hours ago.

    Attributes:
        moments: Hour at which it does → keys.
    """

    cause: Cause = Cause.OUT_OF_ORDER_WRITE
    moments: Mapping[int, frozenset[Key]]
    _read: dict[bytes, bytes] = field(default_factory=dict)

    def write_past(self, world: World, hour: int) -> None:
        """See :class:`Fault`."""
        names = world.redis_keys(self.view, self.moments.get(hour, ()))
        if names:
            world.client.mset({name: self._read[name] for name in names})
        coming = world.redis_keys(self.view, self.moments.get(hour + STALE_HOURS, ()))
        for name, value in zip(coming, mget(world.client, coming), strict=True):
            assert value is not None, "the injector chose a key that is not online"
            self._read[name] = value


@dataclass(frozen=True, kw_only=True)
class OtherTtl(ServerFault):
    """A server whose definition of the view has another ttl, or none."""

    cause: Cause = Cause.EXPIRED_OR_TTL
    ttl_us: int | None

    def serve(self, bundle: Bundle) -> Bundle:
        """See :class:`ServerFault`."""
        contract = bundle.contract
        views = tuple(
            # Made anew: a copy would keep the hash of the definition.
            use.model_copy(
                update={"spec": ViewSpec(**use.spec.model_dump() | {"ttl_us": self.ttl_us})}
            )
            if use.name == self.view
            else use
            for use in contract.views
        )
        return replace(bundle, contract=contract.model_copy(update={"views": views}))


@dataclass(frozen=True, kw_only=True)
class Edited(ServerFault):
    """A server with another function than the contract's.

    Attributes:
        rows: Numbers of the predictions that it makes.
    """

    cause: Cause = Cause.TRANSFORM
    view: str = ON_DEMAND
    rows: frozenset[int]

    def routed(self, batch: Batch) -> Sequence[bool]:
        """See :class:`ServerFault`."""
        return [number in self.rows for number in range(batch.first, batch.first + batch.rows)]

    def serve(self, bundle: Bundle) -> Bundle:
        """See :class:`ServerFault`."""
        return replace(bundle, transforms=Transforms({ON_DEMAND: _edited}))


def _edited(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The on-demand function after a careless edit."""
    names = ("amount", "price", "score", "grade")
    rows = [
        None if None in row else row for row in zip(*(inputs[name] for name in names), strict=True)
    ]
    return {
        "value": [row and row[0] * row[1] * 1.02 + row[2] for row in rows],
        "level": [row and len(row[3]) + round(row[0]) for row in rows],
    }


@dataclass(frozen=True, kw_only=True)
class Rewritten(Fault):
    """Rows of history are deleted or edited after they were served.

    Attributes:
        deleted: Key, event and created time (microseconds) of rows that go.
        edited: The same of rows that get other values.
    """

    cause: Cause = Cause.SOURCE_REWRITTEN
    deleted: frozenset[tuple[Key, int, int]]
    edited: frozenset[tuple[Key, int, int]]

    def rewrite(self, repo: Repo) -> None:
        """See :class:`Fault`."""
        table = history_of(repo, self.view)
        rows = stamped_rows(table, self.view)
        edited = pa.array([row in self.edited for row in rows])
        columns = {
            name: table[name]
            if name.endswith("_time") or name in KEYS[self.view]
            else pc.if_else(edited, _other(table[name]), table[name])
            for name in table.column_names
        }
        remaining = pa.array([row not in self.deleted for row in rows])
        path = repo.path / "data" / f"{self.view}.parquet"
        pq.write_table(pa.table(columns).filter(remaining), path)


def _other(column: Any) -> Any:
    """Other values of the same type, which no cast would explain."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return pc.invert(column)
    if pa.types.is_string(kind):
        return pc.binary_join_element_wise(column, "er", "")
    if pa.types.is_timestamp(kind):
        return pc.add(column, pa.scalar(timedelta(days=1), pa.duration("us")))
    if pa.types.is_integer(kind):
        return pc.add(pc.multiply(column, pa.scalar(3, kind)), pa.scalar(7, kind))
    return pc.add(column, pa.scalar(np.float32(7.5), kind))


@dataclass(frozen=True, kw_only=True)
class Stacked(Fault):
    """A lag of rows that something else is done to as well, so that either may be the cause.

    Attributes:
        lag: Holds the rows back.
        other: What is done to those that are written, in the end.
    """

    cause: Cause = Cause.MATERIALIZATION_LAG
    lag: Lag
    other: Cast | Redefined

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """See :class:`Fault`."""
        return [
            written
            for _, table in self.lag.feed(refresh, rows)
            for written in self.other.feed(refresh, table)
        ]

    def cause_at(self, right: pa.Table, served: pa.Table, row: int) -> Cause:
        """See :class:`Fault`.

        Another definition explains whatever its row has. A cast explains a value only if it is the
        right row that was cast; else the row is the wrong one.
        """

        def same(name: str) -> bool:
            column = f"view.{self.view}.{name}"
            return bool(right[column][row].as_py() == served[column][row].as_py())

        if isinstance(self.other, Redefined):
            # A request without a row has no definition either.
            online = served[f"view.{self.view}.definition"][row].is_valid
            is_other = online and not same("definition")
        else:
            is_other = same("event_time") and same("created_time")
        return self.other.cause if is_other else self.lag.cause


def moment_of(hour: int) -> datetime:
    """The beginning of an hour of the scene."""
    return START + hour * HOUR
