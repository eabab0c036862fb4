"""Watches which version of each model is the champion, and swaps in a new one.

A new champion is loaded and warmed up in a thread and then swapped in by one assignment: a request
in progress stays with its predictor. If a champion cannot be loaded, the former one goes on
answering.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from tallystick.definitions.contract import ModelContract
from tallystick.errors import ContractError, Problem, TallystickError, did_you_mean
from tallystick.model_bundle.bundle import (
    Champion,
    champions,
    load_bundle,
    models_dir,
    read_champion,
)
from tallystick_serving.error_responses import NotReadyError, PredictionError, UnknownModelError
from tallystick_serving.feature_readers import StoreClient
from tallystick_serving.predictor import Predictor
from tallystick_serving.server_metrics import ServerMetrics

logger = logging.getLogger(__name__)


class ChampionWatcher:
    """Holds a predictor for every model that has a champion.

    Args:
        state_dir: The repo's state folder.
        project: Feast project; a bundle of another one is refused.
        store: The online store.
        metrics: Where failures are counted.
        poll_s: Seconds between two checks for new champions.

    Attributes:
        predictors: Model → its predictor.
        failures: Model → why its present champion cannot be loaded.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        project: str,
        store: StoreClient,
        metrics: ServerMetrics,
        poll_s: float,
    ) -> None:
        self._state_dir = state_dir
        self._project = project
        self._store = store
        self._metrics = metrics
        self._poll_s = poll_s
        self.predictors: dict[str, Predictor] = {}
        self.failures: dict[str, str] = {}

    def predictor(self, model: str) -> Predictor:
        """The predictor that answers for ``model`` now.

        Raises:
            UnknownModelError: There is no such model.
            NotReadyError: It has no champion, or its champion cannot be loaded.
        """
        found = self.predictors.get(model)
        if found is not None:
            return found
        if model in self.failures:
            raise NotReadyError(f"Model {model!r} cannot answer: {self.failures[model]}")
        known = self._known()
        if model in known:
            raise NotReadyError(
                f"Model {model!r} has no champion yet.",
                hint=f"Train one:  tally train {model} --promote",
            )
        raise UnknownModelError(
            f"There is no model {model[:80]!r}: {did_you_mean(model[:80], known)}"
        )

    async def run(self) -> None:
        """Check for new champions until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            await self.look()

    async def look(self) -> None:
        """Check once, and load new champions."""
        try:
            names = await asyncio.to_thread(champions, self._state_dir)
        except OSError as error:
            logger.warning("The folder of models cannot be read: %s", error)
            return
        for model in self.failures.keys() - {*names, *self.predictors}:
            del self.failures[model]
        for model in sorted({*names, *self.predictors}):
            await self._check(model)

    async def _check(self, model: str) -> None:
        try:
            champion = await asyncio.to_thread(read_champion, self._state_dir, model)
            now = self.predictors.get(model)
            if now is None or now.champion != champion:
                predictor = await asyncio.to_thread(self._load, champion)
                _predict_on_one_thread()
                self.predictors[model] = predictor
                logger.info("Model %s: version %s answers now.", model, champion.version)
                self._metrics.set_champion(champion)
            self.failures.pop(model, None)
        except (TallystickError, OSError) as error:
            self._fail(model, str(error))
        except Exception as error:  # noqa: BLE001 unpickling an estimator raises whatever it leads to
            self._fail(model, f"its estimator cannot be loaded: {type(error).__name__}: {error}")

    def _fail(self, model: str, reason: str) -> None:
        """Log the reason once; the former champion goes on answering until a check succeeds."""
        if self.failures.get(model) != reason:
            self.failures[model] = reason
            self._metrics.champion_failures.labels(model).inc()
            logger.error("Model %s: the new champion cannot be loaded: %s", model, reason)

    def _load(self, champion: Champion) -> Predictor:
        bundle = load_bundle(self._state_dir, champion.model, champion.contract_hash)
        _check_owner(bundle.contract, champion, self._project)
        predictor = Predictor(champion, bundle, self._store)
        _warm_up(predictor)
        return predictor

    def _known(self) -> set[str]:
        with suppress(FileNotFoundError):
            return {path.name for path in models_dir(self._state_dir).iterdir() if path.is_dir()}
        return set()


def _check_owner(contract: ModelContract, champion: Champion, project: str) -> None:
    problems = []
    if contract.project != project:
        problems.append(Problem("project", project, contract.project))
    if contract.model != champion.model:
        problems.append(Problem("model", champion.model, contract.model))
    if problems:
        raise ContractError("The champion's contract is of another model.", problems)


def _predict_on_one_thread() -> None:
    """Limit OpenMP to one thread on the event loop's thread, where predictions run.

    A few rows gain nothing from more threads, whose synchronization takes up to a thousand times
    as long as the prediction when another process needs the core. The limit reaches only libraries
    that are loaded already, so that it is set again after every load.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    threadpool_limits(1, user_api="openmp")


def _warm_up(predictor: Predictor) -> None:
    """Predict once, so that the first request does not pay for first-call work.

    All features of the row are null, as for an unknown entity. A model that fails on it is served
    all the same, with a warning.
    """
    contract = predictor.contract
    try:
        predictor.probabilities({name: [None] for name in contract.value_columns})
    except PredictionError as error:
        logger.warning("Requests with unknown entities will fail. %s", error)
