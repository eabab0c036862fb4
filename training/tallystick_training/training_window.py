"""Which requests to learn from where nobody says so."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.errors import DataError
from tallystick_training.population import earliest

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model


def training_start(repo: Repo, model: Model, *, end: datetime) -> datetime:
    """The first request time to train on: the model's window before ``end``, or all history.

    Raises:
        DataError: The population is empty, or cannot be used.
    """
    if model.retraining.window is not None:
        return end - model.retraining.window
    first = earliest(repo, model)
    if first is None:
        raise DataError(f"The population of model {model.name!r} has no rows.")
    return first
