"""A small contract for tests that need one but no repo."""

from __future__ import annotations

from datetime import UTC, datetime

from tallystick.definitions.contract import (
    FeatureReference,
    FeatureSpec,
    LabelSpec,
    ModelContract,
    Reference,
    TrainingData,
    ViewUse,
)
from tallystick.definitions.feature_view import Column, ViewSpec


def small_contract(**changes):
    """Two stored features of one view with an integer key, and one request field."""
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="driver", dtype="INT64"),),
        columns=(Column(name="trips", dtype="INT64"), Column(name="rate", dtype="FLOAT")),
        ttl_us=3_600_000_000,
        event_column="event_time",
        created_column="created",
    )
    given = {
        "project": "demo",
        "model": "demo_model",
        "entity_keys": (Column(name="driver", dtype="INT64"),),
        "request_fields": (Column(name="amount", dtype="DOUBLE"),),
        "features": (
            FeatureSpec(
                name="stats__trips", view="stats", feature="trips", dtype="INT64", kind="view"
            ),
            FeatureSpec(
                name="stats__rate", view="stats", feature="rate", dtype="FLOAT", kind="view"
            ),
        ),
        "views": (
            ViewUse(
                spec=spec, name="stats", key_map={"driver": "driver"}, columns=("trips", "rate")
            ),
        ),
        "transforms": (),
        "label": LabelSpec(column="y", keys=("driver",), matures_after_us=3_600_000_000),
        "threshold": 0.5,
        "slices": (),
        "reference": Reference(
            features={},
            views={},
            prediction=FeatureReference(rows=0, null_share=0.0),
            label_rate=0.5,
        ),
        "data": TrainingData(
            start=datetime(2013, 1, 1, tzinfo=UTC),
            end=datetime(2013, 3, 1, tzinfo=UTC),
            known_until=datetime(2013, 3, 1, tzinfo=UTC),
            rows=10,
            quarantined_rows=0,
            clock="knowledge",
            content_hash="0",
        ),
        "packages": {},
    }
    return ModelContract(**given | changes)
