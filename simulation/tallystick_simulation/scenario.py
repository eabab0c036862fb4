"""The declaration of a replay: its days, the refreshes of the online store, the staged outage."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, datetime, timedelta


@dataclass(frozen=True)
class Push:
    """A view whose rows are pushed when they become known.

    Attributes:
        source: Name of the Feast push source.
        every: The interval between two pushes.
    """

    source: str
    every: timedelta


@dataclass(frozen=True)
class Outage:
    """A staged incident: a view is not materialized for a while, and requests go on."""

    view: str
    start: datetime
    end: datetime


@dataclass(frozen=True)
class Scenario:
    """A replay of history through the whole loop.

    Attributes:
        model: The model that is served, monitored, and retrained when the policy decides so.
        train_until: The start of the replay; all models are trained on the history before it.
        days: Whole days (in UTC) on which every request of the population is sent.
        refresh: View → the interval between two materializations, at full multiples of it.
        push: View → how it is pushed instead.
        outage: The staged incident.
        watch_every: The interval between two checks for incidents.
        batch_by: Entity key or request field: requests of one minute that share it are sent as one
            HTTP request; None for one HTTP request each.
        also: Further models, trained, promoted and loaded, but without requests.
    """

    model: str
    train_until: datetime
    days: tuple[date, ...]
    refresh: dict[str, timedelta]
    push: dict[str, Push]
    outage: Outage
    watch_every: timedelta = timedelta(hours=1)
    batch_by: str | None = None
    also: tuple[str, ...] = field(default=())
