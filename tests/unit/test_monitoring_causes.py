"""Every cause from the smallest evidence for it, and mixtures of several."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tallystick.records.causes import Cause
from tallystick_monitoring.audit.cause_rules import Evidence, classify, finding_sentence
from tallystick_monitoring.log_columns import NO_TIME

HOUR = 3_600_000_000
NOW = 1_000 * HOUR
TTL = 48 * HOUR
WINDOW_START = 900 * HOUR

# The right row was served with another value than history's, though others were served its value:
# nothing explains that. Every case below changes what its cause needs, and nothing else.
BASE: dict[str, Any] = {
    "request_us": NOW,
    "served_present": True,
    "served_event_us": 990 * HOUR,
    "served_created_us": 991 * HOUR,
    "definition_differs": False,
    "expected_present": True,
    "expected_event_us": 990 * HOUR,
    "expected_created_us": 991 * HOUR,
    "in_history": True,
    "cast_equal": False,
    "served_rightly": True,
    "newer_served_before": False,
    "seen_online": True,
    "first_visible_us": 100 * HOUR,
    "written_since": True,
    "unstamped": False,
}
NOTHING_ONLINE = {
    "served_present": False,
    "served_event_us": NO_TIME,
    "served_created_us": NO_TIME,
    "in_history": False,
}
UNSTAMPED = {"unstamped": True}
OLDER = {"served_event_us": 980 * HOUR, "served_created_us": 981 * HOUR}
EXPIRED = {"served_event_us": NOW - TTL - 1, "served_created_us": NOW - TTL - 1}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing fits": ("unexplained", {}),
    "no row on either side, and yet a value": (
        "unexplained",
        {**NOTHING_ONLINE, "expected_present": False, "expected_event_us": NO_TIME},
    ),
    "other definition": ("definition_changed", {"definition_differs": True}),
    "event in the future": ("early_visibility", {"served_event_us": NOW + 1}),
    "created in the future": ("early_visibility", {"served_created_us": NOW + 1}),
    "expected row was known later": (
        "late_arrival",
        {**OLDER, "expected_created_us": NOW + 1},
    ),
    "row not in history": ("source_rewritten", {"in_history": False}),
    "row in history with another value": ("source_rewritten", {"served_rightly": False}),
    "served past the ttl": (
        "expired_or_ttl",
        {**EXPIRED, "expected_present": False, "expected_event_us": NO_TIME},
    ),
    "answered as too old at the window's end": (
        "expired_or_ttl",
        {"served_present": False, "served_event_us": NOW - TTL, "expected_event_us": NOW - TTL},
    ),
    "equal after a cast": ("type_or_precision", {"cast_equal": True}),
    "default where neither has a row": (
        "type_or_precision",
        {
            **NOTHING_ONLINE,
            "expected_present": False,
            "expected_event_us": NO_TIME,
            "expected_created_us": NO_TIME,
            "cast_equal": True,
        },
    ),
    "newer one was served before": ("out_of_order_write", {**OLDER, "newer_served_before": True}),
    "older version of the row": ("correction_not_propagated", {"served_created_us": 990 * HOUR}),
    "known for long, never online": ("entity_missing", {**NOTHING_ONLINE, "seen_online": False}),
    "older row": ("materialization_lag", OLDER),
    "absent, but seen online": ("materialization_lag", NOTHING_ONLINE),
    "new key": (
        "materialization_lag",
        {**NOTHING_ONLINE, "seen_online": False, "first_visible_us": WINDOW_START},
    ),
    "key known since the last write": (
        "materialization_lag",
        {**NOTHING_ONLINE, "seen_online": False, "written_since": False},
    ),
    "rightly too old online, newer row in history": (
        "materialization_lag",
        {**EXPIRED, "served_present": False},
    ),
    # Mixtures: the earlier rule wins.
    "old row of another definition": ("definition_changed", {**OLDER, "definition_differs": True}),
    "old row, cast": ("materialization_lag", {**OLDER, "cast_equal": True}),
    "old version after the new one": (
        "out_of_order_write",
        {"served_created_us": 990 * HOUR, "newer_served_before": True},
    ),
    "future row that history lacks": (
        "early_visibility",
        {"served_event_us": NOW + 1, "in_history": False},
    ),
    "old row that history lacks": ("source_rewritten", {**OLDER, "in_history": False}),
    "served past the ttl while a newer row was known": ("materialization_lag", EXPIRED),
    # From a store that says no more of a row than its event time.
    "unstamped, value of no version": ("unexplained", UNSTAMPED | {"served_rightly": False}),
    "unstamped, in no history": ("unexplained", UNSTAMPED | {"in_history": False}),
    "unstamped, in no history, but older": (
        "unexplained",
        UNSTAMPED | OLDER | {"in_history": False, "newer_served_before": True},
    ),
    "unstamped, in no history, as old as a correction": (
        "unexplained",
        UNSTAMPED | {"in_history": False, "served_created_us": 990 * HOUR},
    ),
    "present, of no known time": (
        "unexplained",
        NOTHING_ONLINE | {"served_present": True, "seen_online": False},
    ),
    "unstamped, older row of history": ("materialization_lag", UNSTAMPED | OLDER),
    "unstamped, older version of the row": (
        "correction_not_propagated",
        UNSTAMPED | {"served_created_us": 990 * HOUR},
    ),
    "unstamped, newer one was served before": (
        "out_of_order_write",
        UNSTAMPED | OLDER | {"newer_served_before": True},
    ),
    "unstamped, equal after a cast": ("type_or_precision", UNSTAMPED | {"cast_equal": True}),
    "unstamped, event in the future": (
        "early_visibility",
        UNSTAMPED | {"served_event_us": NOW + 1, "in_history": False},
    ),
    "unstamped, past the ttl": (
        "expired_or_ttl",
        {**UNSTAMPED, **EXPIRED, "expected_present": False, "expected_event_us": NO_TIME},
    ),
}


def evidence(*cases: dict[str, Any]) -> Evidence:
    rows = [BASE | case for case in cases]
    return Evidence(
        **{
            field.name: np.array([row[field.name] for row in rows])
            for field in dataclasses.fields(Evidence)
        }
    )


@pytest.mark.parametrize("name", CASES)
def test_the_cause_follows_from_the_evidence(name: str) -> None:
    cause, changes = CASES[name]
    found = classify(evidence(changes), ttl_us=TTL, log_begin_us=WINDOW_START)
    assert found == [cause]


def test_a_column_of_all_cases_is_classified_as_each_alone() -> None:
    column = evidence(*(changes for _, changes in CASES.values()))
    found = classify(column, ttl_us=TTL, log_begin_us=WINDOW_START)
    assert found == [cause for cause, _ in CASES.values()]
    assert set(found) == set(Cause) - {Cause.TRANSFORM, Cause.LOG_DAMAGE}


def test_without_a_ttl_nothing_is_too_old() -> None:
    changes = {**EXPIRED, "expected_present": False, "expected_event_us": NO_TIME}
    found = classify(evidence(changes), ttl_us=None, log_begin_us=WINDOW_START)
    assert found == ["unexplained"]


@pytest.mark.parametrize("name", CASES)
def test_every_cause_has_a_sentence(name: str) -> None:
    cause, changes = CASES[name]
    assert finding_sentence(Cause(cause), evidence(changes), 0).endswith(".")


def test_the_documentation_has_every_cause_in_the_order_in_which_they_are_tried() -> None:
    page = (Path(__file__).parents[2] / "docs" / "causes.md").read_text()
    sections = [
        f"## {cause}\n"
        f"- **Meaning.** {cause.description.meaning}\n"
        f"- **Evidence.** {cause.description.evidence}\n"
        f"- **What to do.** {cause.description.remedy}\n"
        for cause in Cause
    ]
    assert "\n".join(sections) in page
