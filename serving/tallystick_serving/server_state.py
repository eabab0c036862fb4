"""The clients, logs and champions of a server, opened and closed with the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from fastapi import Request

from tallystick.errors import UnavailableError
from tallystick.online_store.journal.write_journal import BufferedJournal, journal_in_use
from tallystick.prediction_log.log_writer import LabelLog, PredictionLog
from tallystick.settings import Settings
from tallystick_serving.champion_watcher import ChampionWatcher
from tallystick_serving.feast_sdk_reader import SDKStoreClient
from tallystick_serving.feast_server import FeastStore, open_feast
from tallystick_serving.feature_readers import RedisStoreClient, StoreClient
from tallystick_serving.online_features import FeaturePlans
from tallystick_serving.server_metrics import ServerMetrics
from tallystick_serving.store_config import StoreConfig


@dataclass(frozen=True, slots=True)
class ServerState:
    """What the routes work with."""

    settings: Settings
    store: StoreClient
    champions: ChampionWatcher
    predictions: PredictionLog
    labels: LabelLog
    feast: FeastStore
    metrics: ServerMetrics
    journal: BufferedJournal | None

    async def reasons_not_ready(self) -> list[str]:
        """Why a request might not be answered now; empty if the server is ready."""
        reasons = [
            f"model {model} has no champion that can be loaded: {reason}"
            for model, reason in self.champions.failures.items()
            if model not in self.champions.predictors
        ]
        if not self.champions.predictors and not reasons:
            reasons.append("no model has a champion; train one:  tally train MODEL --promote")
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self.store.ping()
        except TimeoutError:
            reasons.append(f"{self.store.service} did not answer in time")
        except UnavailableError as error:
            reasons.append(str(error))
        return reasons


@asynccontextmanager
async def open_state(
    config: StoreConfig, settings: Settings, metrics: ServerMetrics
) -> AsyncIterator[ServerState]:
    """Open clients, logs and champions; at the end write the rows that the logs still buffer.

    Raises:
        InputError: The connection string cannot be used.
        DefinitionError: Feast cannot open the repo, if it has another online store.
        UnavailableError: The embedded Redis does not start.
        OSError: At the end, the logs could not be written.
    """
    # Closed last in, first out: the logs are written whatever fails before them.
    async with AsyncExitStack() as stack:
        client: StoreClient
        if config.redis is not None:
            feast_store = None
            client = redis = await asyncio.to_thread(
                RedisStoreClient,
                config,
                config.redis,
                timeout_s=settings.request_timeout_s,
            )
            plans = FeaturePlans(redis.redis)
        else:
            feast_store = await asyncio.to_thread(open_feast, config.path)
            client = sdk = SDKStoreClient(feast_store, timeout_s=settings.request_timeout_s)
            await sdk.open()
            plans = FeaturePlans(None)
        stack.push_async_callback(client.close)
        feast = FeastStore(config, plans, feast_store)
        stack.push_async_callback(feast.close)
        journal = None
        if config.redis is not None and config.redis.journal:
            journal = BufferedJournal(
                config.state_dir,
                rows_max=settings.log_buffer_rows_max,
                flush_rows=settings.journal_flush_rows,
                interval_s=settings.journal_flush_s,
            )
            stack.push_async_callback(asyncio.to_thread, journal.buffer.close)
            stack.enter_context(journal_in_use(config.state_dir, journal))
        labels = LabelLog(config.state_dir, settings)
        stack.push_async_callback(asyncio.to_thread, labels.close)
        predictions = PredictionLog(config.state_dir, settings)
        stack.push_async_callback(asyncio.to_thread, predictions.close)
        metrics.add_logs(
            {
                "predictions": lambda: predictions.ledger,
                "labels": lambda: labels.ledger,
                **({} if journal is None else {"journal": lambda: journal.buffer.ledger}),
            }
        )
        champions = ChampionWatcher(
            state_dir=config.state_dir,
            project=config.name,
            store=client,
            metrics=metrics,
            poll_s=settings.champion_poll_s,
        )
        await champions.look()
        watching = asyncio.create_task(champions.run())
        stack.push_async_callback(_cancel, watching)
        yield ServerState(settings, client, champions, predictions, labels, feast, metrics, journal)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def state_of(request: Request) -> ServerState:
    """The state of the server that got ``request``."""
    state: ServerState = request.app.state.server
    return state
