"""What a repo declares to be replayed: which days, how fresh the store is kept, what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta


@dataclass(frozen=True)
class Push:
    """A view that is kept fresh by pushing its rows as they become known.

    Attributes:
        source: Name of the Feast push source.
        every: How often the feed delivers.
    """

    source: str
    every: timedelta


@dataclass(frozen=True)
class Outage:
    """An incident on purpose: a view is not brought online for a while, though requests go on."""

    view: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Scenario:
    """A replay of history through the whole loop.

    Attributes:
        model: The model that is served throughout, watched, and retrained when that pays.
        train_until: Everything before is history when the replay begins; all models are trained
            on it.
        days: Whole days (in UTC) on which every request of the population is really sent.
        refresh: View → how often it is materialized, at full multiples of that time.
        push: View → how it is pushed instead.
        outage: What goes wrong.
        watch_every: How often freshness is looked at.
        labels_every: How often the labels that have become known are sent.
        batch_by: Entity key or request field: requests of one minute that share it are sent as one
            HTTP request; None for one HTTP request each.
        also: Further models, trained and promoted as well, and loaded by the server; nobody asks
            them.
    """

    model: str
    train_until: datetime
    days: tuple[date, ...]
    refresh: dict[str, timedelta]
    push: dict[str, Push]
    outage: Outage
    watch_every: timedelta = timedelta(hours=1)
    labels_every: timedelta = timedelta(hours=6)
    batch_by: str | None = None
    also: tuple[str, ...] = field(default=())
