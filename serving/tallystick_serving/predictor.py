"""One version of one model: reads features for instances and predicts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from uuid_utils import uuid7

from tallystick.model_bundle.bundle import Bundle, Champion
from tallystick.model_bundle.compiled.scorer import Scorer
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.online_store.online_reader import ViewRows
from tallystick.prediction_log.record import Predictions
from tallystick_serving.error_responses import PredictionError
from tallystick_serving.feature_readers import StoreClient
from tallystick_serving.instance_validation import InstanceChecker


class Predictor:
    """One version of one model, ready to answer.

    Args:
        champion: Which version it is.
        bundle: Its contract, estimator and on-demand functions.
        store: The online store that the contract's views are read from.

    Raises:
        ContractError: The model takes a type that a request cannot carry, or the store's views
            differ from the contract's.
        DefinitionError: A view has keys that the online store cannot use.
        UnavailableError: The store or the registry did not answer.
    """

    def __init__(self, champion: Champion, bundle: Bundle, store: StoreClient) -> None:
        self.champion = champion
        self.contract = bundle.contract
        self.instances = InstanceChecker(bundle.contract)
        self.scorer = Scorer(bundle.contract, bundle.estimator, bundle.compiled)
        self._transforms = bundle.transforms
        self._stored = [
            (f"{use.name}__{column}", use.name, column)
            for use in bundle.contract.views
            for column in use.columns
        ]
        self._reader = store.reader(bundle.contract)

    async def predict(
        self, columns: Mapping[str, Sequence[Any]], *, request_us: int, started_ns: int
    ) -> Predictions:
        """Predict checked instances.

        Args:
            columns: Entity key or request field → its value in each instance.
            request_us: Request time.
            started_ns: ``time.perf_counter_ns()`` at the request's arrival.

        Raises:
            UnavailableError: The online store did not answer in time.
            DamagedError: A value in the store is not a row.
            DefinitionError: An on-demand function failed.
            PredictionError: The model failed, or its prediction is not a probability.
        """
        views, values = await self.features(columns, request_us=request_us)
        probabilities = self.probabilities(values)
        ids = [str(uuid7()) for _ in probabilities]
        return Predictions(
            prediction_id=ids,
            request_us=request_us,
            model_version=self.champion.version,
            keys=columns,
            views=views,
            values=values,
            prediction=probabilities,
            # Not by the process clock, which stands still in a replay.
            latency_us=(time.perf_counter_ns() - started_ns) // 1000,
        )

    async def features(
        self, columns: Mapping[str, Sequence[Any]], *, request_us: int
    ) -> tuple[dict[str, ViewRows], dict[str, Sequence[Any]]]:
        """Read and compute the features that the model sees.

        Args:
            columns: Entity key or request field → its value in each instance.
            request_us: Request time.

        Returns:
            The rows of each view, and ``view__feature`` → its value in each instance.

        Raises:
            UnavailableError: The online store did not answer in time.
            DamagedError: A value in the store is not a row.
            DefinitionError: An on-demand function failed.
        """
        views = await self._reader.read(columns, request_time_us=request_us)
        values: dict[str, Sequence[Any]] = {
            name: views[view].values[column] for name, view, column in self._stored
        }
        if self.contract.transforms:
            values |= self._transforms.compute(self.contract, {**columns, **values})
        return views, values

    def probabilities(self, values: Mapping[str, Sequence[Any]]) -> list[float]:
        """Probability of the positive class in each row.

        Args:
            values: ``view__feature`` → one value per row, None for null.

        Raises:
            PredictionError: The model failed, or its prediction is not a probability.
        """
        matrix = feature_matrix(self.contract, values)
        try:
            positive = self.scorer.predict(matrix)
        except Exception as error:
            # Any exception: the estimator is the user's code.
            raise PredictionError(
                f"Model {self.contract.model!r} version {self.champion.version} failed: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not np.isfinite(positive).all():
            raise PredictionError(
                f"Model {self.contract.model!r} version {self.champion.version} returned a "
                "prediction that is not finite."
            )
        listed: list[float] = positive.tolist()
        return listed
