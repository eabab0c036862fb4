from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from ensembles import (
    ENSEMBLES,
    FEATURES,
    TAKE_NO_NULL,
    TOLERANCE,
    WALKED,
    compiled_bundle,
    fitted,
    inputs_of,
    outcomes_of,
    rows_of,
)
from tallystick.model_bundle.compiled import CompiledFormError, forest
from tallystick.model_bundle.compiled.forest import Forest
from tallystick.model_bundle.compiled.form import CompiledForm
from tallystick.model_bundle.compiled.form_comparison import (
    PROBES,
    PROBES_LOADING,
    compile_model,
    difference,
    probe_rows,
)
from tallystick.model_bundle.compiled.scorer import Scorer


def scorer_of(bundle):
    return Scorer(bundle.contract, bundle.estimator, bundle.compiled)


def compile_it(estimator, matrix, **changes):
    given = {"threshold": 0.5, "tolerance": TOLERANCE} | changes
    return compile_model(estimator, inputs_of(), [matrix], **given)


@pytest.fixture
def forget_library():
    """Look for the library again, in the test and after it."""
    forest._library.cache_clear()
    yield
    forest._library.cache_clear()


@pytest.mark.parametrize("name", ENSEMBLES)
def test_an_ensemble_of_trees_is_compiled_and_answers_the_same(name):
    estimator, matrix = fitted(name)
    bundle, reason = compiled_bundle(estimator, matrix)
    assert reason == ""
    scorer = scorer_of(bundle)
    assert scorer.form == "compiled"
    expected = estimator.predict_proba(matrix)[:, 1]
    assert np.abs(scorer.predict(matrix) - expected).max() <= 1e-14
    spec = bundle.contract.compiled
    if name in WALKED:
        assert (spec.library, spec.version.rsplit(".", 1)[0]) == ("treelite", "4.8")
    else:
        assert (spec.library, spec.version) == ("numpy", np.__version__)
        if "boosting" in name:
            assert spec.difference_max == 0.0
    assert (spec.rows, spec.probes, spec.tolerance) == (len(matrix), PROBES, TOLERANCE)
    assert spec.difference_max <= 1e-14


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("name", ENSEMBLES)
def test_what_the_estimator_refuses_the_compiled_form_refuses_too(name):
    estimator, matrix = fitted(name)
    scorer = scorer_of(compiled_bundle(estimator, matrix)[0])
    bad = {
        "null": np.full((1, FEATURES), np.nan),
        "infinity": np.full((1, FEATURES), np.inf),
        "past float32": np.full((1, FEATURES), 2.0**128 - 2.0**103),
    }
    refused = set()
    for what, row in bad.items():
        try:
            expected = estimator.predict_proba(row)[:, 1]
        except ValueError:
            refused.add(what)
            with pytest.raises(ValueError, match=r"NaN|infinity"):
                scorer.predict(row)
        else:
            assert scorer.predict(row) == pytest.approx(expected, abs=1e-14)
    if name in TAKE_NO_NULL:
        assert refused == set(bad)
    elif "boosting" in name:
        assert refused == set()
    else:
        assert refused == {"infinity", "past float32"}


@pytest.mark.filterwarnings("ignore:invalid value encountered in reduce:RuntimeWarning")
def test_the_largest_number_that_float32_holds_is_answered_by_the_compiled_form():
    estimator, matrix = fitted("forest")
    form = scorer_of(compiled_bundle(estimator, matrix)[0])._compiled
    largest = np.nextafter(2.0**128 - 2.0**103, 0.0)
    rows = np.array([[largest] * FEATURES, [-largest] * FEATURES])
    assert form.accepted(rows).all()
    assert np.array_equal(form.predict(rows), estimator.predict_proba(rows)[:, 1])


def fit(estimator, matrix=None):
    matrix = rows_of(nulls=False) if matrix is None else matrix
    return estimator.fit(matrix, outcomes_of(matrix))


class Shifted(RandomForestClassifier):
    """A forest that answers otherwise than its trees."""

    def predict_proba(self, X):  # noqa: N803 scikit-learn's name
        return super().predict_proba(X) ** 2


