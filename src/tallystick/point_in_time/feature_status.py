"""The status of a feature in answers and logs: present, or the reason why it is missing."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Whether a view has a row for a key at the request time, by the names that Feast uses."""

    PRESENT = "PRESENT"
    """A row is visible, and its event time is inside the ttl."""

    NOT_FOUND = "NOT_FOUND"
    """No row of the key is visible."""

    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    """The event time of the newest visible row is older than the request time less the ttl."""

    NULL_VALUE = "NULL_VALUE"
    """The row is present, and this feature of it is null. Views do not have this status."""
