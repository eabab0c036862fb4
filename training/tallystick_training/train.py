"""From a training set to a bundle: a fitted estimator and the contract it was trained under."""

from __future__ import annotations

import platform
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tallystick
from tallystick.clock import duration_us
from tallystick.definitions.contract import (
    REQUEST_TIME,
    LabelSpec,
    ModelContract,
    ModelInputs,
    Reference,
    TrainingData,
    ViewReference,
    ViewUse,
)
from tallystick.errors import DataError, DefinitionError, Problem
from tallystick.model_bundle.bundle import Bundle, write_bundle
from tallystick.model_bundle.compiled.form_comparison import Compilation, compile_model
from tallystick.model_bundle.evaluation_metrics import slice_labels
from tallystick.model_bundle.reference import feature_reference
from tallystick.point_in_time.feature_status import Status
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick_training.evaluation import Evaluation, evaluate
from tallystick_training.population import request_span
from tallystick_training.row_selection import LABEL, Counts, RowSelection
from tallystick_training.training_set import Dataset, build_dataset, content_hash

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

ROWS_MIN = 50
"""Rows below which neither a fit nor an evaluation means anything."""

SLICE_VALUES_MAX = 100
"""Values of a slice that a contract lists, the most frequent first."""

PACKAGES = ("numpy", "pyarrow", "scikit-learn")


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        contract: Its contract.
        folder: Its bundle.
        estimator: The fitted estimator.
        compilation: Its compiled form, or why the original estimator serves.
        evaluation: What it says about the holdout.
        counts: Rows in and out of the training set, the holdout included.
    """

    contract: ModelContract
    folder: Path
    estimator: Any
    compilation: Compilation
    evaluation: Evaluation
    counts: Counts


def train(repo: Repo, model: Model, selection: RowSelection) -> Trained:
    """Fit a model on all but the newest part of the window, evaluate it on that, and freeze it.

    The newest part is ``model.retraining.holdout`` long and ends with the last request whose label
    is mature. The estimator is never trained on it. The contract's reference describes the rows
    that were fitted, except for predictions: those of the holdout, since a model is surer of rows
    that it was fitted to.

    Args:
        repo: The repo, applied.
        model: What to train.
        selection: Which requests.

    Raises:
        DefinitionError: The estimator cannot be used, or fails.
        DataError: There are too few rows, or only one class; or a source cannot be used.
        InputError: The selection has no rows, or cannot be repaired.
    """
    if not hasattr(model.estimator, "predict_proba"):
        raise DefinitionError(
            f"The estimator of model {model.name!r} cannot be trained.",
            [Problem("estimator", "a classifier with predict_proba", repr(model.estimator)[:200])],
        )
    data = build_dataset(repo, model, selection)
    fitted, times, holdout = _split(repo, data, model)
    _check_views(data.inputs, times, selection.clock)
    estimator = _fit(model, data.inputs, fitted)
    evaluation = evaluate(estimator, data.inputs, holdout, label=LABEL, slices=model.slices)
    compilation = compile_model(
        estimator,
        data.inputs,
        [_matrix(data.inputs, rows) for rows in (holdout, fitted)],
        threshold=model.threshold,
        tolerance=model.compile_tolerance,
    )
    contract = ModelContract(
        **{name: getattr(data.inputs, name) for name in ModelInputs.model_fields},
        label=LabelSpec(
            column=model.label.column,
            keys=model.label.keys,
            matures_after_us=duration_us(model.label.matures_after),
        ),
        threshold=model.threshold,
        slices=model.slices,
        reference=_reference(data.inputs, fitted, times, evaluation),
        data=TrainingData(
            start=data.start,
            end=data.end,
            known_until=selection.known_until,
            rows=fitted.num_rows,
            quarantined_rows=data.counts.quarantined,
            repaired_rows=data.counts.repaired or 0,
            clock=str(selection.clock),
            content_hash=content_hash(fitted),
        ),
        packages={
            "python": platform.python_version(),
            "tallystick": tallystick.__version__,
            **{name: version(name) for name in PACKAGES},
        },
        compiled=compilation.spec,
    )
    bundle = Bundle(
        contract=contract,
        estimator=estimator,
        transforms=Transforms.from_repo(repo, data.inputs),
        compiled=compilation.data,
    )
    return Trained(
        contract=contract,
        folder=write_bundle(repo.state_dir, bundle),
        estimator=estimator,
        compilation=compilation,
        evaluation=evaluation,
        counts=data.counts,
    )


def _split(repo: Repo, data: Dataset, model: Model) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Rows to fit, their times, and the holdout.

    Raises:
        DataError: A part has too few rows or only one class.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    moment = data.end - model.retraining.holdout
    is_old = pc.less(data.table[REQUEST_TIME], pa.scalar(moment, pa.timestamp("us", tz="UTC")))
    fitted, holdout = data.table.filter(is_old), data.table.filter(pc.invert(is_old))
    problems = []
    for what, rows in (
        (f"rows before the holdout ({moment.isoformat()})", fitted),
        (f"rows of the holdout ({model.retraining.holdout})", holdout),
    ):
        if rows.num_rows < ROWS_MIN:
            problems.append(Problem(what, f"{ROWS_MIN} or more", str(rows.num_rows)))
        elif len(pc.unique(rows[LABEL])) == 1:
            problems.append(Problem(what, "labels 0 and 1", f"only {rows[LABEL][0]}"))
    if problems:
        counts = data.counts
        raise DataError(
            f"Model {model.name!r} cannot be trained on the requests from "
            f"{data.start.isoformat()} to {data.end.isoformat()}.",
            problems,
            hint=(
                f"Of {counts.population} requests {counts.quarantined} are quarantined, "
                f"{counts.immature} have no mature label yet and {counts.unlabelled} never got "
                f"one. {_advice(repo, data, model)}"
            ),
        )
    return fitted, data.times.filter(is_old), holdout


def _advice(repo: Repo, data: Dataset, model: Model) -> str:
    """What to do about too few rows."""
    with suppress(DataError):
        first, last = request_span(repo, model)
        if last < data.start or first >= data.end:
            day = (last + timedelta(days=1)).date().isoformat()
            return (
                f"Its population has requests from {first.isoformat()} to {last.isoformat()}: "
                f"train up to then, with  --end {day}"
            )
    return "Take a longer window, or a shorter holdout."


def _fit(model: Model, inputs: ModelInputs, rows: pa.Table) -> Any:
    from sklearn.base import clone

    matrix = _matrix(inputs, rows)
    outcomes = rows[LABEL].to_numpy().astype(np.int64)
    try:
        return clone(model.estimator).fit(matrix, outcomes)
    except Exception as error:
        # Any exception: the estimator is the user's.
        raise DefinitionError(
            f"The estimator of model {model.name!r} cannot be trained: "
            f"{type(error).__name__}: {error}",
            hint="Null reaches it as NaN: put an imputer before one that takes no NaN.",
        ) from error


def _matrix(inputs: ModelInputs, rows: pa.Table) -> Any:
    from tallystick.model_bundle.model_matrix import feature_matrix

    return feature_matrix(inputs, {name: rows[name] for name in inputs.feature_names})


def _reference(
    inputs: ModelInputs, rows: pa.Table, times: pa.Table, evaluation: Evaluation
) -> Reference:
    import pyarrow as pa

    return Reference(
        features={
            feature.name: feature_reference(rows[feature.name], feature.dtype)
            for feature in inputs.features
        },
        views={use.name: _view_reference(use, rows, times) for use in inputs.views},
        prediction=feature_reference(pa.chunked_array([evaluation.predictions]), "DOUBLE"),
        label_rate=float(rows[LABEL].to_numpy().mean()),
        metrics=evaluation.metrics,
        slice_values={name: _frequent(rows[name]) for name in evaluation.slices},
    )


def _check_views(inputs: ModelInputs, times: pa.Table, clock: VisibilityClock) -> None:
    """Refuse to learn from views that have no value for any request, which no estimator can tell.

    Raises:
        DataError: There are such views; all are listed.
    """
    empty = [
        use.name
        for use in inputs.views
        if Status.PRESENT not in set(times[f"{use.name}__status"].unique().to_pylist())
    ]
    if not empty:
        return
    known = (
        "A row counts from its created time on; if the history was created all at once, train by "
        "event time:  --clock event"
        if clock is VisibilityClock.KNOWLEDGE
        else "Look whether its keys and times are those of the requests."
    )
    raise DataError(
        f"No request of model {inputs.model!r} has a value of some views.",
        [Problem(f"view {name}", "values at request time", "none for any row") for name in empty],
        hint=known,
    )


def _view_reference(use: ViewUse, rows: pa.Table, times: pa.Table) -> ViewReference:
    """How old the view's values are, in seconds, and how often there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    view = use.name
    is_present = pc.equal(times[f"{view}__status"], Status.PRESENT)
    requested = rows[REQUEST_TIME].filter(is_present)
    present = times[f"{view}__event_time"].filter(is_present)
    if not len(present):
        return ViewReference(absent_share=1.0)
    moment = pa.timestamp("us", tz="UTC")
    ages_us = pc.subtract(requested.cast(moment).cast("int64"), present.cast(moment).cast("int64"))
    p50, p99 = np.quantile(ages_us.to_numpy() / 1e6, [0.5, 0.99])
    return ViewReference(
        absent_share=1 - len(present) / rows.num_rows,
        age_s_p50=float(p50),
        age_s_p99=float(p99) if _changes(use, rows.filter(is_present), present) else None,
    )


def _changes(use: ViewUse, rows: pa.Table, event_times: pa.ChunkedArray) -> bool:
    """Whether any key of a view had values of several event times."""
    keys = list(use.request_keys)
    known = rows.select(keys).append_column("event_time", event_times)
    versions = known.group_by([*keys, "event_time"]).aggregate([]).num_rows
    keyed = known.group_by(keys).aggregate([]).num_rows if keys else 1
    return bool(versions > keyed)


def _frequent(column: pa.ChunkedArray) -> tuple[str, ...]:
    """The most frequent values as text, by frequency, then by name."""
    values, counts = np.unique(slice_labels(column), return_counts=True)
    order = np.lexsort((values, -counts))[:SLICE_VALUES_MAX]
    return tuple(str(value) for value in values[order])
