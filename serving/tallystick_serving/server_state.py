"""Everything that outlives a request, opened and closed with the app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass

from fastapi import Request

from tallystick.errors import UnavailableError
from tallystick.online_store.journal.write_journal import BufferedJournal, journal_in_use
from tallystick.prediction_log.log_writer import LabelLog, PredictionLog
from tallystick.settings import Settings
from tallystick_serving.champion_watcher import ChampionWatcher
from tallystick_serving.feast_server import FeastStore, open_feast
from tallystick_serving.feature_readers import PackedReaders, Readers, sdk_readers
from tallystick_serving.online_features import FeaturePlans
from tallystick_serving.server_metrics import HasLedger, Measures
from tallystick_serving.store_config import Project


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with."""

    settings: Settings
    readers: Readers
    champions: ChampionWatcher
    predictions: PredictionLog
    labels: LabelLog
    feast: FeastStore
    measures: Measures
    journal: BufferedJournal | None = None

    async def reasons_not_ready(self) -> list[str]:
        """Why a request might not be answered now; empty when all is well."""
        reasons = [
            f"model {model} has no champion that can be loaded: {reason}"
            for model, reason in self.champions.failures.items()
            if model not in self.champions.predictors
        ]
        if not self.champions.predictors and not reasons:
            reasons.append("no model has a champion; train one:  tally train MODEL --promote")
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                await self.readers.ping()
        except TimeoutError:
            reasons.append(f"{self.readers.service} did not answer in time")
        except UnavailableError as error:
            reasons.append(str(error))
        return reasons


@asynccontextmanager
async def open_service(
    project: Project, settings: Settings, measures: Measures
) -> AsyncIterator[Service]:
    """Open clients, logs and champions; at the end write what the logs still hold.

    Raises:
        InputError: The connection string cannot be used.
        DefinitionError: Feast cannot open the repo, if it has another online store.
        UnavailableError: The embedded Redis does not start.
        OSError: At the end, the logs could not be written.
    """
    readers: Readers
    if project.is_packed:
        store = None
        readers = packed = await asyncio.to_thread(
            PackedReaders, project, timeout_s=settings.request_timeout_s
        )
        plans = FeaturePlans(packed.client)
    else:
        store = await asyncio.to_thread(open_feast, project.path)
        readers = await sdk_readers(project, store)
        plans = FeaturePlans(None)
    predictions = PredictionLog(project.state_dir, settings)
    labels = LabelLog(project.state_dir, settings)
    ledgers: dict[str, HasLedger] = {"predictions": predictions.wal, "labels": labels.wal}
    journal = None
    if project.journal:
        journal = BufferedJournal(
            project.state_dir,
            rows_max=settings.log_buffer_rows_max,
            flush_rows=settings.journal_flush_rows,
            interval_s=settings.journal_flush_s,
        )
        ledgers["journal"] = journal.buffer
    measures.add_ledgers(ledgers)
    champions = ChampionWatcher(
        state_dir=project.state_dir,
        project=project.name,
        readers=readers,
        measures=measures,
        timeout_s=settings.request_timeout_s,
        poll_s=settings.champion_poll_s,
    )
    feast = FeastStore(project, plans, store)
    await champions.look()
    watching = asyncio.create_task(champions.run())
    try:
        with nullcontext() if journal is None else journal_in_use(project.state_dir, journal):
            yield Service(
                settings, readers, champions, predictions, labels, feast, measures, journal
            )
    finally:
        async with AsyncExitStack() as ending:
            # Last in, first out: the logs are written whatever happens before them.
            ending.push_async_callback(readers.close)
            ending.push_async_callback(feast.close)
            if journal is not None:
                ending.push_async_callback(asyncio.to_thread, journal.buffer.close)
            ending.push_async_callback(asyncio.to_thread, labels.wal.close)
            ending.push_async_callback(asyncio.to_thread, predictions.wal.close)
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


def service_of(request: Request) -> Service:
    """The service of the app that got ``request``."""
    service: Service = request.app.state.service
    return service
