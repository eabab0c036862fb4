"""The gain of a recalibration: there where the model reads too high, not where it is right."""

from __future__ import annotations

import numpy as np

from tallystick_monitoring.performance import LABELLED_MIN, recalibration_gain


def test_a_calibrated_model_gains_nothing() -> None:
    rng = np.random.default_rng(1)
    predictions = rng.uniform(0.1, 0.9, size=4_000)
    outcomes = (rng.random(4_000) < predictions).astype(float)
    gain, error = recalibration_gain(outcomes, predictions)
    assert gain is not None
    assert error is not None
    assert abs(gain) < 3 * error


def test_a_model_that_reads_too_high_gains() -> None:
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.05, 0.5, size=4_000)
    outcomes = (rng.random(4_000) < truth).astype(float)
    gain, error = recalibration_gain(outcomes, np.minimum(truth + 0.3, 0.99))
    assert gain is not None
    assert error is not None
    assert gain > 3 * error


def test_too_few_rows_or_one_outcome_say_nothing() -> None:
    rng = np.random.default_rng(1)
    few = rng.random(LABELLED_MIN - 1)
    assert recalibration_gain((few < 0.5).astype(float), few) == (None, None)
    assert recalibration_gain(np.zeros(1_000), rng.random(1_000)) == (None, None)
