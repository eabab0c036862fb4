"""The causes of a mismatch: the meaning of each, its evidence, and what to do about it.

This is the only table of causes. The audit, the quarantine and the reports refer to it, and a test
compares docs/causes.md with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_MATERIALIZE_AGAIN = "tally materialize --again --view VIEW"


@dataclass(frozen=True)
class CauseDescription:
    """What a reader has to know about a cause.

    Attributes:
        meaning: What happened.
        evidence: What the audit recognizes it by.
        remedy: What to do about it. ``VIEW`` stands for the name of the view.
        finding: The evidence of one mismatch, as a sentence. ``{served}`` and ``{expected}`` stand
            for the two rows, ``{since}`` for the time from which history has the key.
        is_repairable: Whether history says for certain what should have been served, so that
            training can use that value instead of leaving the request out.
    """

    meaning: str
    evidence: str
    remedy: str
    finding: str
    is_repairable: bool = True


class Cause(StrEnum):
    """Why a served value is not the expected one, in the order in which the audit tries them."""

    description: CauseDescription

    def __new__(cls, name: str, description: CauseDescription) -> Self:
        """Make a string that carries its description."""
        cause = str.__new__(cls, name)
        cause._value_ = name
        cause.description = description
        return cause

    DEFINITION_CHANGED = (
        "definition_changed",
        CauseDescription(
            meaning="The row was written online under another definition of the view than the one "
            "the model was trained with.",
            evidence="The definition hash of the served row is not the contract's.",
            remedy="Undo the change of the view, or train again under the new definition. Then  "
            f"{_MATERIALIZE_AGAIN}",
            finding="The {served} was written under another definition of the view.",
        ),
    )
    EARLY_VISIBILITY = (
        "early_visibility",
        CauseDescription(
            meaning="The model saw a row before it could be known. Offline scores promise more "
            "than serving can deliver, or the created times in history are wrong.",
            evidence="The served row's event time or created time is later than the request time.",
            remedy="Find what writes online ahead of the source (a push with a future time, a "
            "clock that is ahead), and correct it.",
            finding="The {served} was served before it was known.",
            is_repairable=False,
        ),
    )
    LATE_ARRIVAL = (
        "late_arrival",
        CauseDescription(
            meaning="Nothing is wrong. The event had happened, but its row was not known yet.",
            evidence="The expected row became known only after the request. This occurs only "
            "under `--clock event`, since the knowledge clock does not expect such a row. An "
            "audit under the event clock says how much better a training set by event time would "
            "look than what can be served.",
            remedy="Train under the knowledge clock.",
            finding="The {expected} became known only after the request.",
        ),
    )
    SOURCE_REWRITTEN = (
        "source_rewritten",
        CauseDescription(
            meaning="History was changed afterwards: what was served can no longer be reproduced "
            "from it.",
            evidence="History has no row with the key, event time and created time that were "
            "served. Or it has the row with another value that no cast explains, and no other "
            "request was served that row with history's value.",
            remedy="Restore the source, or append corrections with a created time of their own "
            "instead of editing rows. A row with the same times does not replace the one online, "
            f"so then  {_MATERIALIZE_AGAIN}",
            finding="History no longer has the {served} with the value that was served.",
            is_repairable=False,
        ),
    )
    EXPIRED_OR_TTL = (
        "expired_or_ttl",
        CauseDescription(
            meaning="The view's ttl was applied on one side and not on the other.",
            evidence="The row was served as PRESENT although its event time is older than request "
            "time minus ttl, and no value was expected. Or it was answered as OUTSIDE_MAX_AGE "
            "although it is inside the ttl (both ends included).",
            remedy="Serve through a store that enforces the ttl when it reads, and check that both "
            "sides use the same ttl.",
            finding="The {served} was served although it is older than the view's ttl.",
        ),
    )
    TYPE_OR_PRECISION = (
        "type_or_precision",
        CauseDescription(
            meaning="The right row was served, and its value was changed on the way.",
            evidence="Served and expected value come from the same row (or neither comes from a "
            "row) and are equal after a cast: to 32 bits, to an integer, to text and back, cut to "
            "whole seconds. Or one is null and the other is what null becomes in a type without "
            "null (NaN, 0, false, empty text).",
            remedy="Declare the type that the source has. Replace a default by null: the "
            "estimator, not the store, decides what a missing value means.",
            finding="Served and expected value of the {expected} are equal after a cast.",
        ),
    )
    OUT_OF_ORDER_WRITE = (
        "out_of_order_write",
        CauseDescription(
            meaning="An older row replaced a newer one online.",
            evidence="The served row is older than the expected one, and an earlier request for "
            "the same key was served a newer row.",
            remedy="Write through a store that compares times before it writes. Then  "
            f"{_MATERIALIZE_AGAIN}",
            finding="The {served} was served after a newer one had been served.",
        ),
    )
    CORRECTION_NOT_PROPAGATED = (
        "correction_not_propagated",
        CauseDescription(
            meaning="History corrected a row, and the online store still has the first version.",
            evidence="Served and expected row have the same event time, and the served created "
            "time is the earlier one.",
            remedy="Materialize what became known since the last run, as  tally materialize  does, "
            "not by event time.",
            finding="The {expected} corrects the {served}.",
        ),
    )
    ENTITY_MISSING = (
        "entity_missing",
        CauseDescription(
            meaning="The key never reached the online store.",
            evidence="Nothing was found online. No request of the log found the key in this view. "
            "History has a row for it from before the log begins, and rows of the view were "
            "written online since then (or no write was ever seen).",
            remedy=f"{_MATERIALIZE_AGAIN} . If it recurs, find what drops keys on the way online: "
            "a filter, another spelling of the key, or a materialization that starts too late.",
            finding="History has the key since {since}, and no request found it online.",
        ),
    )
    MATERIALIZATION_LAG = (
        "materialization_lag",
        CauseDescription(
            meaning="The row was known, and was written online later or never.",
            evidence="A newer row than the served one was visible. Or nothing was online for a key "
            "that other requests found online, or that is new.",
            remedy="Materialize more often. If the view is stale, start the feed or the job that "
            "stopped.",
            finding="The {expected} was known, and the {served} was online.",
        ),
    )
    TRANSFORM = (
        "transform",
        CauseDescription(
            meaning="An on-demand feature was computed by other code than the model was trained "
            "with.",
            evidence="The contract's frozen function returns another value for the logged inputs.",
            remedy="Serve the function that is frozen beside the contract. Look for a function "
            "that depends on more than its inputs: the time, a random number, a file, a package's "
            "version.",
            finding="The contract's function returns another value for the logged inputs.",
        ),
    )
    LOG_DAMAGE = (
        "log_damage",
        CauseDescription(
            meaning="Records of the log cannot be compared, because they are damaged.",
            evidence="A Parquet file fails a checksum or does not fit its contract, or a segment "
            "has bytes that are not a whole frame.",
            remedy="Restore the file from a backup, or remove it:  tally log forget FILE",
            finding="The record fails its checksum or its schema.",
            is_repairable=False,
        ),
    )
    UNEXPLAINED = (
        "unexplained",
        CauseDescription(
            meaning="No rule fits. This is always worth a look. The goal is zero.",
            evidence="For example: the right row was served with a value that is not history's, "
            "while another request was served the same row with history's value.",
            remedy="Read the exemplars (`tally audit MODEL --json FILE`): key, times, served and "
            "expected value. Damage between store and model looks like this.",
            finding="The {served} was served, and the {expected} was expected.",
            is_repairable=False,
        ),
    )
