"""Conditions that a challenger must meet before it may replace the champion.

Both are scored on the same rows, which the challenger was not trained on. Over all rows a gate is
applied as it is written. On a slice it fails only if the excess is significant: larger than *z*
standard errors of the paired difference, since some of many small slices always look worse by
chance. *z* is 2, or the one-sided 5% quantile of the normal distribution after Bonferroni's
correction for the number of slices that the gate is applied to, whichever is larger.

The standard error is exact for metrics that are means over rows (log loss, Brier score). For the
others it comes from a paired bootstrap with a fixed seed, so that a decision can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from tallystick.definitions.model import LOWER_IS_BETTER, Gate, Metric, Model
from tallystick.model_bundle.evaluation_metrics import (
    ROWS_MIN_SLICE,
    Floats,
    calibration_error,
    log_losses,
)
from tallystick.records.record_store import GateResult

BOOTSTRAP_DRAWS = 100
SEED = 20_130_101
Z_MIN = 2.0
SIGNIFICANCE = 0.05
TOLERANCE = 1e-12
"""Excess up to which two sums of floats are called equal."""

Texts = np.ndarray[Any, Any]


def apply_gates(
    model: Model,
    outcomes: Floats,
    champion_predictions: Floats | None,
    challenger_predictions: Floats,
    slices: Mapping[str, Texts],
) -> list[GateResult]:
    """Apply every gate of a model.

    Args:
        model: The model whose gates are applied.
        outcomes: 0 or 1, of shape (rows,).
        champion_predictions: Probability of 1 by the champion, of shape (rows,); None if there is
            no champion, so that only limits apply.
        challenger_predictions: The same by the challenger.
        slices: Slice column → its value of each row, as text, of shape (rows,).

    Returns:
        One result for each condition and slice: ``all``, or ``column=value`` for slices with enough
        rows.
    """
    results = []
    for gate in model.gates:
        parts: list[tuple[str, Texts | None]] = [("all", None)]
        if gate.per_slice:
            parts += list(_slice_rows(slices))
        z = max(Z_MIN, NormalDist().inv_cdf(1 - SIGNIFICANCE / max(len(parts) - 1, 1)))
        for where, rows in parts:
            picked = slice(None) if rows is None else rows
            results += _apply(
                gate,
                where,
                outcomes[picked],
                None if champion_predictions is None else champion_predictions[picked],
                challenger_predictions[picked],
                z=0.0 if rows is None else z,
            )
    return results


def _slice_rows(slices: Mapping[str, Texts]) -> Iterator[tuple[str, Texts]]:
    for column, values in slices.items():
        for value in np.unique(values):
            rows = values == value
            if int(rows.sum()) >= ROWS_MIN_SLICE:
                yield f"{column}={value}", rows


def _apply(
    gate: Gate,
    where: str,
    outcomes: Floats,
    champion: Floats | None,
    challenger: Floats,
    *,
    z: float,
) -> list[GateResult]:
    """Apply one gate to some rows; no result where its metric is undefined."""
    ours = _score(gate.metric, outcomes, challenger)
    theirs = None if champion is None else _score(gate.metric, outcomes, champion)
    if ours is None:
        return []
    sign = 1 if gate.metric in LOWER_IS_BETTER else -1
    checks: list[tuple[str, float, Floats | None]] = []
    if gate.max_regression is not None and champion is not None and theirs is not None:
        text = f"{gate.metric} at most {gate.max_regression:g} worse than the champion's"
        checks.append((text, sign * (ours - theirs) - gate.max_regression, champion))
    if gate.limit is not None:
        bound = "at most" if gate.metric in LOWER_IS_BETTER else "at least"
        checks.append((f"{gate.metric} {bound} {gate.limit:g}", sign * (ours - gate.limit), None))
    results = []
    for text, excess, compared in checks:
        passed = excess <= TOLERANCE
        if z and not passed:
            error = _standard_error(gate.metric, outcomes, challenger, compared)
            passed = excess <= TOLERANCE + z * error
        results.append(
            GateResult(gate=text, where=where, champion=theirs, challenger=ours, passed=passed)
        )
    return results


def _standard_error(
    metric: Metric, outcomes: Floats, challenger: Floats, champion: Floats | None
) -> float:
    """Standard error of the metric, or of the paired difference to the champion's."""
    if metric in {"log_loss", "brier"}:
        losses = _row_losses(metric, outcomes, challenger)
        if champion is not None:
            losses = losses - _row_losses(metric, outcomes, champion)
        return float(losses.std(ddof=1) / np.sqrt(len(losses)))
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(BOOTSTRAP_DRAWS):
        rows = rng.integers(0, len(outcomes), size=len(outcomes))
        ours = _score(metric, outcomes[rows], challenger[rows])
        theirs = 0.0 if champion is None else _score(metric, outcomes[rows], champion[rows])
        if ours is not None and theirs is not None:
            draws.append(ours - theirs)
    return float(np.std(draws, ddof=1)) if len(draws) > 1 else float("inf")


def _score(metric: Metric, outcomes: Floats, predictions: Floats) -> float | None:
    """One of the scores of ``scores``; None where it is undefined."""
    if metric in {"log_loss", "brier"}:
        return float(_row_losses(metric, outcomes, predictions).mean())
    if metric == "ece":
        return calibration_error(outcomes, predictions)
    if not 0 < outcomes.sum() < len(outcomes):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(outcomes, predictions))


def _row_losses(metric: Metric, outcomes: Floats, predictions: Floats) -> Floats:
    if metric == "log_loss":
        return log_losses(outcomes, predictions)
    return np.asarray((predictions - outcomes) ** 2)
