"""The gain of a recalibration, there where the model reads too high; and how soon labels come."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

import looks
from contracts import small_contract
from tallystick.definitions.contract import LabelSpec
from tallystick.records.record_store import AffectedKeys
from tallystick.retrieval.prediction_labels import LoggedLabels
from tallystick_monitoring import performance
from tallystick_monitoring.performance import LABELLED_MIN, label_delays, recalibration_gain

DAYS = np.repeat(np.arange(40), 100)


def test_a_calibrated_model_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    predictions = rng.uniform(0.1, 0.9, size=4_000)
    outcomes = (rng.random(4_000) < predictions).astype(float)
    gain, error = recalibration_gain(outcomes, predictions, DAYS)
    assert gain is not None
    assert error is not None
    assert abs(gain) < 3 * error


def test_a_model_that_reads_too_high_gains() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.05, 0.5, size=4_000)
    outcomes = (rng.random(4_000) < truth).astype(float)
    gain, error = recalibration_gain(outcomes, np.minimum(truth + 0.3, 0.99), DAYS)
    assert gain is not None
    assert error is not None
    assert gain > 3 * error


def test_too_few_rows_or_one_outcome_say_nothing() -> None:
    rng = np.random.default_rng(1)
    few = rng.random(LABELLED_MIN - 1)
    days = DAYS[:1_000]
    assert recalibration_gain((few < 0.5).astype(float), few, days[: len(few)]) == (None, None)
    assert recalibration_gain(np.zeros(1_000), rng.random(1_000), days) == (None, None)
    halves = (rng.random(1_000) < 0.5).astype(float)
    assert recalibration_gain(halves, rng.random(1_000), np.zeros(1_000, int)) == (None, None)


def test_the_error_is_that_of_days() -> None:
    """Days that are good or bad as a whole say less than as many requests that are not."""
    rng = np.random.default_rng(1)
    rates = np.repeat(rng.uniform(0.1, 0.6, size=40), 100)
    outcomes = (rng.random(4_000) < rates).astype(float)
    predictions = np.full(4_000, 0.5) + rng.normal(0, 0.02, 4_000)
    by_day = recalibration_gain(outcomes, predictions, np.repeat(np.arange(40), 100))
    mixed = rng.permutation(4_000)
    as_if_independent = recalibration_gain(outcomes, predictions, mixed)
    assert by_day[0] == as_if_independent[0]
    assert by_day[1] is not None
    assert as_if_independent[1] is not None
    assert by_day[1] > 2 * as_if_independent[1]


def test_the_delay_curve_counts_every_request_and_ends_where_labels_mature() -> None:
    hour = 3_600_000_000
    times = pa.array([0, hour, 2 * hour, 3 * hour], pa.timestamp("us", tz="UTC"))
    part = SimpleNamespace(table=pa.table({"request_time": times}))
    # Known after one hour, after five, never, and after thirty hours.
    first = np.array([hour, 6 * hour, np.nan, 33 * hour])
    known = LoggedLabels(values=np.array([1.0, 0.0, np.nan, 1.0]), first_known_us=first)
    shares = label_delays([part], [known], matures_after_us=30 * hour)
    assert list(shares) == ["1", "2", "4", "8", "12", "24", "30"]
    assert list(shares.values()) == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5, 0.75]
    assert label_delays([], [], matures_after_us=hour) == {}


def test_the_keys_that_incidents_speak_of_are_read_from_the_log() -> None:
    label = LabelSpec(column="y", keys=("amount",), matures_after_us=0)
    contract = small_contract(label=label)
    affected = AffectedKeys(names=("driver", "gone"), first=(1, 1), last=(2, 2))
    incident = looks.incident(at=datetime(2024, 1, 1, tzinfo=UTC), is_open=True, requests=1)
    found = [incident, incident.model_copy(update={"keys": affected})]
    required = ["prediction_id", "request_time", "prediction", "request.amount"]
    assert performance._columns(contract, incidents=found[:1]) == required
    assert performance._columns(contract, incidents=found) == [*required, "entity.driver"]
