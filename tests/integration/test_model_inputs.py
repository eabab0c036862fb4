"""What a model takes, read from Feast's registry."""

from __future__ import annotations

import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Int64

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
