"""Why a served value is not the expected one: one cause for each mismatch, by evidence.

The rules are tried in the order of :data:`CAUSES`, and the first that fits is the cause;
docs/causes.md explains the order. Everything here is a pure function of columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from tallystick.clock import from_us
from tallystick.records.record_store import Cause
from tallystick_monitoring.equality import Bools

Int64s = np.ndarray[Any, np.dtype[np.int64]]

NO_TIME: Final = np.iinfo(np.int64).min
"""Stands for "no such time" in columns of microseconds."""

CAUSES: Final[tuple[Cause, ...]] = (
    "definition_changed",
    "early_visibility",
    "late_arrival",
    "source_rewritten",
    "expired_or_ttl",
    "type_or_precision",
    "out_of_order_write",
    "correction_not_propagated",
    "entity_missing",
    "materialization_lag",
    "unexplained",
)
"""Causes of a stored value's mismatch, in the order in which they are tried."""


@dataclass(frozen=True)
class Evidence:
    """What is known of mismatching values of one view; every column has shape (mismatches,).

    Times are microseconds since 1970, :data:`NO_TIME` where there is none. The created time of a
    row without one is its event time.

    Attributes:
        request_us: Request time.
        served_present: Whether the view was PRESENT when it was served.
        served_event_us: Event time of the row that was online, also if it was too old.
        served_created_us: Created time of it.
        definition_differs: Whether it was written under another definition than the contract's.
        expected_present: Whether the view is PRESENT under the knowledge clock.
        expected_event_us: Event time of the newest visible row of history.
        expected_created_us: Created time of it.
        in_history: Whether history has a row with the served event and created time; false where
            these are after the request.
        cast_equal: Whether served and expected value are of one row and equal after a cast.
        served_rightly: Whether the same row was served with history's value to another request.
        newer_served_before: Whether an earlier request for the key was served a newer row.
        seen_online: Whether any request of the log found the key online.
        first_visible_us: When history's first row of the key became visible, if that was before
            the request.
        passed_over: Whether rows of the view were written online after that and before the request,
            or no write to the view was seen at all.
        unstamped: Whether the row came from an online store that says neither when it was created
            and written nor by which definition. Its times are those of the version that history has
            within a second of its event time: of the one with the value that was served, if any.
    """

    request_us: Int64s
    served_present: Bools
    served_event_us: Int64s
    served_created_us: Int64s
    definition_differs: Bools
    expected_present: Bools
    expected_event_us: Int64s
    expected_created_us: Int64s
    in_history: Bools
    cast_equal: Bools
    served_rightly: Bools
    newer_served_before: Bools
    seen_online: Bools
    first_visible_us: Int64s
    passed_over: Bools
    unstamped: Bools


MEND: Final[Mapping[Cause, str]] = {
    "definition_changed": (
        "Undo the change of the view, or train again; then  tally materialize --again --view VIEW"
    ),
    "early_visibility": "Find who writes online ahead of the source, or whose clock is ahead.",
    "late_arrival": "Nothing is wrong: train under the knowledge clock, which knows this.",
    "source_rewritten": (
        "Restore the source, or append corrections with a created time of their own; then  "
        "tally materialize --again --view VIEW"
    ),
    "expired_or_ttl": "Serve through a store that enforces the ttl; let both sides know one ttl.",
    "type_or_precision": "Declare the type that the source has; let null be null.",
    "out_of_order_write": (
        "Write through a store that compares before it sets; then  "
        "tally materialize --again --view VIEW"
    ),
    "correction_not_propagated": (
        "Materialize what became known since the last run, as  tally materialize  does, not by "
        "event time."
    ),
    "entity_missing": (
        "tally materialize --again --view VIEW ; if it recurs, look for what drops keys on the way."
    ),
    "materialization_lag": "Materialize more often; start the job or the feed that stopped.",
    "transform": "Serve the function that is frozen beside the contract.",
    "log_damage": "Restore the file from a backup, or take it out:  tally log forget FILE",
    "unexplained": "Look at the exemplars: damage between store and model looks like this.",
}
"""Cause → what to do about it, in a sentence; docs/causes.md has more."""


def same_row(evidence: Evidence) -> Bools:
    """Whether served and expected value come of one row, or both of none."""
    one_row = (evidence.served_event_us == evidence.expected_event_us) & (
        evidence.served_created_us == evidence.expected_created_us
    )
    neither = ~evidence.served_present & ~evidence.expected_present
    return np.asarray(one_row | neither, dtype=np.bool_)


