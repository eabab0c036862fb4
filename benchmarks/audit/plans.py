"""Chooses where faults strike, by what a clean replay served, to make a given share wrong.

A fault strikes keys of a view. How many requests it makes wrong follows from the clean log: those
that were served a corrected row, a row near its ttl, and so on. Keys are taken until that number
is reached. Keys at which the documented evidence would name another cause as well are left out: a
lag that also holds back a correction is called by the correction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Final

import numpy as np
from benchmarks.audit.declared import ON_DEMAND, TTLS
from benchmarks.audit.faults import (
    STALE_HOURS,
    Cast,
    Dropped,
    Early,
    Edited,
    Lag,
    NoCorrections,
    OtherTtl,
    Overwritten,
    Redefined,
    Rewritten,
    Stacked,
    moment_of,
)
from benchmarks.audit.replay import Fault, Key, Played, history_of, keys_of, stamped_rows, stamps_us
from benchmarks.audit.scene import HOUR_US, START_US, Scene
from benchmarks.wide_views import Array

from tallystick.records.causes import Cause

NEVER: Final = -(2**63)
_OVER: Final = 1.05
"""How far beyond the required share keys may go."""


@dataclass(frozen=True)
class Served:
    """What a clean replay served of one view; columns have one value per request, in its order.

    Attributes:
        names: The keys.
        key: Number of the request's key among them.
        request_us: Request time.
        present: Whether a row was there, inside the ttl.
        outside: Whether one was there, outside.
        event_us: Event time of the row, :data:`NEVER` without one.
        created_us: Created time; the event time where the view has none.
        first_us: Number of a key → when its first row became visible, :data:`NEVER` without any.
        original_us: Created time of the first version of the row that was served.
        corrected: Number of a key → when versions of rows with several became visible.
    """

    names: list[Key]
    key: Array
    request_us: Array
    present: Array
    outside: Array
    event_us: Array
    created_us: Array
    first_us: Array
    original_us: Array
    corrected: list[list[int]]

    @cached_property
    def visible_us(self) -> Array:
        """When the row became visible."""
        return np.maximum(self.event_us, self.created_us)

    def counts(self, wrong: Array) -> Array:
        """Requests of each key among those marked."""
        return np.bincount(self.key[wrong], minlength=len(self.names))


class Clean:
    """A clean replay, as the injector looks at it.

    Attributes:
        scene: What was played.
        played: What it left.
    """

    def __init__(self, scene: Scene, played: Played) -> None:
        self.scene = scene
        self.played = played
        self._views: dict[str, Served] = {}

    def served(self, view: str) -> Served:
        """What was served of a view."""
        if view not in self._views:
            self._views[view] = self._read(view)
        return self._views[view]

    @cached_property
    def computable(self) -> Array:
        """Numbers of the predictions whose computed values are there."""
        column = self.played.table[f"feature.{ON_DEMAND}__value"]
        return np.flatnonzero(column.is_valid().to_numpy())

    def _read(self, view: str) -> Served:
        table = self.played.table
        numbers: dict[Key, int] = {}
        key = np.array(
            [numbers.setdefault(each, len(numbers)) for each in keys_of(table, view, "entity.")]
        )
        status = table[f"view.{view}.status"].to_numpy(zero_copy_only=False)
        event_us = stamps_us(table, f"view.{view}.event_time")
        created_us = stamps_us(table, f"view.{view}.created_time")
        versions: dict[tuple[int, int], list[int]] = defaultdict(list)
        for each, event, created in stamped_rows(history_of(self.played.repo, view), view):
            if each in numbers:
                versions[numbers[each], event].append(created)
        first_us = np.full(len(numbers), NEVER)
        corrected: list[list[int]] = [[] for _ in numbers]
        for (number, event), created_all in versions.items():
            visible = [max(event, created) for created in created_all]
            earliest = min(visible)
            if first_us[number] == NEVER or earliest < first_us[number]:
                first_us[number] = earliest
            if len(visible) > 1:
                corrected[number] += visible
        original = [
            min(versions.get((number, event), [NEVER]))
            for number, event in zip(key.tolist(), event_us.tolist(), strict=True)
        ]
        return Served(
            names=list(numbers),
            key=key,
            request_us=stamps_us(table, "request_time"),
            present=status == "PRESENT",
            outside=status == "OUTSIDE_MAX_AGE",
            event_us=event_us,
            created_us=np.where(created_us == NEVER, event_us, created_us),
            first_us=first_us,
            original_us=np.array(original),
            corrected=corrected,
        )


@dataclass
class Chooser:
    """Takes keys until enough requests are wrong.

    Attributes:
        rng: Where chance comes from.
        taken: View → keys that another fault has.
        pool: View → the only keys that may be taken; None for all.
    """

    rng: np.random.Generator
    taken: dict[str, set[Key]]
    pool: dict[str, set[Key]] | None = None

    def keys(self, view: str, served: Served, weights: Array, target: float) -> frozenset[Key]:
        """Keys whose weights come to the target, as near as they can."""
        numbers = self.numbers(view, served, weights, target)
        return frozenset(served.names[number] for number in numbers)

    def numbers(self, view: str, served: Served, weights: Array, target: float) -> list[int]:
        """The numbers of these keys."""
        taken = self.taken.setdefault(view, set())
        allowed = set(served.names) if self.pool is None else self.pool[view]
        free = [
            number
            for number in self.rng.permutation(np.flatnonzero(weights > 0)).tolist()
            if served.names[number] in allowed and served.names[number] not in taken
        ]
        chosen: list[int] = []
        total = 0.0
        for number in free:
            if total + weights[number] <= _OVER * target:
                chosen.append(number)
                total += weights[number]
        if free and not chosen:
            chosen.append(min(free, key=lambda number: float(weights[number])))
        taken |= {served.names[number] for number in chosen}
        return chosen


Planner = Callable[[Clean, str, float, Chooser], Sequence[Fault]]


def plan(cause: Cause, clean: Clean, *, requests: float, chooser: Chooser) -> list[Fault]:
    """Faults that make about so many requests wrong for a cause, spread over its views."""
    planner, views = _PLANNERS[cause]
    return [
        fault for view in views for fault in planner(clean, view, requests / len(views), chooser)
    ]


def mixture(clean: Clean, *, requests: float, chooser: Chooser) -> list[Fault]:
    """All causes, each with its share of so many requests."""
    return [
        fault
        for cause in INJECTED
        for fault in plan(cause, clean, requests=requests / len(INJECTED), chooser=chooser)
    ]


_LAG_SHARE: Final = 0.4
"""Share of the requests at such keys that lag makes wrong."""


def stacked(clean: Clean, *, requests: float, chooser: Chooser) -> list[Fault]:
    """Lags of rows that are cast, and of rows under another definition, half of each."""
    view, early = "activity", moment_of(clean.scene.sizes.hours // 8)
    found: list[Fault] = []
    for made in (Cast, partial(Redefined, first=early)):
        for lag in _lag(clean, view, _LAG_SHARE * requests / 2, chooser):
            other = made(view=view, keys=lag.keys)
            found.append(Stacked(view=view, keys=lag.keys, lag=lag, other=other))
    return found


def _lag(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Lag]:
    served, hours = clean.served(view), clean.scene.sizes.hours
    first, end = hours // 4, hours * 3 // 4
    first_us, end_us = START_US + first * HOUR_US, START_US + end * HOUR_US
    held = (served.request_us >= first_us) & (served.request_us < end_us)
    weights = served.counts(served.present & held & (served.visible_us >= first_us))
    for number, moments in enumerate(served.corrected):
        if any(first_us <= moment < end_us for moment in moments):
            weights[number] = 0
    keys = chooser.keys(view, served, weights, target)
    return [Lag(view=view, keys=keys, first=moment_of(first), end=moment_of(end))]


def _no_corrections(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served = clean.served(view)
    wrong = served.present & (served.created_us > served.original_us)
    weights = served.counts(wrong & (served.visible_us > START_US))
    keys = chooser.keys(view, served, weights, target)
    return [NoCorrections(view=view, keys=keys)]


def _dropped(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served = clean.served(view)
    weights = served.counts(served.present)
    # The log cannot say of a key that is new that it never came.
    weights[(served.first_us == NEVER) | (served.first_us >= START_US)] = 0
    keys = chooser.keys(view, served, weights, target)
    return [Dropped(view=view, keys=keys)]


def _redefined(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served, first = clean.served(view), clean.scene.sizes.hours // 4
    weights = served.counts(served.present & (served.visible_us >= START_US + first * HOUR_US))
    keys = chooser.keys(view, served, weights, target)
    return [Redefined(view=view, keys=keys, first=moment_of(first))]


def _cast(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served = clean.served(view)
    weights = served.counts(served.present)
    return [Cast(view=view, keys=chooser.keys(view, served, weights, target))]


_EARLY_SHARE: Final = 0.5
"""Share of the requests that find a row of the future, where there are any."""


def _early(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served = clean.served(view)
    weights = _EARLY_SHARE * served.counts(served.present)
    return [Early(view=view, keys=chooser.keys(view, served, weights, target))]


def _other_ttl(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served = clean.served(view)
    ttl_us = int(TTLS[view].total_seconds() * 1_000_000)
    found: list[Fault] = []
    young = served.request_us - served.event_us <= ttl_us // 4
    for other_us, wrong in ((None, served.outside), (ttl_us // 4, served.present & ~young)):
        keys = chooser.keys(view, served, served.counts(wrong), target / 2)
        found.append(OtherTtl(view=view, keys=keys, ttl_us=other_us))
    return found


def _overwritten(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    served, hours = clean.served(view), clean.scene.sizes.hours
    weights = np.zeros(len(served.names), dtype=np.int64)
    best = np.zeros(len(served.names), dtype=np.int64)
    order = np.lexsort((served.request_us, served.key))
    starts = np.searchsorted(served.key[order], np.arange(len(served.names) + 1))
    for number in range(len(served.names)):
        rows = order[starts[number] : starts[number + 1]]
        for hour in range(STALE_HOURS, hours, STALE_HOURS // 3):
            weight = _overwritten_requests(served, rows, number, hour)
            if weight > weights[number]:
                weights[number], best[number] = weight, hour
    moments: dict[int, set[Key]] = {}
    for number in chooser.numbers(view, served, weights, target):
        moments.setdefault(int(best[number]), set()).add(served.names[number])
    keys = frozenset(key for some in moments.values() for key in some)
    frozen = {hour: frozenset(some) for hour, some in moments.items()}
    return [Overwritten(view=view, keys=keys, moments=frozen)]


def _overwritten_requests(served: Served, rows: Array, number: int, hour: int) -> int:
    """How many requests of a key are wrong if its row of some hours ago is put back at an hour.

    Args:
        served: What was served.
        rows: The key's requests, in order of time.
        number: The key.
        hour: When.

    Returns:
        0 also where the row of that hour has not been served to a request before. Without that the
        log may not tell it from lag; and a row that comes later, newer than what is put back but
        older than what was there, has to be older than one that was served.
    """
    moment_us = START_US + hour * HOUR_US
    stale_us = moment_us - STALE_HOURS * HOUR_US
    at = int(np.searchsorted(served.request_us[rows], moment_us))
    if not 0 < at < len(rows) or not NEVER < served.first_us[number] <= stale_us:
        return 0
    before, later = rows[at - 1], rows[at:]
    if served.visible_us[before] <= stale_us:
        return 0
    same = (served.event_us[later] == served.event_us[before]) & (
        served.created_us[later] == served.created_us[before]
    )
    # In clean order a row that was replaced does not come back.
    return int((same & served.present[later]).sum())


def _edited(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    count = min(round(target), len(clean.computable))
    rows = chooser.rng.choice(clean.computable, size=count, replace=False)
    return [Edited(view=view, rows=frozenset(rows.tolist()))]


def _rewritten(clean: Clean, view: str, target: float, chooser: Chooser) -> list[Fault]:
    """Of each key that is chosen, the row that was served most often."""
    served = clean.served(view)
    rows: dict[int, dict[tuple[int, int], int]] = {}
    present = np.flatnonzero(served.present)
    for number, event, created in zip(
        served.key[present].tolist(),
        served.event_us[present].tolist(),
        served.created_us[present].tolist(),
        strict=True,
    ):
        counts = rows.setdefault(number, {})
        counts[event, created] = counts.get((event, created), 0) + 1
    weights = np.zeros(len(served.names), dtype=np.int64)
    for number, counts in rows.items():
        weights[number] = max(counts.values())
    chosen = chooser.numbers(view, served, weights, target)
    stamps = [
        (served.names[number], *max(rows[number], key=lambda stamp: rows[number][stamp]))
        for number in chosen
    ]
    return [
        Rewritten(
            view=view,
            keys=frozenset(served.names[number] for number in chosen),
            deleted=frozenset(stamps[::2]),
            edited=frozenset(stamps[1::2]),
        )
    ]


_PLANNERS: Final[dict[Cause, tuple[Planner, tuple[str, ...]]]] = {
    Cause.MATERIALIZATION_LAG: (_lag, ("activity", "state", "profile")),
    Cause.CORRECTION_NOT_PROPAGATED: (_no_corrections, ("pairing", "state")),
    Cause.OUT_OF_ORDER_WRITE: (_overwritten, ("activity", "pairing")),
    Cause.EXPIRED_OR_TTL: (_other_ttl, ("state", "pairing")),
    Cause.ENTITY_MISSING: (_dropped, ("profile", "activity", "pairing")),
    Cause.DEFINITION_CHANGED: (_redefined, ("activity", "state")),
    Cause.SOURCE_REWRITTEN: (_rewritten, ("pairing", "profile", "activity")),
    Cause.TYPE_OR_PRECISION: (_cast, ("activity", "state", "pairing", "profile")),
    Cause.TRANSFORM: (_edited, (ON_DEMAND,)),
    Cause.EARLY_VISIBILITY: (_early, ("state", "activity")),
}
"""Cause → what chooses, and the views that it is made for."""

INJECTED: Final[tuple[Cause, ...]] = tuple(_PLANNERS)
"""Causes of which values can be made wrong; what damage to the log loses has no value any more."""
