"""What a fitted model says about rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.errors import ContractError, Problem
from tallystick.model_bundle.evaluation_metrics import Floats, scores, slice_labels, slice_scores
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.model_features import computed_values, stored_values

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.model_bundle.bundle import Bundle

Texts = np.ndarray[Any, np.dtype[np.str_]]


@dataclass(frozen=True)
class Evaluation:
    """Predictions for the holdout and what they scored.

    Attributes:
        rows: The holdout: keys, request fields, request time, features and label.
        outcomes: 0 or 1, of shape (rows,).
        predictions: Probability of 1, of shape (rows,).
        slices: Slice column → its value of each row, as text.
        metrics: Scores over all rows.
        slice_metrics: Slice column → value → scores, for values with enough rows.
    """

    rows: pa.Table
    outcomes: Floats
    predictions: Floats
    slices: Mapping[str, Texts]
    metrics: dict[str, float]
    slice_metrics: dict[str, dict[str, dict[str, float]]]


def evaluate(
    estimator: Any, inputs: ModelInputs, rows: pa.Table, *, label: str, slices: tuple[str, ...]
) -> Evaluation:
    """Score a fitted estimator.

    Args:
        estimator: The fitted estimator.
        inputs: What it takes.
        rows: Rows with features and label.
        label: Name of the label's column.
        slices: Columns of ``rows`` to split by.
    """
    outcomes = rows[label].to_numpy().astype(np.float64)
    predictions = probabilities(estimator, inputs, rows)
    values = {name: slice_labels(rows[name]) for name in slices}
    return Evaluation(
        rows=rows,
        outcomes=outcomes,
        predictions=predictions,
        slices=values,
        metrics=scores(outcomes, predictions),
        slice_metrics={
            name: slice_scores(outcomes, predictions, column) for name, column in values.items()
        },
    )


def probabilities(estimator: Any, inputs: ModelInputs, rows: pa.Table) -> Floats:
    """Probability of 1 for each row, of shape (rows,)."""
    columns = {name: rows[name] for name in inputs.feature_names}
    predicted = estimator.predict_proba(feature_matrix(inputs, columns))
    return np.asarray(predicted[:, 1], dtype=np.float64)


def predictions_of(repo: Repo, bundle: Bundle, rows: pa.Table, *, clock: VisibilityClock) -> Floats:
    """What an earlier model says about the same rows, with its own features and functions.

    Args:
        repo: Where the sources are.
        bundle: The earlier model.
        rows: Requests: keys, request fields and request time, with anything else.
        clock: When a row counts as visible.

    Raises:
        ContractError: The rows lack a request column of the earlier model, or one of its
            views is no longer defined.
    """
    contract = bundle.contract
    needed = [*contract.entity_keys, *contract.request_fields]
    views = {view.name for view in repo.store.list_all_feature_views()}
    problems = [
        Problem(f"request column {column.name}", column.dtype, "absent")
        for column in needed
        if column.name not in rows.column_names
    ] + [
        Problem(f"view {use.spec.name}", "defined", "absent")
        for use in contract.views
        if use.spec.name not in views
    ]
    if problems:
        raise ContractError(
            f"The champion of model {contract.model!r} cannot be compared on today's requests.",
            problems,
            hint=f"Undo the change, or replace it unseen:  tally train {contract.model} --promote",
        )
    entity_rows = rows.select([*(column.name for column in needed), REQUEST_TIME])
    values = stored_values(repo, contract.views, entity_rows, clock=clock)
    return probabilities(
        bundle.estimator, contract, computed_values(contract, bundle.transforms, values)
    )
