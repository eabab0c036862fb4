from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from tallystick import Gate, Label, Model

SERVICE = SimpleNamespace(name="features")
SOURCE = SimpleNamespace(timestamp_field="request_time", created_timestamp_column="known")


def label(**changes):
    given = {"source": SOURCE, "column": "y", "keys": ("k",), "matures_after": timedelta(hours=1)}
    return Label(**given | changes)


def test_a_label_needs_the_time_at_which_it_became_known():
    source = SimpleNamespace(timestamp_field="request_time", created_timestamp_column="")
    with pytest.raises(ValidationError, match="created_timestamp_column"):
        label(source=source)


def test_a_label_needs_a_key():
    with pytest.raises(ValidationError, match="keys"):
        label(keys=())


def test_a_gate_needs_a_condition():
    with pytest.raises(ValidationError, match="max_regression, limit, or both"):
        Gate(metric="auc")


def test_the_population_defaults_to_the_labels_source():
    model = Model(name="m", features=SERVICE, label=label(), estimator=object())
    assert model.requests is SOURCE


@pytest.mark.parametrize("name", ["", "Late", "late arrival", "../late", "x" * 65])
def test_model_names_are_safe_for_paths_and_addresses(name):
    with pytest.raises(ValidationError, match="name"):
        Model(name=name, features=SERVICE, label=label(), estimator=object())


def test_features_must_be_a_service():
    with pytest.raises(ValidationError, match="FeatureService"):
        Model(name="m", features=["stats:trips"], label=label(), estimator=object())


def test_a_population_needs_a_request_time():
    source = SimpleNamespace(timestamp_field="")
    with pytest.raises(ValidationError, match="timestamp_field"):
        Model(name="m", features=SERVICE, label=label(), estimator=object(), population=source)


@pytest.mark.parametrize("tolerance", [-1e-9, 1.0, float("nan")])
def test_a_tolerance_is_a_difference_of_probabilities(tolerance):
    with pytest.raises(ValidationError, match="compile_tolerance"):
        Model(
            name="m",
            features=SERVICE,
            label=label(),
            estimator=object(),
            compile_tolerance=tolerance,
        )
