"""What a model takes, read from Feast's registry."""

from __future__ import annotations

import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_source import RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

from feast_stores import feast_store
from tallystick.definitions.model_inputs import model_inputs
from tallystick.errors import DefinitionError


def service_of(store, *features):
    """A service over one view with these features."""
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats",
        entities=[driver],
        schema=[Field(name="driver_id", dtype=Int64)]
        + [Field(name=feature, dtype=Int64) for feature in features],
        source=FileSource(path="stats.parquet", timestamp_field="at"),
    )
    service = FeatureService(name="trips", features=[view])
    store.apply([driver, view, service])
    return store.get_feature_service("trips")


@pytest.mark.parametrize(
    "taken", ["status", "event_time", "created_time", "write_time", "definition"]
)
def test_a_feature_is_not_called_like_what_is_said_of_its_row(tmp_path, taken):
    store = feast_store(tmp_path)
    with pytest.raises(DefinitionError) as caught:
        model_inputs(store, service_of(store, "trips", taken))
    (problem,) = caught.value.problems
    assert (problem.where, problem.got) == (f"feature stats__{taken}", taken)


def service_with_function(store, field_type):
    """A service over a function of a feature, the join key and a request field of its name."""
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats",
        entities=[driver],
        schema=[Field(name="driver_id", dtype=Int64), Field(name="trips", dtype=Int64)],
        source=FileSource(path="stats.parquet", timestamp_field="at"),
    )
    request = RequestSource(name="request", schema=[Field(name="driver_id", dtype=field_type)])

    @on_demand_feature_view(
        sources=[view, request], schema=[Field(name="share", dtype=Float64)], mode="python"
    )
    def shares(inputs):
        return {"share": [0.5 for _ in inputs["driver_id"]]}

    service = FeatureService(name="trips", features=[shares])
    store.apply([driver, view, shares, service])
    return store.get_feature_service("trips")


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_a_key_that_is_a_request_field_is_one_value(tmp_path):
    store = feast_store(tmp_path)
    inputs = model_inputs(store, service_with_function(store, Int64))
    assert [key.name for key in inputs.entity_keys] == ["driver_id"]
    assert inputs.request_fields == ()
    assert inputs.transforms[0].inputs["driver_id"] == "driver_id"


@pytest.mark.filterwarnings("ignore:On demand feature view is an experimental")
def test_a_key_that_is_a_request_field_has_one_type(tmp_path):
    store = feast_store(tmp_path)
    with pytest.raises(DefinitionError, match="entity key driver_id: expected INT64, got STRING"):
        model_inputs(store, service_with_function(store, String))
