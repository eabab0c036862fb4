"""For every row, the compiled form answers as the estimator that it was made from."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensembles import ENSEMBLES, FEATURES, compiled_bundle, fitted
from tallystick.model_bundle.compiled.form_comparison import probe_rows
from tallystick.model_bundle.compiled.scorer import Scorer

DIFFERENCE_MAX = 1e-14
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, 1e300, -1e300, 3.4028235677973366e38]


@cache
def scene(name):
    """The estimator, its scorer, and values at which its trees split, with their neighbours."""
    estimator, matrix = fitted(name)
    bundle, _ = compiled_bundle(estimator, matrix)
    scorer = Scorer(bundle.contract, estimator, bundle.compiled)
    assert scorer.form == "compiled"
    return estimator, scorer, sorted(set(probe_rows(scorer._compiled, 400)[1:].ravel().tolist()))


def rows(values):
    number = st.sampled_from(values) | st.sampled_from(SPECIAL) | st.floats() | st.floats(width=32)
    return st.lists(
        st.lists(number, min_size=FEATURES, max_size=FEATURES), min_size=1, max_size=4
    ).map(lambda listed: np.array(listed, dtype=np.float64))


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ENSEMBLES)
@settings(max_examples=40, deadline=None)
@given(st.data())
def test_both_forms_answer_or_refuse_alike(name, data):
    estimator, scorer, values = scene(name)
    matrix = data.draw(rows(values))
    try:
        expected = estimator.predict_proba(matrix)[:, 1]
    except ValueError:
        with pytest.raises(ValueError, match=r"NaN|infinity"):
            scorer.predict(matrix)
        return
    found = scorer.predict(matrix)
    assert np.abs(found - expected).max() <= DIFFERENCE_MAX
    assert np.array_equal(found >= 0.5, expected >= 0.5)
    # A row's answer is the same to the last bit, alone or among others.
    alone = [scorer.predict(matrix[row : row + 1])[0] for row in range(len(matrix))]
    assert alone == found.tolist()
