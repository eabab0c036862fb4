"""Evaluation metrics of probabilities against outcomes, used by gates and monitors alike."""

from __future__ import annotations

from typing import Any

import numpy as np

ROWS_MIN_SLICE = 200
"""Rows below which a slice is not scored: its figures would be noise."""

CALIBRATION_BINS = 10
CLIP = 1e-7
"""Predictions are clipped this far from 0 and 1 for the log loss, which is otherwise unbounded."""

Floats = np.ndarray[Any, np.dtype[np.float64]]


def log_losses(outcomes: Floats, predictions: Floats) -> Floats:
    """The log loss of each row, in nats."""
    p = np.clip(predictions, CLIP, 1 - CLIP)
    return -(outcomes * np.log(p) + (1 - outcomes) * np.log(1 - p))


def scores(outcomes: Floats, predictions: Floats) -> dict[str, float]:
    """Log loss, Brier score, area under the ROC curve and expected calibration error.

    Args:
        outcomes: 0 or 1, of shape (rows,).
        predictions: Probability of 1, of shape (rows,).

    Returns:
        ``log_loss``, ``brier``, ``ece`` and, if both outcomes occur, ``auc``; empty without rows.
    """
    if len(outcomes) == 0:
        return {}
    result = {
        "log_loss": float(log_losses(outcomes, predictions).mean()),
        "brier": float(((predictions - outcomes) ** 2).mean()),
        "ece": calibration_error(outcomes, predictions),
    }
    if 0 < outcomes.sum() < len(outcomes):
        from sklearn.metrics import roc_auc_score

        result["auc"] = float(roc_auc_score(outcomes, predictions))
    return result


def calibration_error(outcomes: Floats, predictions: Floats) -> float:
    """Expected calibration error over ten bins of equal numbers of rows.

    The mean over rows of |share of positives - mean prediction| in the row's bin (Naeini, Cooper
    and Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015).
    """
    order = np.argsort(predictions, kind="stable")
    bins = np.array_split(order, min(CALIBRATION_BINS, len(order)))
    gaps = [
        abs(float(outcomes[rows].mean()) - float(predictions[rows].mean())) * len(rows)
        for rows in bins
    ]
    return sum(gaps) / len(order)


def slice_scores(
    outcomes: Floats, predictions: Floats, values: np.ndarray[Any, Any]
) -> dict[str, dict[str, float]]:
    """Scores of each value of a slice that has enough rows, with ``rows``; null is ``"null"``.

    Args:
        outcomes: 0 or 1, of shape (rows,).
        predictions: Probability of 1, of shape (rows,).
        values: The slice's value of each row, of shape (rows,), as text.
    """
    result: dict[str, dict[str, float]] = {}
    for value in np.unique(values):
        rows = values == value
        count = int(rows.sum())
        if count >= ROWS_MIN_SLICE:
            result[str(value)] = {
                "rows": float(count),
                **scores(outcomes[rows], predictions[rows]),
            }
    return result


def slice_labels(column: Any) -> np.ndarray[Any, Any]:
    """Text of each value of an Arrow column, ``"null"`` for null, to split rows by."""
    return np.array(["null" if value is None else str(value) for value in column.to_pylist()])
