"""Compiles an estimator, and compares the compiled form with the original before it may serve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tallystick.definitions.contract import Accepts, CompiledSpec, InputType, Library, ModelInputs
from tallystick.model_bundle.compiled import CompiledFormError, Floats, first_line
from tallystick.model_bundle.compiled.forest import Forest, library_version
from tallystick.model_bundle.compiled.form import FLOAT32_LIMIT, CompiledForm, Trees

ROWS_MAX = 20_000
"""Real rows of each part that are compared, spread evenly over it."""

PROBES = 8_192
"""Made-up rows that training compares."""

PROBES_LOADING = 256
"""Made-up rows that are compared again where the model answers."""

EDGES = (
    *(np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5),
    *(5e-324, -5e-324, 1e-40, 16_777_217.0, float(2**53), float(2**31), -float(2**31)),
    *(FLOAT32_LIMIT, float(np.nextafter(FLOAT32_LIMIT, 0.0)), 1e300, -1e300),
)
"""Values at which number types, or two implementations of one rule, differ."""

EDGES_SHARE = 0.25
"""Share of edges among the values of a made-up row."""


@dataclass(frozen=True)
class Compilation:
    """The result of compiling a model.

    Attributes:
        spec: The compiled form's entry in the contract; None if the original serves.
        data: The compiled form as bytes; None likewise.
        reason: Why the original serves; empty if the compiled form does.
    """

    spec: CompiledSpec | None
    data: bytes | None
    reason: str = ""


def compile_model(
    estimator: Any,
    inputs: ModelInputs,
    parts: Sequence[Any],
    *,
    threshold: float,
    tolerance: float | None,
) -> Compilation:
    """Compile a fitted estimator, if the compiled form answers as it does.

    Args:
        estimator: The fitted estimator.
        inputs: What it takes.
        parts: Real rows as the estimator takes them, one matrix for each part of the data.
        threshold: Probability from which a prediction counts as positive.
        tolerance: Largest difference of a probability that counts as none; None not to compile.
    """
    try:
        return _compared(estimator, inputs, parts, threshold=threshold, tolerance=tolerance)
    except CompiledFormError as error:
        return Compilation(spec=None, data=None, reason=str(error))


def probe_rows(form: CompiledForm, count: int) -> Floats:
    """Made-up rows of values at which the forms could differ; the same at each call.

    Each value is a threshold of that feature somewhere in the trees, a float64 or float32 next to
    one, or an edge of the number types that the estimator takes. The first row is all null, if it
    takes that.

    Returns:
        Float64 of shape (count, features).
    """
    thresholds = form.trees.thresholds()
    edges = _taken(form, np.array(EDGES))
    random = np.random.default_rng(0)
    probes = np.empty((count, form.features))
    for feature in range(form.features):
        # A tree that asks only whether there is a value splits at infinity.
        candidates = _taken(form, _around(thresholds.get(feature, np.zeros(0))))
        # A feature that no tree looks at gets edges alone.
        near = random.choice(candidates if len(candidates) else edges, count)
        is_edge = random.random(count) < EDGES_SHARE
        probes[:, feature] = np.where(is_edge, random.choice(edges, count), near)
    if form.accepts != "finite":
        probes[0] = np.nan
    return probes


def difference(
    form: CompiledForm, estimator: Any, rows: Floats, *, threshold: float, tolerance: float
) -> float:
    """The largest difference between the forms.

    Raises:
        CompiledFormError: It is larger than the tolerance, or a decision differs.
    """
    rows = rows[form.accepted(rows)]
    if not len(rows):
        return 0.0
    try:
        # Its checks add up huge numbers of both signs.
        with np.errstate(all="ignore"):
            expected = original(estimator, rows)
    except Exception as error:
        # Any exception: the estimator is the user's code.
        raise CompiledFormError(f"the original fails on some rows: {first_line(error)}") from error
    found = form.predict(rows)
    difference = np.abs(found - expected)
    if not (difference <= tolerance).all():
        raise CompiledFormError(
            f"the forms differ by up to {difference.max():.1e}, more than the tolerance "
            f"{tolerance:g}"
        )
    if flipped := int(((found >= threshold) != (expected >= threshold)).sum()):
        raise CompiledFormError(f"{flipped} of {len(rows)} decisions at the threshold differ")
    return float(difference.max())


def original(estimator: Any, matrix: Any) -> Floats:
    """The answer of the original estimator: the probability of 1 in each row, of shape (rows,)."""
    return np.asarray(estimator.predict_proba(matrix), dtype=np.float64)[:, 1]


def _compared(
    estimator: Any,
    inputs: ModelInputs,
    parts: Sequence[Any],
    *,
    threshold: float,
    tolerance: float | None,
) -> Compilation:
    """Compile an estimator and compare the forms.

    Raises:
        CompiledFormError: It cannot be compiled, or the forms differ.
    """
    if tolerance is None:
        raise CompiledFormError("the model's compile_tolerance is None")
    if inputs.frame:
        raise CompiledFormError("it takes a DataFrame")
    input_type = _input_type(estimator)
    accepts = _accepts(estimator, len(inputs.features))
    trees, library, version = _trees(estimator)
    form = CompiledForm(trees, input_type=input_type, accepts=accepts)
    rows = np.concatenate([_spread(part) for part in parts])
    probes = _mixed(probe_rows(form, PROBES), rows)
    differences = [
        difference(form, estimator, compared, threshold=threshold, tolerance=tolerance)
        for compared in (rows, probes)
    ]
    spec = CompiledSpec(
        library=library,
        version=version,
        input_type=input_type,
        accepts=accepts,
        rows=len(rows),
        probes=len(probes),
        difference_max=max(differences),
        tolerance=tolerance,
    )
    return Compilation(spec=spec, data=trees.to_bytes())


def _trees(estimator: Any) -> tuple[Trees, Library, str]:
    """The trees in the faster of the two forms, the library that evaluates them, and its version.

    Raises:
        CompiledFormError: They cannot be read.
    """
    forest = Forest.of(estimator)
    try:
        return forest.masks(), "numpy", np.__version__
    except CompiledFormError:
        return forest, "treelite", library_version()


def _spread(rows: Floats) -> Floats:
    """At most ``ROWS_MAX`` of the rows, evenly spread."""
    step = max(1, math.ceil(len(rows) / ROWS_MAX))
    return rows[::step]


def _taken(form: CompiledForm, values: Floats) -> Floats:
    """Those of the values that the estimator takes."""
    taken: Floats = values[form.accepted(values[:, np.newaxis])]
    return taken


def _around(thresholds: Floats) -> Floats:
    """Thresholds and their neighbours in float64 and in float32."""
    exact = np.unique(thresholds)
    with np.errstate(over="ignore"):
        single = exact.astype(np.float32)
    infinity = np.float32(np.inf)
    return np.concatenate(
        [
            exact,
            np.nextafter(exact, -np.inf),
            np.nextafter(exact, np.inf),
            single.astype(np.float64),
            np.nextafter(single, -infinity).astype(np.float64),
            np.nextafter(single, infinity).astype(np.float64),
        ]
    )


def _mixed(probes: Floats, rows: Floats) -> Floats:
    """Replace some values by real ones: none in one row, nearly all in another."""
    random = np.random.default_rng(0)
    real = rows[random.integers(0, len(rows), len(probes))]
    is_real = random.random(probes.shape) < random.random((len(probes), 1))
    is_real[0] = False
    return np.where(is_real, real, probes)


def _input_type(estimator: Any) -> InputType:
    """The type to which the estimator rounds its input before it compares.

    Raises:
        CompiledFormError: It is not an ensemble of trees that can be compiled.
    """
    from sklearn import ensemble

    # The class itself, not one derived from it, which may predict otherwise.
    kinds: dict[type, InputType] = {
        ensemble.HistGradientBoostingClassifier: "float64",
        ensemble.GradientBoostingClassifier: "float32",
        ensemble.RandomForestClassifier: "float32",
        ensemble.ExtraTreesClassifier: "float32",
    }
    kind = kinds.get(type(estimator))
    if kind is None:
        raise CompiledFormError(
            f"{type(estimator).__name__} is not one of scikit-learn's ensembles of trees"
        )
    if len(estimator.classes_) != 2:  # noqa: PLR2004 negative and positive
        raise CompiledFormError(f"it has {len(estimator.classes_)} classes, not 2")
    categorical = getattr(estimator, "is_categorical_", None)
    if categorical is not None and categorical.any():
        raise CompiledFormError(
            "it has categorical features, and the forms differ for values that training did not see"
        )
    return kind


def _accepts(estimator: Any, features: int) -> Accepts:
    """Which numbers the estimator accepts, found by trying them."""
    if not _takes(estimator, np.nan, features):
        return "finite"
    return "any" if _takes(estimator, np.inf, features) else "nan"


def _takes(estimator: Any, value: float, features: int) -> bool:
    try:
        estimator.predict_proba(np.full((1, features), value))
    except ValueError:
        return False
    return True
