"""Fitted ensembles of trees, their rows and their contract, for tests of compiled forms."""

from __future__ import annotations

from functools import cache

import numpy as np
from sklearn.ensemble import (
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
)

from contracts import small_contract
from tallystick.definitions.contract import FeatureSpec
from tallystick.model_bundle.bundle import Bundle
from tallystick.model_bundle.compiled.form_comparison import compile_model
from tallystick.point_in_time.on_demand import Transforms

FEATURES = 5
TOLERANCE = 1e-9

ENSEMBLES = {
    "histogram boosting": HistGradientBoostingClassifier(max_iter=20),
    "histogram boosting that stopped early": HistGradientBoostingClassifier(
        early_stopping=True, n_iter_no_change=2, random_state=0
    ),
    "weighted histogram boosting": HistGradientBoostingClassifier(
        max_iter=20, class_weight="balanced", monotonic_cst=[1, 0, 0, 0, 0]
    ),
    "gradient boosting": GradientBoostingClassifier(n_estimators=20, random_state=0),
    "gradient boosting that stopped early": GradientBoostingClassifier(
        n_estimators=200, n_iter_no_change=2, random_state=0
    ),
    "forest": RandomForestClassifier(n_estimators=10, random_state=0),
    "weighted forest": RandomForestClassifier(
        n_estimators=15, class_weight="balanced_subsample", min_samples_leaf=5, random_state=0
    ),
    "forest of small trees": RandomForestClassifier(n_estimators=10, max_depth=4, random_state=0),
    "boosting of large trees": HistGradientBoostingClassifier(
        max_iter=10, max_leaf_nodes=None, min_samples_leaf=2
    ),
    "extra trees": ExtraTreesClassifier(n_estimators=10, random_state=0),
}
WALKED = {"forest", "extra trees", "boosting of large trees"}
"""Those with a tree that has more than sixty-four leaves."""

TAKE_NO_NULL = {"gradient boosting", "gradient boosting that stopped early"}


def rows_of(count=600, *, nulls=True):
    """Rows of numbers: whole ones, float32 ones, float64 ones; a tenth null on request."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(count, FEATURES))
    matrix[:, 1] = matrix[:, 1].round()
    matrix[:, 2] = matrix[:, 2].astype(np.float32)
    if nulls:
        matrix[rng.random(matrix.shape) < 0.1] = np.nan
    return matrix


def outcomes_of(matrix):
    noise = np.random.default_rng(1).normal(size=len(matrix))
    return (np.nan_to_num(matrix[:, 0]) + np.nan_to_num(matrix[:, 1]) + noise > 0.5).astype(int)


@cache
def fitted(name):
    """One of :data:`ENSEMBLES`, fitted, and the rows that it was fitted to."""
    matrix = rows_of(nulls=name not in TAKE_NO_NULL)
    return ENSEMBLES[name].fit(matrix, outcomes_of(matrix)), matrix


def inputs_of(features=FEATURES, **changes):
    """A contract with so many numbers as features."""
    specs = tuple(
        FeatureSpec(name=f"v__{n}", view="v", feature=str(n), dtype="DOUBLE", kind="view")
        for n in range(features)
    )
    return small_contract(features=specs, **changes)


def compiled_bundle(estimator, matrix, *, tolerance=TOLERANCE, threshold=0.5, contract=None):
    """A bundle as training makes it, and why the original serves, if it does."""
    contract = inputs_of(matrix.shape[1], threshold=threshold) if contract is None else contract
    compilation = compile_model(
        estimator, contract, [matrix], threshold=contract.threshold, tolerance=tolerance
    )
    contract = type(contract).model_validate(
        {**contract.model_dump(), "compiled": compilation.spec}
    )
    return Bundle(contract, estimator, Transforms({}), compilation.data), compilation.reason
