"""What the generated repo declares, as the text of its files: four views and one model."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

MODEL: Final = "accepts"
ON_DEMAND: Final = "offer"
TTLS: Final = {"state": timedelta(hours=12), "pairing": timedelta(days=2)}
KEYS: Final = {
    "activity": ("member",),
    "state": ("venue",),
    "pairing": ("member", "venue"),
    "profile": ("venue",),
}
"""View → its join keys."""

DEFINITIONS: Final = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from sklearn.dummy import DummyClassifier

from tallystick import Label, Model

member = Entity(name="member", join_keys=["member"], value_type=ValueType.STRING)
venue = Entity(name="venue", join_keys=["venue"], value_type=ValueType.INT64)


def source(name, created="created_time"):
    return FileSource(
        name=name,
        path=f"data/{name}.parquet",
        timestamp_field="event_time",
        created_timestamp_column=created,
    )


activity = FeatureView(
    name="activity",
    entities=[member],
    ttl=timedelta(0),
    schema=[
        Field(name="member", dtype=String),
        Field(name="score", dtype=Float64),
        Field(name="spend", dtype=Float32),
        Field(name="visits", dtype=Int64),
        Field(name="grade", dtype=String),
        Field(name="active", dtype=Bool),
        Field(name="last_seen", dtype=UnixTimestamp),
    ],
    source=source("activity"),
)
state = FeatureView(
    name="state",
    entities=[venue],
    ttl=timedelta(hours=12),
    schema=[
        Field(name="venue", dtype=Int64),
        Field(name="price", dtype=Float64),
        Field(name="load", dtype=Float32),
        Field(name="stock", dtype=Int64),
        Field(name="is_open", dtype=Bool),
        Field(name="checked", dtype=UnixTimestamp),
    ],
    source=source("state"),
)
pairing = FeatureView(
    name="pairing",
    entities=[member, venue],
    ttl=timedelta(days=2),
    schema=[
        Field(name="member", dtype=String),
        Field(name="venue", dtype=Int64),
        Field(name="ratio", dtype=Float64),
        Field(name="total", dtype=Float64),
        Field(name="count", dtype=Int64),
        Field(name="rank", dtype=Int32),
        Field(name="mean", dtype=Float32),
    ],
    source=source("pairing"),
)
# Without a created time: a row counts from its event time.
profile = FeatureView(
    name="profile",
    entities=[venue],
    ttl=timedelta(0),
    schema=[
        Field(name="venue", dtype=Int64),
        Field(name="size", dtype=Float64),
        Field(name="weight", dtype=Float32),
        Field(name="kind", dtype=Int64),
        Field(name="capacity", dtype=Int64),
    ],
    source=source("profile", created=""),
)


@on_demand_feature_view(
    sources=[
        activity[["score", "grade"]],
        state[["price"]],
        RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)]),
    ],
    schema=[Field(name="value", dtype=Float64), Field(name="level", dtype=Int64)],
    mode="python",
)
def offer(inputs):
    rows = list(zip(inputs["amount"], inputs["price"], inputs["score"], inputs["grade"]))
    missing = [None in row for row in rows]
    return {
        "value": [
            None if gone else amount * price + score
            for (amount, price, score, _), gone in zip(rows, missing)
        ],
        "level": [
            None if gone else len(grade) + int(amount)
            for (amount, _, _, grade), gone in zip(rows, missing)
        ],
    }


accepts = Model(
    name="accepts",
    features=FeatureService(
        name="accepts_features",
        features=[
            activity[["score", "spend", "visits", "active", "last_seen"]],
            state,
            pairing,
            profile,
            offer,
        ],
    ),
    label=Label(
        source=source("labels"),
        column="accepted",
        keys=("member", "venue"),
        matures_after=timedelta(days=1),
    ),
    estimator=DummyClassifier(),
)
accepts_features = accepts.features
"""
