"""Contracts of models that were not trained here, and that only their log tells of.

A feature service that another server answers from has no contract: nobody froze one. To take its
log in and audit it, one is made of the definitions as they are applied now. Nothing was seen in
training, and nothing is known of a label.
"""

from __future__ import annotations

from tallystick.clock import EPOCH
from tallystick.definitions.contract import (
    FeatureReference,
    LabelSpec,
    ModelContract,
    Reference,
    TrainingData,
)
from tallystick.definitions.feature_repo import Repo


def observed_contract(repo: Repo, service: str) -> ModelContract:
    """The contract of whatever answers from a feature service.

    Args:
        repo: An applied repo.
        service: Name of the feature service; the log calls the model so.

    Raises:
        StateError: The repo has not been applied, or has no such service.
        DefinitionError: The definitions cannot serve a model; every reason is listed.
    """
    inputs = repo.service_inputs(repo.feature_service(service))
    return ModelContract(
        **inputs.model_copy(update={"model": service}).model_dump(),
        label=LabelSpec(column="", keys=(), matures_after_us=0),
        threshold=0.5,
        slices=(),
        reference=Reference(
            features={},
            views={},
            prediction=FeatureReference(rows=0, null_share=0.0),
            label_rate=0.0,
        ),
        data=TrainingData(
            start=EPOCH,
            end=EPOCH,
            known_until=EPOCH,
            rows=0,
            quarantined_rows=0,
            clock="knowledge",
            content_hash="",
        ),
        packages={},
    )
