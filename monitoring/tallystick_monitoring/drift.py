"""Whether the world moved: features and predictions against what training saw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tallystick.definitions.contract import FeatureReference, ModelContract
from tallystick.model_bundle.reference import shares_now
from tallystick.prediction_log.log_reader import LogPart
from tallystick.records.record_store import DriftReport, FeatureDrift
from tallystick_monitoring.log_columns import Floats

PSI_MIN = 0.1
"""A smaller index is never called drift, however many rows there are."""

CONFIDENCE = 0.999
"""Share of samples of an unmoved feature that stay below the limit."""


def drift(contract: ModelContract, parts: Sequence[LogPart]) -> DriftReport | None:
    """Compare logged features and predictions with a contract's reference.

    Features are taken from every part of the log that has them. Predictions are from the contract's
    own part alone, since another model's may differ though nothing moved.

    Returns:
        None without any row, or without a prediction of this contract.
    """
    mine = [part.table for part in parts if part.contract.contract_hash == contract.contract_hash]
    predictions = _column(mine, "prediction")
    if predictions is None:
        return None
    features = {}
    types = {feature.name: feature.dtype for feature in contract.features}
    for name, reference in contract.reference.features.items():
        agreeing = [
            part.table for part in parts if part.contract.value_columns.get(name) == types.get(name)
        ]
        column = _column(agreeing, f"feature.{name}")
        if column is not None:
            features[name] = feature_drift(column, reference)
    return DriftReport(
        rows=sum(part.table.num_rows for part in parts),
        features=features,
        prediction=feature_drift(predictions, contract.reference.prediction),
    )


def feature_drift(column: pa.ChunkedArray, reference: FeatureReference) -> FeatureDrift:
    """How far a column has moved from its reference.

    The index is taken over the reference's bins and, as one more bin, null. Were nothing moved, it
    would be about chi-square with (bins - 1) degrees of freedom times (1/rows now + 1/rows then)
    (Yurdakul and Naranjo, "Statistical properties of the population stability index", 2020). The
    limit is a quantile of that, but at least :data:`PSI_MIN`.
    """
    from scipy.stats import chi2

    rows = len(column)
    null_share = column.null_count / rows
    then = _with_null(np.array(reference.shares), reference.null_share)
    shares = shares_now(column, reference) if reference.shares else np.empty(0)
    now = _with_null(shares, null_share)
    spread = 1 / rows + 1 / max(reference.rows, 1)
    limit = max(PSI_MIN, float(chi2.ppf(CONFIDENCE, max(len(now) - 1, 1))) * spread)
    psi = _psi(now, then, rows_now=rows, rows_then=max(reference.rows, 1))
    return FeatureDrift(
        psi=psi,
        limit=limit,
        null_share=null_share,
        null_share_reference=reference.null_share,
        drifted=psi > limit,
    )


def _with_null(shares: Floats, null_share: float) -> Floats:
    """Shares of all rows: the bins', and then null's. Without bins, any value is one bin."""
    bins = shares * (1 - null_share) if len(shares) else np.array([1 - null_share])
    return np.append(bins, null_share)


def _psi(now: Floats, then: Floats, *, rows_now: int, rows_then: int) -> float:
    """Population stability index. An empty bin counts as half a row."""
    one = np.maximum(now, 0.5 / rows_now)
    other = np.maximum(then, 0.5 / rows_then)
    # A bin that is empty on both sides says nothing.
    filled = (now > 0) | (then > 0)
    return float(((one - other) * np.log(one / other))[filled].sum())


def _column(tables: Sequence[pa.Table], name: str) -> pa.ChunkedArray | None:
    chunks = [chunk for table in tables for chunk in table[name].chunks]
    return pa.chunked_array(chunks) if sum(map(len, chunks)) else None
