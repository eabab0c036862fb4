from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

import looks
from contracts import contract_of
from tallystick.definitions.model import Model, Retraining
from tallystick.records.record_store import Decision
from tallystick_training.retraining_policy import OLD_INTERVALS, decide, expected_gain, judge

TRAINED = datetime(2024, 1, 1, tzinfo=UTC)
AT = TRAINED + timedelta(days=10)
TERMS = Retraining(
    min_interval=timedelta(days=7), min_labels=500, horizon=timedelta(days=28), cost=100.0
)
MODEL = Model.model_construct(name="demo", retraining=TERMS)
CONTRACT = contract_of(project="tiny", model="demo", end=TRAINED)


def report(**look):
    return looks.report(**{"at": AT, "contract_hash": CONTRACT.contract_hash, **look})


def incident(**spell):
    return looks.incident(at=AT, **spell)


# 1,000 requests a day over 28 days: a gain of .01 per request is 280 nats against a cost of 100.
PAYS = {"gain": 0.01}
OLD = TRAINED + OLD_INTERVALS * TERMS.min_interval


@pytest.mark.parametrize(
    ("look", "outcome", "says"),
    [
        ({}, "nothing", "save 0.0 nats"),
        (PAYS, "retrain", "save 280.0 nats"),
        ({"gain": None, "error": None}, "nothing", "save 0.0 nats"),
        ({"gain": -0.01}, "nothing", "save 0.0 nats"),
        ({"gain": 100 / 28_000 * 1.001}, "retrain", "a cost of 100"),
        ({"gain": 100 / 28_000 * 0.999}, "nothing", "a cost of 100"),
        ({"gain": 0.01, "error": 0.007}, "nothing", "save 84.0 nats"),
        ({**PAYS, "at": TRAINED + timedelta(days=6.9)}, "nothing", "Too early"),
        ({**PAYS, "at": TRAINED + timedelta(days=7)}, "retrain", "280.0"),
        ({**PAYS, "labels": 499}, "refuse", "499 labels"),
        ({**PAYS, "labels": 500}, "retrain", "280.0"),
        ({"labels": 10}, "nothing", "no feature drifted"),
        ({"drifted": True}, "nothing", "only 10 days old"),
        ({"drifted": True, "at": OLD}, "retrain", "v__f"),
        ({"prediction_drifted": True, "at": OLD}, "retrain", "predictions have drifted"),
        ({"at": OLD}, "nothing", "no feature drifted"),
        ({**PAYS, "incidents": [incident(is_open=True, requests=1)]}, "refuse", "mend"),
        ({"incidents": [incident(is_open=True, requests=1)]}, "nothing", "0.0 nats"),
        ({**PAYS, "incidents": [incident(is_open=False, requests=500)]}, "retrain", "280.0"),
        ({**PAYS, "incidents": [incident(is_open=False, requests=501)]}, "refuse", "skew, not"),
        ({"drifted": True, "at": OLD, "unexplained": 1}, "refuse", "without an explanation"),
        ({**PAYS, "contract_hash": "another"}, "nothing", "look again"),
    ],
)
def test_the_rule(look, outcome, says):
    decision = decide(report(**look), MODEL, CONTRACT, previous=[])
    assert decision.outcome == outcome
    assert says in decision.reason


@pytest.mark.parametrize(
    "look", [{}, PAYS, {**PAYS, "labels": 1}, {"drifted": True, "at": OLD}, {"gain": None}]
)
def test_a_decision_is_reproducible_from_its_record(look):
    made = decide(report(**look), MODEL, CONTRACT, previous=[])
    read = Decision.model_validate_json(made.model_dump_json())
    assert judge(read.inputs) == (made.outcome, made.reason)


def test_a_training_that_was_not_promoted_counts_as_a_training():
    earlier = decide(report(**PAYS, at=AT - timedelta(days=3)), MODEL, CONTRACT, previous=[])
    assert earlier.outcome == "retrain"
    now = decide(report(**PAYS), MODEL, CONTRACT, previous=[earlier])
    assert now.outcome == "nothing"
    assert "3.0 days ago" in now.reason


def test_what_someone_asks_for_is_done_unless_skew_forbids_it():
    early = {"at": TRAINED + timedelta(days=1), "labels": 0}
    assert decide(report(**early), MODEL, CONTRACT, previous=[], forced=True).outcome == "retrain"
    skewed = report(**early, incidents=[incident(is_open=True, requests=1)])
    assert decide(skewed, MODEL, CONTRACT, previous=[], forced=True).outcome == "refuse"


def test_the_expected_gain_is_the_floor_times_the_requests_of_the_horizon():
    made = decide(report(gain=0.01, error=0.004), MODEL, CONTRACT, previous=[])
    assert expected_gain(made.inputs) == pytest.approx(0.006 * 1_000 * 28)
