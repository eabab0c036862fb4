"""How much wrong values mattered: the model requested with them, and with the expected ones."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.model_bundle.bundle import Bundle
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.retrieval.expected_values import recomputed
from tallystick_monitoring.audit.findings import request_names
from tallystick_monitoring.audit.value_comparison import ComparedPart
from tallystick_monitoring.log_columns import Floats, with_columns


def with_scores(findings: pa.Table, bundle: Bundle, found: ComparedPart) -> pa.Table:
    """Findings with what the model says to their requests as served, and as they should have been.

    The original estimator answers both times, so that only the values differ. On-demand features
    of the second are computed again from the expected stored ones. A score is null where the
    estimator gives none.
    """
    contract = bundle.contract
    rows = np.flatnonzero(~np.logical_and.reduce([*found.equal.values()]))
    log, expected = found.part.table.take(rows), found.expected.take(rows)
    served = {name: log[f"feature.{name}"] for name in contract.value_columns}
    right = {name: expected[name] for name in contract.stored_columns}
    if contract.transforms:
        computed = recomputed(contract, bundle.transforms, log, stored=expected)
        right |= {name: computed[name] for name in contract.value_columns if name not in right}
    requests = pc.index_in(request_names(findings), request_names(log, contract.contract_hash))
    return with_columns(
        findings,
        {
            f"score_{name}": pa.array(_scores(bundle, columns), from_pandas=True).take(requests)
            for name, columns in (("served", served), ("expected", right))
        },
    )


def _scores(bundle: Bundle, columns: dict[str, pa.ChunkedArray]) -> Floats:
    matrix = feature_matrix(bundle.contract, columns)
    try:
        return _answers(bundle.estimator, matrix)
    except Exception:  # noqa: BLE001 estimators are not ours, and many refuse what is missing
        answers = np.full(len(matrix), np.nan)
    whole = np.flatnonzero(~np.asarray(pd.isna(matrix)).any(axis=1))
    if 0 < len(whole) < len(matrix):
        some = matrix.iloc[whole] if isinstance(matrix, pd.DataFrame) else matrix[whole]
        with suppress(Exception):
            answers[whole] = _answers(bundle.estimator, some)
    return answers


def _answers(estimator: Any, matrix: Any) -> Floats:
    return np.asarray(estimator.predict_proba(matrix)[:, 1], dtype=np.float64)
