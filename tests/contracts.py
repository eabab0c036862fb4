"""Contracts and champions for tests that need one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

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
from tallystick.model_bundle.bundle import Champion, publish_champion, write_bundle


def contract_of(*, end=datetime(2013, 3, 1, tzinfo=UTC), **parts):
    """A contract of these parts; the others say as little as they can.

    Args:
        end: End of the training data, which span 59 days.
        parts: Fields of the contract.
    """
    given = {
        "entity_keys": (),
        "request_fields": (),
        "features": (),
        "views": (),
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
            start=end - timedelta(days=59),
            end=end,
            known_until=end,
            rows=10,
            quarantined_rows=0,
            clock="knowledge",
            content_hash="0",
        ),
        "packages": {},
    }
    return ModelContract(**given | parts)


def small_contract(**parts):
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
        "features": tuple(
            FeatureSpec(name=f"stats__{name}", view="stats", feature=name, dtype=dtype, kind="view")
            for name, dtype in (("trips", "INT64"), ("rate", "FLOAT"))
        ),
        "views": (
            ViewUse(
                spec=spec, name="stats", key_map={"driver": "driver"}, columns=("trips", "rate")
            ),
        ),
    }
    return contract_of(**given | parts)


def make_champion(state_dir, bundle, *, version="1"):
    """Write a bundle, make it the champion, and give its contract."""
    write_bundle(state_dir, bundle)
    contract = bundle.contract
    publish_champion(
        state_dir,
        Champion(model=contract.model, version=version, contract_hash=contract.contract_hash),
    )
    return contract
