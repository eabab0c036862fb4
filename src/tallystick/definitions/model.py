"""What an engineer declares beside Feast definitions: a model, its label, its gates, retraining.

A ``Model`` is declared once, in a file of the Feast repo. Training, serving and monitoring read it.
``feast apply`` imports the file and ignores objects that are not Feast's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metric = Literal["log_loss", "brier", "auc", "ece"]
"""Log loss, Brier score, area under the ROC curve, expected calibration error."""

LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece"})


class Definition(BaseModel):
    """Base class of Tallystick's declarations."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Label(Definition):
    """The outcome of a request, which becomes known some time after it.

    The source is a Feast data source with one row per labelled request: its ``timestamp_field`` is
    the *request time* that the row labels, its ``created_timestamp_column`` the moment at which the
    label became known. Several rows for one request are corrections: the last known one counts.

    Attributes:
        source: Feast data source of the labels.
        column: Column that holds 0 or 1 (or false, true).
        keys: Columns that, with the request time, tell one request from another. Each is an entity
            key or a request field of the model's features.
        matures_after: Time after the request past which a missing label will never come.
    """

    source: Any
    column: str
    keys: tuple[str, ...] = Field(min_length=1)
    matures_after: timedelta

    @model_validator(mode="after")
    def _check_source(self) -> Label:
        for attribute in ("timestamp_field", "created_timestamp_column"):
            if not getattr(self.source, attribute, None):
                raise ValueError(
                    f"the label's source must have a {attribute}: a label without the time at "
                    "which it became known lets the future into training"
                )
        return self


class Gate(Definition):
    """A condition that a challenger must meet before it may replace the champion.

    Both are evaluated on the same rows, on which neither was trained.

    Attributes:
        metric: What is compared.
        max_regression: By how much the challenger may be worse than the champion (in the metric's
            unit). 0 means at least as good.
        limit: Absolute bound: the largest value for losses, the smallest for ``auc``.
        per_slice: Whether the condition must hold on every slice with enough rows as well.
    """

    metric: Metric
    max_regression: float | None = Field(default=None, ge=0)
    limit: float | None = None
    per_slice: bool = False

    @model_validator(mode="after")
    def _check_some_condition(self) -> Gate:
        if self.max_regression is None and self.limit is None:
            raise ValueError("a gate needs max_regression, limit, or both")
        return self


class Retraining(Definition):
    """When a model may be retrained, and when that pays.

    Attributes:
        min_interval: Shortest time between two trainings.
        min_labels: Mature labels since the last training that a decision needs.
        horizon: Time over which the gain of a retraining is summed.
        cost: What a retraining costs, in log loss summed over requests (nats): a retraining pays
            when the expected gain per request times the requests of the horizon exceeds it.
        window: Length of history to train on; None for all of it.
        holdout: The most recent part of the window, kept out of training to compare challenger and
            champion.
    """

    min_interval: timedelta = timedelta(days=7)
    min_labels: int = Field(default=1_000, ge=1)
    horizon: timedelta = timedelta(days=28)
    cost: float = Field(default=0.0, ge=0)
    window: timedelta | None = None
    holdout: timedelta = timedelta(days=7)


class Model(Definition):
    """A model: its features, its label, its estimator, and when it may be replaced.

    Attributes:
        name: Name in the API and in the model registry.
        features: Feast feature service that names every input.
        label: The outcome to learn.
        estimator: Unfitted scikit-learn compatible classifier with ``predict_proba``. It is cloned
            for every training.
        population: Feast data source of the requests to learn from: entity keys, request fields and
            request time (its ``timestamp_field``). Default: the label's source.
        threshold: Probability from which a prediction counts as positive.
        compile_tolerance: Largest difference of a probability for which the compiled form of an
            ensemble of trees may answer in place of the estimator; None never to compile it.
        frame: Whether the estimator takes a pandas DataFrame with named columns: needed for text
            features and for estimators that select columns by name; an array is quicker.
        slices: Entity keys, request fields or features by which every evaluation is split.
        gates: Conditions for a challenger.
        retraining: When to train again.
        description: One sentence about the model.
        owner: Who is responsible for the model.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)
    features: Any
    label: Label
    estimator: Any
    population: Any = None
    threshold: float = Field(default=0.5, gt=0, lt=1)
    compile_tolerance: float | None = Field(default=1e-9, ge=0, lt=1)
    frame: bool = False
    slices: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = (Gate(metric="log_loss", max_regression=0.0),)
    retraining: Retraining = Retraining()
    description: str = ""
    owner: str = ""

    @model_validator(mode="after")
    def _check_features(self) -> Model:
        if not hasattr(self.features, "name"):
            raise ValueError(
                "features must be a Feast FeatureService, in which the inputs are named"
            )
        if self.population is not None and not getattr(self.population, "timestamp_field", None):
            raise ValueError(
                "the population's source must have a timestamp_field: the request time"
            )
        return self

    @property
    def requests(self) -> Any:
        """The data source of the requests: the population, or else the label's source."""
        return self.population if self.population is not None else self.label.source
