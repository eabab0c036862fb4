"""The rules that give each mismatch its cause, from columns of evidence.

The rules are tried in the order of :class:`~tallystick.records.causes.Cause`, and the first that
fits is the cause. docs/causes.md explains the order. Everything here is a pure function.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tallystick.clock import from_us
from tallystick.records.causes import Cause
from tallystick_monitoring.log_columns import NO_TIME, Bools, Int64s


@dataclass(frozen=True)
class Evidence:
    """What is known of mismatching values of one view. Every column has shape (mismatches,).

    Times are microseconds since 1970, :data:`NO_TIME` where there is none. The created time of a
    row without one is its event time.

    Attributes:
        request_us: Request time.
        served_present: Whether the view was PRESENT when it was served.
        served_event_us: Event time of the row that was online, even if it was too old.
        served_created_us: Created time of that row.
        definition_differs: Whether it was written under another definition than the contract's.
        expected_present: Whether the view is PRESENT under the clock of the audit.
        expected_event_us: Event time of the newest visible row of history.
        expected_created_us: Created time of that row.
        in_history: Whether history has a row with the served event and created time. False where
            these are after the request.
        cast_equal: Whether served and expected value are of one row and equal after a cast.
        served_rightly: Whether another request was served the same row with history's value.
        newer_served_before: Whether an earlier request for the key was served a newer row.
        seen_online: Whether any request of the log found the key online.
        first_visible_us: When history's first row of the key became visible, if that was before
            the request.
        written_since: Whether rows of the view were written online between that time and the
            request. True as well if the log shows no write to the view at all.
        unstamped: Whether the online store gives neither created time, write time nor definition of
            the row. Its times are those of the version that history has within a second of its
            event time, preferably one with the value that was served.
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
    written_since: Bools
    unstamped: Bools


def same_row(evidence: Evidence) -> Bools:
    """Whether served and expected value come of one row, or both of none."""
    one_row = (evidence.served_event_us == evidence.expected_event_us) & (
        evidence.served_created_us == evidence.expected_created_us
    )
    neither = ~evidence.served_present & ~evidence.expected_present
    return np.asarray(one_row | neither, dtype=np.bool_)


def classify(evidence: Evidence, *, ttl_us: int | None, log_begin_us: int) -> list[Cause]:
    """Find the cause of each mismatch.

    Args:
        evidence: What is known of the mismatches.
        ttl_us: The view's ttl, or None.
        log_begin_us: First request time of the log. A key that history had before counts as known
            for long.

    Returns:
        One cause for each mismatch.
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
    # Only its store knows what a row is that history lacks, or that has no time at all.
    identified = (~e.unstamped | e.in_history) & (online | ~e.served_present)
    for_long = ~e.seen_online & (e.first_visible_us < log_begin_us) & e.written_since
    for_long &= e.first_visible_us != NO_TIME
    rules: dict[Cause, Bools] = {
        Cause.DEFINITION_CHANGED: e.definition_differs,
        Cause.EARLY_VISIBILITY: online
        & (np.maximum(e.served_event_us, e.served_created_us) > e.request_us),
        # Never under the knowledge clock, which expects only what was known.
        Cause.LATE_ARRIVAL: behind & e.expected_present & (e.expected_created_us > e.request_us),
        Cause.SOURCE_REWRITTEN: ~e.unstamped
        & (
            online & ~e.in_history
            | same & e.served_present & e.expected_present & ~e.cast_equal & ~e.served_rightly
        ),
        Cause.EXPIRED_OR_TTL: online
        & ((e.served_present & too_old & ~e.expected_present) | (~e.served_present & ~too_old)),
        Cause.TYPE_OR_PRECISION: same & e.cast_equal,
        Cause.OUT_OF_ORDER_WRITE: online & identified & behind & e.newer_served_before,
        Cause.CORRECTION_NOT_PROPAGATED: online & identified & behind & correction,
        Cause.ENTITY_MISSING: identified & ~online & e.expected_present & for_long,
        Cause.MATERIALIZATION_LAG: identified & behind & e.expected_present,
    }
    order = [cause for cause in Cause if cause in rules]
    codes = np.select([rules[cause] for cause in order], range(len(order)), default=len(order))
    return [*np.array([*order, Cause.UNEXPLAINED], dtype=object)[codes]]


def finding_sentence(cause: Cause, evidence: Evidence, row: int) -> str:
    """The evidence of one mismatch, in a sentence."""
    e = evidence
    has_no_time = e.served_event_us[row] == NO_TIME
    if cause is Cause.UNEXPLAINED and e.served_present[row] and has_no_time:
        return "The online store does not say which row the served value is from."
    if cause is Cause.UNEXPLAINED and e.unstamped[row]:
        lacks = "has the value that was served" if e.in_history[row] else "was found in history"
        return (
            f"No version of the row of {_time(e.served_event_us[row])} {lacks}. The online store "
            "does not say whether history was rewritten or the row was written under another "
            "definition."
        )
    served = _row(e.served_event_us[row], e.served_created_us[row])
    if cause is Cause.EXPIRED_OR_TTL and not e.served_present[row]:
        return f"The {served} was answered as too old although it is inside the view's ttl."
    return cause.description.finding.format(
        served=served,
        expected=_row(e.expected_event_us[row], e.expected_created_us[row]),
        since=_time(e.first_visible_us[row]),
    )


def _time(moment_us: int) -> str:
    return "never" if moment_us == NO_TIME else f"{from_us(int(moment_us)):%Y-%m-%d %H:%M:%S}"


def _row(event_us: int, created_us: int) -> str:
    if event_us == NO_TIME:
        return "absent row"
    return f"row of {_time(event_us)} (created {_time(created_us)})"