@pytest.mark.parametrize(
    ("estimator", "says"),
    [
        (LogisticRegression(), "LogisticRegression is not one of scikit-learn's ensembles"),
        (make_pipeline(HistGradientBoostingClassifier(max_iter=3)), "Pipeline is not one"),
        (DummyClassifier(), "DummyClassifier is not one"),
        (Shifted(n_estimators=3), "Shifted is not one"),
        (GradientBoostingClassifier(loss="exponential", n_estimators=20), "the forms differ by up"),
        (
            GradientBoostingClassifier(init=LogisticRegression(), n_estimators=3),
            "treelite cannot compile it: Custom init",
        ),
        (
            HistGradientBoostingClassifier(max_iter=3, categorical_features=[1]),
            "it has categorical features",
        ),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_cannot_be_compiled_is_served_by_the_original(estimator, says):
    matrix = rows_of(nulls=False)
    if not isinstance(estimator, DummyClassifier):
        matrix[:, 1] = np.abs(matrix[:, 1])
    bundle, reason = compiled_bundle(fit(estimator, matrix), matrix)
    assert says in reason
    assert (bundle.contract.compiled, bundle.compiled) == (None, None)
    scorer = scorer_of(bundle)
    assert scorer.form == "original"
    assert np.array_equal(scorer.predict(matrix), estimator.predict_proba(matrix)[:, 1])


def test_three_classes_are_not_compiled():
    matrix = rows_of(nulls=False)
    estimator = RandomForestClassifier(n_estimators=3).fit(matrix, np.arange(len(matrix)) % 3)
    assert "3 classes" in compile_it(estimator, matrix).reason


def test_an_estimator_of_frames_is_not_compiled():
    estimator, matrix = fitted("forest")
    found = compile_model(
        estimator, inputs_of(frame=True), [matrix], threshold=0.5, tolerance=TOLERANCE
    )
    assert found.reason == "it takes a DataFrame"


def test_a_model_may_forbid_it():
    estimator, matrix = fitted("forest")
    found = compile_it(estimator, matrix, tolerance=None)
    assert (found.spec, found.data) == (None, None)
    assert "compile_tolerance is None" in found.reason


def test_a_difference_past_the_tolerance_is_one():
    estimator, matrix = fitted("boosting of large trees")
    difference = compile_it(estimator, matrix).spec.difference_max
    assert 0 < difference < 1e-14
    assert compile_it(estimator, matrix, tolerance=difference).reason == ""
    assert "more than the tolerance" in compile_it(estimator, matrix, tolerance=0.0).reason


def test_a_decision_that_differs_is_noticed_within_the_tolerance():
    # The exponential loss has another link: both forms agree at one half, and nowhere else.
    matrix = rows_of(nulls=False)
    estimator = fit(GradientBoostingClassifier(loss="exponential", n_estimators=20), matrix)
    assert compile_it(estimator, matrix, threshold=0.5, tolerance=0.9).reason == ""
    found = compile_it(estimator, matrix, threshold=0.3, tolerance=0.9)
    assert "decisions at the threshold differ" in found.reason


def test_made_up_rows_tell_forms_apart_that_real_rows_do_not():
    # Whole numbers are the same in float32 and in float64; a request may carry others.
    matrix = rows_of().round()
    estimator = fit(RandomForestClassifier(n_estimators=10, random_state=0), matrix)
    trees = Forest.of(estimator)
    right = CompiledForm(trees, input_type="float32", accepts="nan")
    wrong = CompiledForm(trees, input_type="float64", accepts="nan")
    given = {"threshold": 0.5, "tolerance": TOLERANCE}
    assert difference(wrong, estimator, matrix, **given) == 0.0
    for count in (PROBES, PROBES_LOADING):
        probes = probe_rows(right, count)
        assert right.accepted(probes).all()
        assert difference(right, estimator, probes, **given) == 0.0
        with pytest.raises(CompiledFormError, match="differ"):
            difference(wrong, estimator, probes, **given)


def test_a_category_that_training_did_not_see_is_why_categories_are_not_compiled():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 6, size=(600, 2)) * 3.0
    estimator = HistGradientBoostingClassifier(max_iter=10, categorical_features=[0, 1])
    estimator.fit(matrix, (matrix[:, 0] % 2 == 0) ^ (rng.random(600) < 0.1))
    form = CompiledForm(Forest.of(estimator), input_type="float64", accepts="nan")
    given = {"threshold": 0.5, "tolerance": TOLERANCE}
    assert difference(form, estimator, matrix, **given) < TOLERANCE
    with pytest.raises(CompiledFormError, match="differ"):
        difference(form, estimator, probe_rows(form, 256), **given)


def test_made_up_rows_lie_at_thresholds_and_at_the_edges():
    estimator, matrix = fitted("histogram boosting")
    form = scorer_of(compiled_bundle(estimator, matrix)[0])._compiled
    probes = probe_rows(form, PROBES)
    assert np.isnan(probes[0]).all()
    nodes = np.concatenate([tree.nodes for (tree,) in estimator._predictors])
    splits = nodes[nodes["is_leaf"] == 0]
    for feature in np.unique(splits["feature_idx"]):
        column = probes[:, feature]
        threshold = splits["num_threshold"][splits["feature_idx"] == feature]
        assert np.isin(threshold, column).mean() > 0.9
        assert np.isin(np.nextafter(threshold, np.inf), column).mean() > 0.9
        assert np.isnan(column).any()
        assert {np.inf, -np.inf, 0.0, 1e300} <= set(column)
        assert np.signbit(column[column == 0]).any()
    assert np.array_equal(probes, probe_rows(form, PROBES), equal_nan=True)


def test_rows_at_the_threshold_are_given_to_the_original(monkeypatch):
    # Ten trees that vote with whole votes: many probabilities are exactly a half.
    estimator, matrix = fitted("forest")
    scorer = scorer_of(compiled_bundle(estimator, matrix)[0])
    rows = rows_of(2_000)
    expected = estimator.predict_proba(rows)[:, 1]
    at = np.flatnonzero(expected == 0.5)
    assert 0 < len(at) < len(rows)
    # A form that is off by half of what is allowed would turn them round.
    right = CompiledForm.predict
    monkeypatch.setattr(CompiledForm, "predict", lambda *given: right(*given) - TOLERANCE / 2)
    assert np.array_equal(scorer.predict(rows) >= 0.5, expected >= 0.5)


def test_too_few_features_are_refused_rather_than_read_past_the_end():
    estimator, matrix = fitted("forest")
    scorer = scorer_of(compiled_bundle(estimator, matrix)[0])
    with pytest.raises(ValueError, match=f"takes {FEATURES} features, not {FEATURES - 1}"):
        scorer.predict(matrix[:, 1:])


@pytest.mark.parametrize("name", ["histogram boosting", "boosting of large trees"])
def test_any_layout_in_memory_is_read_right(name):
    estimator, matrix = fitted(name)
    scorer = scorer_of(compiled_bundle(estimator, matrix)[0])
    expected = scorer.predict(matrix)
    for laid in (np.asfortranarray(matrix), np.repeat(matrix, 2, axis=0)[::2]):
        assert np.array_equal(scorer.predict(laid), expected)


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.usefixtures("forget_library")
@pytest.mark.parametrize("what", ["missing", "another series"])
def test_without_the_library_the_original_serves_and_says_so_once(what, monkeypatch, caplog):
    estimator, matrix = fitted("boosting of large trees")
    bundle, _ = compiled_bundle(estimator, matrix)
    forest._library.cache_clear()
    if what == "missing":
        monkeypatch.setitem(sys.modules, "treelite.libpath", None)
        says = "treelite is missing; run  pip install 'tallystick[serving]'"
    else:
        monkeypatch.setattr(forest, "library_version", lambda: "4.9.0")
        says = "treelite 4.9.0 is installed, not 4.8"
    assert compile_it(estimator, matrix).reason == says
    scorer = scorer_of(bundle)
    assert scorer.form == "original"
    for _ in range(3):
        assert np.array_equal(scorer.predict(matrix), estimator.predict_proba(matrix)[:, 1])
    (message,) = warned(caplog)
    assert says in message


@pytest.mark.usefixtures("forget_library")
def test_small_trees_are_served_without_the_library(monkeypatch):
    estimator, matrix = fitted("histogram boosting")
    bundle, _ = compiled_bundle(estimator, matrix)
    forest._library.cache_clear()
    monkeypatch.setitem(sys.modules, "treelite.libpath", None)
    assert scorer_of(bundle).form == "compiled"


def other_bytes(name):
    estimator, matrix = fitted(name)
    return compiled_bundle(estimator, matrix)[0].compiled


SMALL, LARGE = "histogram boosting", "boosting of large trees"


@pytest.mark.parametrize(
    ("name", "data", "features", "says"),
    [
        (SMALL, lambda: b"no model", FEATURES, "its tables cannot be read"),
        (LARGE, lambda: b"no model", FEATURES, "treelite cannot read it"),
        (SMALL, lambda: other_bytes(LARGE), FEATURES, "its tables cannot be read"),
        (LARGE, lambda: other_bytes(SMALL), FEATURES, "treelite cannot read it"),
        (SMALL, lambda: other_bytes("gradient boosting"), FEATURES, "the forms differ"),
        (LARGE, lambda: other_bytes("forest"), FEATURES, "the forms differ"),
        (SMALL, None, 4, f"it takes {FEATURES} features, not 4"),
    ],
)
def test_a_form_that_does_not_fit_is_not_used(name, data, features, says, caplog):
    estimator, matrix = fitted(name)
    bundle, _ = compiled_bundle(estimator, matrix)
    contract = inputs_of(features, compiled=bundle.contract.compiled)
    scorer = Scorer(contract, estimator, data() if data else bundle.compiled)
    assert scorer.form == "original"
    (message,) = warned(caplog)
    assert says in message
    assert "demo_model" in message


def test_a_contract_without_a_compiled_form_is_served_without_a_word(caplog):
    estimator, _ = fitted("forest")
    assert Scorer(inputs_of(), estimator, None).form == "original"
    assert warned(caplog) == []
