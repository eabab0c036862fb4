"""How the year is replayed: which days are served, how fresh the store is kept, what goes wrong."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from tallystick_simulation.scenario import Outage, Push, Scenario

_FIRST, _LAST = date(2013, 3, 1), date(2013, 12, 30)
# Every fifth day meets each week and each weekday; the outage is served from the day before it to
# the day after.
_EVERY_FIFTH = {_FIRST + timedelta(days=days) for days in range(0, (_LAST - _FIRST).days, 5)}
_AROUND_OUTAGE = {date(2013, 7, day) for day in (9, 10, 11, 12)}

SCENARIO = Scenario(
    model="late_arrival",
    also=("cancellation",),
    train_until=datetime(2013, 3, 1, tzinfo=UTC),
    days=tuple(sorted(_EVERY_FIFTH | _AROUND_OUTAGE | {_LAST})),
    # A row is known at the very moment of a refresh, which therefore precedes the requests of that
    # moment. What is computed daily is computed at 06:00.
    refresh={
        "weather": timedelta(hours=1),
        "origin_hour": timedelta(hours=1),
        "carrier_day": timedelta(hours=6),
        "route_week": timedelta(hours=6),
        "plane": timedelta(days=1),
    },
    push={"tail_last_flight": Push(source="landings", every=timedelta(minutes=15))},
    outage=Outage(
        view="weather",
        start=datetime(2013, 7, 10, tzinfo=UTC),
        end=datetime(2013, 7, 12, tzinfo=UTC),
    ),
    batch_by="origin",
)
