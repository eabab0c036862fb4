"""What goes wrong, done for real: on the way online, in Redis, in a server, or in the history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.audit.declared import KEYS, ON_DEMAND
from benchmarks.audit.replay import HOUR, Key, World, history_of, keys_of, stamps_us
from benchmarks.audit.scene import START, Batch

from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_view import ViewSpec
from tallystick.model_bundle.bundle import Bundle
from tallystick.online_store.redis_commands import mget
from tallystick.point_in_time.on_demand import Transforms
from tallystick.records.record_store import Cause

if TYPE_CHECKING:
    from collections.abc import Sequence

Written: TypeAlias = list[tuple[ViewSpec, pa.Table]]
"""What goes online, by the definition under which it is written."""

DAY_US: Final = 86_400_000_000
STALE_HOURS: Final = 18
"""Hours for which a writer held the row with which it then overwrote a newer one."""
AHEAD: Final = timedelta(hours=4)
"""How early rows of the future are written."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong for some keys of one view; by itself it does nothing.

    Attributes:
        cause: The cause that each value has to get that is wrong because of it.
        view: The view.
        keys: Keys of that view.
        feeds: Whether it stands in the way of the keys' rows.
        meddles: Whether it writes to Redis past Tallystick.
        serves: Whether it is a server.
        rewrites: Whether it changes history once all is served.
    """

    cause: Cause
    view: str
    keys: frozenset[Key] = frozenset()
    feeds: bool = False
    meddles: bool = False
    serves: bool = False
    rewrites: bool = False

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """What is written online of the keys.

        Args:
            world: Where it happens.
            rows: What should be: their rows that became visible in (after, until].
            after: End of the last run.
            until: Now.
        """
        del after, until
        return [(world.specs[self.view], rows)]

    def meddle(self, world: World, hour: int) -> None:
        """Write to Redis, once the hour's rows are online."""

    def routed(self, batch: Batch) -> Sequence[bool]:
        """Which rows of a request this server answers."""
        return [key in self.keys for key in _keys_of_batch(batch, self.view)]

    def serve(self, bundle: Bundle) -> Bundle:
        """What the server serves instead of the champion's bundle."""
        return bundle

    def rewrite(self, repo: Repo) -> None:
        """Change history."""

    def cause_at(self, right: pa.Table, served: pa.Table, row: int) -> Cause:
        """The cause that a wrong value has to get.

        Args:
            right: The log without faults.
            served: The log with them.
            row: The value's row in both.
        """
        del right, served, row
        return self.cause


@dataclass(frozen=True, kw_only=True)
class Lag(Fault):
    """Runs of materialization leave the keys out for a while, and then catch up.

    Attributes:
        first: The first run that does.
        end: The first that does not any more.
    """

    cause: Cause = "materialization_lag"
    feeds: bool = True
    first: datetime
    end: datetime
    _held: list[pa.Table] = field(default_factory=list)

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del after
        self._held.append(rows)
        if self.first <= until < self.end:
            return []
        written = [(world.specs[self.view], table) for table in self._held]
        self._held.clear()
        return written


@dataclass(frozen=True, kw_only=True)
class NoCorrections(Fault):
    """Materialization by event time: a row whose event is online already is left out."""

    cause: Cause = "correction_not_propagated"
    feeds: bool = True
    _events_us: dict[Key, int] = field(default_factory=dict)

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del after, until
        keys, events = keys_of(rows, self.view), stamps_us(rows, "event_time").tolist()
        new = [
            event_us > self._events_us.get(key, event_us - 1)
            for key, event_us in zip(keys, events, strict=True)
        ]
        for key, event_us in zip(keys, events, strict=True):
            self._events_us[key] = max(event_us, self._events_us.get(key, event_us))
        return [(world.specs[self.view], rows.filter(pa.array(new, pa.bool_())))]


@dataclass(frozen=True, kw_only=True)
class Dropped(Fault):
    """The keys never go online."""

    cause: Cause = "entity_missing"
    feeds: bool = True

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del world, rows, after, until
        return []


@dataclass(frozen=True, kw_only=True)
class Redefined(Fault):
    """From some run on the keys' rows are written under a definition with narrower numbers.

    Attributes:
        first: The first run that does.
    """

    cause: Cause = "definition_changed"
    feeds: bool = True
    first: datetime

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del after
        specs = world.specs if until < self.first else world.redefined
        return [(specs[self.view], rows)]


@dataclass(frozen=True, kw_only=True)
class Cast(Fault):
    """A column is cast on the way online, or its nulls are filled."""

    cause: Cause = "type_or_precision"
    feeds: bool = True

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del after, until
        for name, cast in CASTS[self.view].items():
            place = rows.schema.get_field_index(name)
            rows = rows.set_column(place, name, cast(rows[name]))
        return [(world.specs[self.view], rows)]


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
"""View → column → what becomes of it on the way."""


