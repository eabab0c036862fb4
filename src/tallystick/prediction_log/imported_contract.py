"""Contracts of models that were not trained here, for the import of their predictions.

A feature service that another server answers from has no contract. To import and audit its log, one
is made from the definitions as they are applied now. It has no training data and no label.
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
    """The contract of the model that answers from a feature service.

    Args:
        repo: An applied repo.
        service: Name of the feature service, which becomes the name of the model.

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