def classify(evidence: Evidence, *, ttl_us: int | None, log_begin_us: int) -> Int64s:
    """Give each mismatch its cause.

    Args:
        evidence: What is known of the mismatches.
        ttl_us: The view's ttl, or None.
        log_begin_us: First request time of the log: a key that history knew before it was there for
            long.

    Returns:
        Positions in :data:`CAUSES`, of shape (mismatches,).
    """
    e = evidence
    online = e.served_event_us != NO_TIME
    same = same_row(e)
    correction = e.served_event_us == e.expected_event_us
    # Without a row the served times are NO_TIME, which is before every other.
    behind = (e.served_event_us < e.expected_event_us) | (
        correction & (e.served_created_us < e.expected_created_us)
    )
    age_us = e.request_us - np.where(online, e.served_event_us, e.request_us)
    too_old = np.zeros_like(online) if ttl_us is None else age_us > ttl_us
    # Of a row that is not in history, or has no time at all, only its store knows what it is.
    told = (~e.unstamped | e.in_history) & (online | ~e.served_present)
    for_long = ~e.seen_online & (e.first_visible_us < log_begin_us) & e.passed_over
    for_long &= e.first_visible_us != NO_TIME
    rules: dict[Cause, Bools] = {
        "definition_changed": e.definition_differs,
        "early_visibility": online
        & (np.maximum(e.served_event_us, e.served_created_us) > e.request_us),
        # Never under the knowledge clock, which expects only what was known.
        "late_arrival": behind & e.expected_present & (e.expected_created_us > e.request_us),
        "source_rewritten": ~e.unstamped
        & (
            online & ~e.in_history
            | same & e.served_present & e.expected_present & ~e.cast_equal & ~e.served_rightly
        ),
        "expired_or_ttl": online
        & ((e.served_present & too_old & ~e.expected_present) | (~e.served_present & ~too_old)),
        "type_or_precision": same & e.cast_equal,
        "out_of_order_write": online & told & behind & e.newer_served_before,
        "correction_not_propagated": online & told & behind & correction,
        "entity_missing": told & ~online & e.expected_present & for_long,
        "materialization_lag": told & behind & e.expected_present,
    }
    order = list(rules)
    if tuple(order) != CAUSES[:-1]:
        raise AssertionError("the rules are not in the documented order")
    conditions = [rules[cause] for cause in order]
    return np.select(conditions, list(range(len(order))), default=len(order)).astype(np.int64)


def sentence(cause: Cause, evidence: Evidence, place: int) -> str:
    """The evidence of one mismatch, in a sentence."""
    e = evidence
    served = _row(e.served_event_us[place], e.served_created_us[place])
    expected = _row(e.expected_event_us[place], e.expected_created_us[place])
    sentences: dict[Cause, str] = {
        "definition_changed": f"The {served} was written under another definition of the view.",
        "early_visibility": f"The {served} was served before it was known.",
        "late_arrival": f"The {expected} came to be known only after the request.",
        "source_rewritten": f"History no longer holds the {served} with the value served.",
        "expired_or_ttl": (
            f"The {served} was served past the view's ttl."
            if e.served_present[place]
            else f"The {served} was inside the view's ttl, and was answered as too old."
        ),
        "type_or_precision": f"Served and expected value of the {expected} are equal after a cast.",
        "out_of_order_write": f"The {served} was served after a newer one had been.",
        "correction_not_propagated": f"The {expected} corrects the {served}.",
        "entity_missing": (
            f"The key is in history since {_time(e.first_visible_us[place])}, and was never seen "
            "online."
        ),
        "materialization_lag": f"The {expected} was known; online was the {served}.",
        "unexplained": _untold(e, place)
        if e.unstamped[place] or (e.served_present[place] and e.served_event_us[place] == NO_TIME)
        else f"Served was the {served}, expected the {expected}.",
        "transform": "The contract's function gives another value for the logged inputs.",
        "log_damage": "The record fails its checksum or its schema.",
    }
    return sentences[cause]


def _untold(evidence: Evidence, place: int) -> str:
    """What is not known of a value from a store that does not say more than an event time."""
    if evidence.served_event_us[place] == NO_TIME:
        return "Of which row the value served is, its online store does not say."
    event = _time(evidence.served_event_us[place])
    lacks = "has the value served" if evidence.in_history[place] else "was found"
    return (
        f"In history no version of the row of {event} {lacks}. Whether history was rewritten, or "
        "the row was written under another definition, its online store does not say."
    )


def _time(moment_us: int) -> str:
    return "never" if moment_us == NO_TIME else f"{from_us(int(moment_us)):%Y-%m-%d %H:%M:%S}"


def _row(event_us: int, created_us: int) -> str:
    if event_us == NO_TIME:
        return "absent row"
    return f"row of {_time(event_us)} (created {_time(created_us)})"