@dataclass(frozen=True, kw_only=True)
class Early(Fault):
    """Rows are written hours before they are known."""

    cause: Cause = "early_visibility"
    feeds: bool = True

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        del rows
        ahead = None if after is None else after + AHEAD
        coming = world.visible(self.view, after=ahead, until=until + AHEAD)
        mine = [key in self.keys for key in keys_of(coming, self.view)]
        return [(world.specs[self.view], coming.filter(pa.array(mine, pa.bool_())))]


@dataclass(frozen=True, kw_only=True)
class Overwritten(Fault):
    """A writer that does not compare puts back what it had read hours ago.

    Attributes:
        moments: Hour at which it does → keys.
    """

    cause: Cause = "out_of_order_write"
    meddles: bool = True
    moments: Mapping[int, frozenset[Key]]
    _read: dict[bytes, bytes] = field(default_factory=dict)

    def meddle(self, world: World, hour: int) -> None:
        """See :class:`Fault`."""
        names = world.redis_keys(self.view, self.moments.get(hour, ()))
        if names:
            world.client.mset({name: self._read[name] for name in names.values()})
        coming = world.redis_keys(self.view, self.moments.get(hour + STALE_HOURS, ()))
        ordered = list(coming.values())
        for name, value in zip(ordered, mget(world.client, ordered), strict=True):
            assert value is not None, "the injector chose a key that is not online"
            self._read[name] = value


@dataclass(frozen=True, kw_only=True)
class OtherTtl(Fault):
    """A server whose definition of the view has another ttl.

    Attributes:
        ttl_us: What it takes it for; None for no ttl.
    """

    cause: Cause = "expired_or_ttl"
    serves: bool = True
    ttl_us: int | None

    def serve(self, bundle: Bundle) -> Bundle:
        """See :class:`Fault`."""
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
class Edited(Fault):
    """A server with another function than the contract's.

    Attributes:
        rows: Numbers of the predictions that it makes.
    """

    cause: Cause = "transform"
    view: str = ON_DEMAND
    serves: bool = True
    rows: frozenset[int]

    def routed(self, batch: Batch) -> Sequence[bool]:
        """See :class:`Fault`."""
        return [number in self.rows for number in range(batch.first, batch.first + batch.rows)]

    def serve(self, bundle: Bundle) -> Bundle:
        """See :class:`Fault`."""
        return replace(bundle, transforms=Transforms({ON_DEMAND: _edited}))


def _edited(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The on-demand function after a careless edit."""
    names = ("amount", "price", "score", "grade")
    rows = list(zip(*(inputs[name] for name in names), strict=True))
    missing = [None in row for row in rows]
    return {
        "value": [
            None if gone else amount * price * 1.02 + score
            for (amount, price, score, _), gone in zip(rows, missing, strict=True)
        ],
        "level": [
            None if gone else len(grade) + round(amount)
            for (amount, _, _, grade), gone in zip(rows, missing, strict=True)
        ],
    }


@dataclass(frozen=True, kw_only=True)
class Rewritten(Fault):
    """Rows of history are deleted or edited after they were served.

    Attributes:
        deleted: Key, event and created time (microseconds) of rows that go.
        edited: The same of rows that get other values.
    """

    cause: Cause = "source_rewritten"
    rewrites: bool = True
    deleted: frozenset[tuple[Key, int, int]]
    edited: frozenset[tuple[Key, int, int]]

    def rewrite(self, repo: Repo) -> None:
        """See :class:`Fault`."""
        table = history_of(repo, self.view)
        event = stamps_us(table, "event_time").tolist()
        created = event
        if "created_time" in table.column_names:
            created = stamps_us(table, "created_time").tolist()
        rows = list(zip(keys_of(table, self.view), event, created, strict=True))
        edited = pa.array([row in self.edited for row in rows])
        columns = {
            name: table[name]
            if name.endswith("_time") or name in {"member", "place"}
            else pc.if_else(edited, _other(table[name]), table[name])
            for name in table.column_names
        }
        kept = pa.array([row not in self.deleted for row in rows])
        path = repo.path / "data" / f"{self.view}.parquet"
        pq.write_table(pa.table(columns).filter(kept), path)


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

    cause: Cause = "materialization_lag"
    feeds: bool = True
    lag: Lag
    other: Cast | Redefined

    def feed(
        self, world: World, rows: pa.Table, *, after: datetime | None, until: datetime
    ) -> Written:
        """See :class:`Fault`."""
        return [
            written
            for _, table in self.lag.feed(world, rows, after=after, until=until)
            for written in self.other.feed(world, table, after=after, until=until)
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
            # Where nothing is online there is no definition either.
            is_other = served[f"view.{self.view}.definition"][row].is_valid and not same(
                "definition"
            )
        else:
            is_other = same("event_time") and same("created_time")
        return self.other.cause if is_other else self.lag.cause


def moment_of(hour: int) -> datetime:
    """The beginning of an hour of the scene."""
    return START + hour * HOUR


def _keys_of_batch(batch: Batch, view: str) -> list[Key]:
    return list(zip(*(batch.columns[name] for name in KEYS[view]), strict=True))
