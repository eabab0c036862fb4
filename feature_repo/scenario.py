"""How the year is replayed: when the stores are refreshed, which days are served, what goes wrong.

Constants only. A day runs from 07:00 to 07:00 UTC, so that an evening in New York belongs to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

DAY_STARTS_AT = time(7, tzinfo=UTC)

_FIRST, _LAST = date(2013, 3, 1), date(2013, 12, 30)
# Every fifth day meets each ISO week and each weekday; the incident is served from the day before
# it to the day after.
_EVERY_FIFTH = {_FIRST + timedelta(days=days) for days in range(0, (_LAST - _FIRST).days + 1, 5)}
_AROUND_INCIDENT = {date(2013, 7, day) for day in (9, 10, 11, 12)}


@dataclass(frozen=True)
class Incident:
    """A feed that stops while requests go on.

    Attributes:
        view: View that is not refreshed.
        start: First moment without a refresh.
        end: Moment from which refreshes run again and catch up.
    """

    view: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Scenario:
    """A replay of history.

    Attributes:
        models: Models that are trained and asked; requests and labels are in their sources.
        train_until: End of the history that the first champions learn from; serving starts here.
        serve_until: End of the replay.
        days: Days whose requests are sent, each from ``DAY_STARTS_AT`` to the next.
        refresh_every: Materialized view → interval, counted from midnight UTC. A row is known at
            the very moment of a refresh, so it has to run before the requests of that moment.
        refresh_offset: Materialized view → delay of its refreshes behind the interval's start.
        pushed: View → push source through which its rows arrive as they become known.
        incident: What goes wrong.
    """

    models: tuple[str, ...]
    train_until: datetime
    serve_until: datetime
    days: tuple[date, ...]
    refresh_every: Mapping[str, timedelta]
    refresh_offset: Mapping[str, timedelta] = field(default_factory=lambda: MappingProxyType({}))
    pushed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    incident: Incident | None = None


SCENARIO = Scenario(
    models=("late_arrival", "cancellation"),
    train_until=datetime(2013, 3, 1, tzinfo=UTC),
    serve_until=datetime(2013, 12, 31, 7, tzinfo=UTC),
    days=tuple(sorted(_EVERY_FIFTH | _AROUND_INCIDENT)),
    refresh_every=MappingProxyType(
        {
            "weather": timedelta(hours=1),
            "origin_hour": timedelta(hours=1),
            "carrier_day": timedelta(days=1),
            "route_week": timedelta(days=1),
            "plane": timedelta(days=1),
        }
    ),
    refresh_offset=MappingProxyType(
        {
            "carrier_day": timedelta(hours=7),
            "route_week": timedelta(hours=7),
            "plane": timedelta(hours=7),
        }
    ),
    pushed=MappingProxyType({"tail_last_flight": "landings"}),
    incident=Incident(
        view="weather",
        start=datetime(2013, 7, 10, 7, tzinfo=UTC),
        end=datetime(2013, 7, 12, 7, tzinfo=UTC),
    ),
)
