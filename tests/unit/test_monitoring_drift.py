"""Drift is found where the distribution moved, and not where only the sample did."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tallystick.model_bundle.reference import feature_reference
from tallystick_monitoring.drift import PSI_MIN, feature_drift


def chunked(values: object) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


@pytest.mark.parametrize("rows", [30, 200, 5_000])
def test_samples_of_one_distribution_have_not_drifted(rows: int) -> None:
    rng = np.random.default_rng(7)
    reference = feature_reference(chunked(rng.gamma(2.0, size=20_000)), "DOUBLE")
    found = [
        feature_drift(chunked(rng.gamma(2.0, size=rows)), reference).drifted for _ in range(200)
    ]
    assert sum(found) <= 2


def test_a_shift_is_drift() -> None:
    rng = np.random.default_rng(7)
    reference = feature_reference(chunked(rng.normal(size=20_000)), "DOUBLE")
    found = feature_drift(chunked(rng.normal(loc=1.0, size=500)), reference)
    assert found.drifted
    assert found.psi > 5 * found.limit


def test_the_index_is_the_textbook_sum() -> None:
    reference = feature_reference(chunked([0.0] * 50 + [1.0] * 50), "DOUBLE")
    found = feature_drift(chunked([0.0] * 80 + [1.0] * 20), reference)
    assert found.psi == pytest.approx(0.3 * np.log(0.8 / 0.5) - 0.3 * np.log(0.2 / 0.5))


def test_more_nulls_are_drift() -> None:
    rng = np.random.default_rng(7)
    reference = feature_reference(chunked(rng.normal(size=5_000)), "DOUBLE")
    values = [None if rng.random() < 0.3 else rng.normal() for _ in range(1_000)]
    found = feature_drift(chunked(values), reference)
    assert found.drifted
    assert found.null_share == pytest.approx(0.3, abs=0.05)


def test_a_new_category_is_drift() -> None:
    reference = feature_reference(chunked(["a", "b"] * 500), "STRING")
    assert not feature_drift(chunked(["a", "b"] * 100), reference).drifted
    assert feature_drift(chunked(["a", "b", "c", "c"] * 50), reference).drifted


def test_a_column_that_was_always_null() -> None:
    reference = feature_reference(pa.chunked_array([pa.nulls(100, pa.float64())]), "DOUBLE")
    nothing = pa.chunked_array([pa.nulls(50, pa.float64())])
    assert feature_drift(nothing, reference).psi == 0.0
    found = feature_drift(chunked([1.0] * 50), reference)
    assert found.drifted
    assert found.psi > PSI_MIN
