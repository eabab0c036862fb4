"""What a kitchen reports each hour, and what is computed from it when an order comes in."""

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

kitchen = Entity(name="kitchen", join_keys=["kitchen"], value_type=ValueType.INT64)

kitchen_load = FeatureView(
    name="kitchen_load",
    entities=[kitchen],
    ttl=timedelta(hours=6),
    schema=[Field(name="open_orders", dtype=Int64), Field(name="prep_minutes", dtype=Float64)],
    source=FileSource(
        name="kitchen_hours",
        path="data/kitchen_hours",
        timestamp_field="hour",
        created_timestamp_column="known_at",
    ),
)

order = RequestSource(name="order", schema=[Field(name="distance_km", dtype=Float64)])


@on_demand_feature_view(
    sources=[kitchen_load, order],
    schema=[Field(name="minutes", dtype=Float64), Field(name="distance_km", dtype=Float64)],
    mode="python",
)
def expected(inputs):
    """Minutes to expect: those of the kitchen, and four for each kilometre."""
    pairs = list(zip(inputs["prep_minutes"], inputs["distance_km"], strict=True))
    return {
        "minutes": [None if None in pair else pair[0] + 4 * pair[1] for pair in pairs],
        "distance_km": [distance for _, distance in pairs],
    }


order_features = FeatureService(name="order_features", features=[kitchen_load, expected])
