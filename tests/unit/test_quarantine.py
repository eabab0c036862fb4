"""What becomes of requests in incidents: which incidents count, and which can be repaired."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

import looks
from contracts import small_contract
from tallystick.records.causes import Cause
from tallystick.records.quarantine import Quarantine, touched, view_names
from tallystick.records.record_store import AffectedKeys

DOCS = Path(__file__).parents[2] / "docs" / "training-sets.md"
AT = datetime(2024, 1, 5, tzinfo=UTC)
INCIDENT = looks.incident(at=AT, is_open=False, requests=1)
TIMES = pa.chunked_array([pa.array([INCIDENT.start] * 4, pa.timestamp("us", tz="UTC"))])


def of(*incidents, repair=False, views=("item_stats",)):
    return Quarantine.of(incidents, model="demo", views=set(views), repair=repair)


def test_the_documented_table_says_of_every_cause_what_is_done():
    rows = dict(re.findall(r"^\| (\w+) \| (repaired|left out) \|", DOCS.read_text(), re.MULTILINE))
    assert rows == {
        cause: "repaired" if cause.description.is_repairable else "left out" for cause in Cause
    }


@pytest.mark.parametrize("cause", list(Cause))
def test_only_what_history_leaves_no_doubt_about_is_repaired(cause):
    incident = INCIDENT.model_copy(update={"cause": cause})
    assert of(incident) == Quarantine(left_out=(incident,))
    found = of(incident, repair=True)
    assert found.repairs
    assert found.left_out + found.repaired == (incident,)
    assert bool(found.repaired) == cause.description.is_repairable


def test_incidents_of_other_models_and_views_do_not_count():
    others = [INCIDENT.model_copy(update={name: "other"}) for name in ("model", "view")]
    assert of(*others, INCIDENT).left_out == (INCIDENT,)
    assert of(*others, INCIDENT, repair=True).repaired == (INCIDENT,)


def test_a_view_counts_under_its_alias_and_its_own_name():
    (use,) = small_contract().views
    assert view_names([use.model_copy(update={"name": "alias"})]) == {"alias", "stats"}


def keys(**changes):
    return AffectedKeys(**{"names": ("k",), "first": (2,), "last": (3,), **changes})


@pytest.mark.parametrize(
    ("affected", "expected"),
    [
        (keys(), [False, True, True, False]),
        (keys(values=((1,), (3,))), [True, False, True, False]),
        (keys(values=((None,),)), [False, False, False, True]),
        (keys(first=(None,), last=(1,)), [True, False, False, True]),
        (keys(names=(), first=(), last=()), [True] * 4),
        # As where the definitions have changed since: another name, another type.
        (keys(names=("other",)), [True] * 4),
        (keys(values=(("1",),)), [True] * 4),
        (None, [True] * 4),
    ],
)
def test_keys_that_cannot_be_compared_are_all_touched(affected, expected):
    incident = INCIDENT.model_copy(update={"keys": affected})
    column = pa.chunked_array([pa.array([1, 2, 3, None])])
    assert touched([incident], TIMES, {"k": column}).tolist() == expected


def test_a_recorded_incident_touches_what_it_touched_before():
    affected = keys(
        names=("a", "b"), values=(("1", 1), ("1", None), (None, 2)), first=(None, 2), last=("1", 1)
    )
    incident = INCIDENT.model_copy(update={"keys": affected})
    again = type(incident).model_validate_json(incident.model_dump_json())
    columns = {
        "a": pa.chunked_array([pa.array(["1", "1", None, "2"])]),
        "b": pa.chunked_array([pa.array([1, None, 2, 1])]),
    }
    for each in (incident, again):
        assert touched([each], TIMES, columns).tolist() == [True, True, True, False]
