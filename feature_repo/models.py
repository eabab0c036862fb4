"""The models of the reference scenario."""

from __future__ import annotations

from datetime import timedelta

from feeds import arrivals, outcomes, planned_departures
from services import cancellation_features, late_arrival_features
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tallystick import Gate, Label, Model, Retraining

late_arrival = Model(
    name="late_arrival",
    description="Will the flight land 15 minutes late or more?",
    owner="operations",
    features=late_arrival_features,
    population=planned_departures,
    label=Label(
        source=arrivals,
        column="late",
        keys=("carrier", "flight", "origin"),
        # The longest wait of the year from request to landing was under 35 hours.
        matures_after=timedelta(hours=36),
    ),
    estimator=HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.1,
        max_leaf_nodes=15,
        min_samples_leaf=200,
        l2_regularization=5.0,
        random_state=2013,
    ),
    slices=("carrier", "origin", "schedule__local_hour"),
    gates=(
        Gate(metric="log_loss", max_regression=0.0),
        Gate(metric="brier", max_regression=0.002, per_slice=True),
        # A stormy week alone takes any model past a tenth.
        Gate(metric="ece", limit=0.15),
        Gate(metric="auc", limit=0.60),
    ),
    retraining=Retraining(
        min_interval=timedelta(days=28),
        min_labels=1_000,
        horizon=timedelta(days=28),
        cost=10.0,
        window=None,
        holdout=timedelta(days=7),
    ),
)

cancellation = Model(
    name="cancellation",
    description="Will the departure be cancelled?",
    owner="operations",
    features=cancellation_features,
    population=planned_departures,
    label=Label(
        source=outcomes,
        column="cancelled",
        keys=("carrier", "flight", "origin"),
        # Settled a day after the departure, which is two hours after the request.
        matures_after=timedelta(hours=26),
    ),
    estimator=make_pipeline(
        SimpleImputer(strategy="median", keep_empty_features=True),
        StandardScaler(),
        LogisticRegression(C=0.1, max_iter=300),
    ),
    threshold=0.2,
    slices=("carrier", "origin"),
    gates=(
        Gate(metric="log_loss", max_regression=0.0),
        Gate(metric="auc", limit=0.60),
    ),
    retraining=Retraining(
        min_interval=timedelta(days=56),
        min_labels=1_000,
        cost=10.0,
        holdout=timedelta(days=14),
    ),
)
