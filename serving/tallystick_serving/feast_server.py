"""The routes of Feast's own server, answered by Feast; plain pushes are written without it.

The first request that needs Feast imports it and reads the registry, in a thread; predictions never
do. The registry is read again in the background, not by a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field

from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DataError, TallystickError, UnavailableError
from tallystick_serving.error_responses import NotFoundError, RequestError
from tallystick_serving.online_features import FeaturePlans
from tallystick_serving.push import PushedRows, append_to
from tallystick_serving.store_config import StoreConfig
from tallystick_serving.thread_pool import ThreadPool

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

logger = logging.getLogger(__name__)

OFFLINE_STORE: Final = "tallystick.offline_store.DuckDBOfflineStore"
THREADS: Final = 4
WAITING_MAX: Final = 1_000
"""Calls that may wait for a thread."""
READ_S: Final = 5.0
"""Seconds that a read through Feast may take."""
REGISTRY_REFRESH_S: Final = 2.0
Result = TypeVar("Result")


class OnlineFeaturesRequest(BaseModel):
    """Body of ``/get-online-features``, as Feast's server takes it."""

    entities: dict[str, list[Any]]
    feature_service: str | None = None
    features: list[str] = Field(default_factory=list)
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


class PushRequest(BaseModel):
    """Body of ``/push``, as Feast's server takes it."""

    push_source_name: str
    df: dict[str, list[Any]]
    allow_registry_cache: bool = True
    to: Literal["online", "offline", "online_and_offline"] = "online"
    transform_on_write: bool = True


class WriteRequest(BaseModel):
    """Body of ``/write-to-online-store``, as Feast's server takes it."""

    feature_view_name: str
    df: dict[str, list[Any]]
    allow_registry_cache: bool = True
    transform_on_write: bool = True


class FeastStore:
    """Feast's feature store of a repo, opened when it is first needed.

    Args:
        config: The repo.
        plans: Plans of earlier requests for features, which need Feast no more.
        store: Feast's feature store, if it is open already.

    Attributes:
        plans: The plans.
    """

    def __init__(
        self, config: StoreConfig, plans: FeaturePlans, store: FeatureStore | None = None
    ) -> None:
        self.plans = plans
        self._config = config
        self._pushed = PushedRows(config)
        self._pool = ThreadPool("Feast", threads=THREADS, waiting_max=WAITING_MAX)
        self._opening = asyncio.Lock()
        self._store = store
        self._refreshing: asyncio.Task[None] | None = None

    async def online_features(self, request: OnlineFeaturesRequest) -> dict[str, Any]:
        """Read features as Feast does; the answer is Feast's.

        Raises:
            NotFoundError: Feast knows no such service, view or feature.
            RequestError: Feast refuses the request.
            UnavailableError: The online store did not answer.
        """
        store = await self._opened()

        def run() -> dict[str, Any]:
            answer = _online_features(store, request)
            self.plans.learn(
                store,
                (request.feature_service, tuple(request.features), request.full_feature_names),
            )
            return answer

        return await self._call(run, timeout_s=READ_S)

    async def push(self, request: PushRequest) -> None:
        """Push rows through a push source; errors as in :meth:`online_features`."""
        from feast.data_source import PushMode

        store = await self._opened()

        def run() -> None:
            views = self._packed_views(store, source=request.push_source_name)
            if views:
                self._pushed.write(
                    views,
                    request.df,
                    to_history=None if request.to == "online" else self._history(store, request),
                    to_online=request.to != "offline",
                )
                return
            import pandas as pd

            store.push(
                push_source_name=request.push_source_name,
                df=pd.DataFrame(request.df),
                allow_registry_cache=request.allow_registry_cache,
                to=PushMode[request.to.upper()],
                transform_on_write=request.transform_on_write,
            )

        await self._call(run)

    def _history(self, store: FeatureStore, request: PushRequest) -> Callable[[pa.Table], None]:
        """What adds the rows of a push to the batch sources of its views."""
        from feast.data_source import PushMode

        if str(store.config.offline_store.type) != OFFLINE_STORE:
            return lambda rows: store.push(
                push_source_name=request.push_source_name,
                df=rows.to_pandas(integer_object_nulls=True),
                to=PushMode.OFFLINE,
            )
        names = [spec.name for spec in self._packed_views(store, source=request.push_source_name)]
        found = [store.get_feature_view(name).batch_source for name in names]
        sources = list({source.name: source for source in found}.values())
        return lambda rows: append_to(sources, rows, repo_path=self._config.path)

    def _packed_views(
        self, store: FeatureStore, *, source: str | None = None, view: str | None = None
    ) -> tuple[ViewSpec, ...]:
        """The views of a push source, or one view, to write without Feast; none if Feast has to."""
        if self._config.redis is None or self._config.is_versioned:
            return ()
        return self._pushed.views_of(store, source=source, view=view)

    async def write(self, request: WriteRequest) -> None:
        """Write rows of a view online; errors as in :meth:`online_features`."""
        store = await self._opened()

        def run() -> None:
            views = self._packed_views(store, view=request.feature_view_name)
            if views:
                self._pushed.write(views, request.df)
                return
            import pandas as pd

            store.write_to_online_store(
                feature_view_name=request.feature_view_name,
                df=pd.DataFrame(request.df),
                allow_registry_cache=request.allow_registry_cache,
                transform_on_write=request.transform_on_write,
            )

        await self._call(run)

    async def close(self) -> None:
        """Stop refreshing, and begin nothing more."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await self._refreshing
        self._pool.close()

    async def _opened(self) -> FeatureStore:
        async with self._opening:
            if self._store is None:
                self._store = await self._pool.run(lambda: open_feast(self._config.path))
            if self._refreshing is None:
                self._refreshing = asyncio.create_task(self._refresh(self._store))
        return self._store

    async def _refresh(self, store: FeatureStore) -> None:
        while True:
            await asyncio.sleep(REGISTRY_REFRESH_S)
            try:
                await self._pool.run(store.refresh_registry)
                self._pushed.clear()
                await self._pool.run(lambda: self.plans.renew(store))
            except Exception as error:  # noqa: BLE001 any registry may be behind it; the cache serves
                logger.warning("Feast's registry cannot be read again: %s", error)

    async def _call(
        self, function: Callable[[], Result], *, timeout_s: float | None = None
    ) -> Result:
        """Call Feast in a thread; its errors become Tallystick's here.

        A call that hangs occupies its thread, but its request is answered.
        """
        from feast.errors import FeastError, FeastObjectNotFoundException

        try:
            async with asyncio.timeout(timeout_s):
                return await self._pool.run(function)
        except TimeoutError as error:
            raise UnavailableError("Feast's online store", f"no answer in {timeout_s} s") from error
        except DataError as error:
            raise RequestError(error.what, error.problems, hint=error.hint) from error
        except TallystickError:
            raise
        except FeastObjectNotFoundException as error:
            raise NotFoundError(f"Feast has no such object: {error}") from error
        except FeastError as error:
            raise RequestError(f"Feast refuses the request: {error}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise RequestError(f"Feast cannot use the request: {error}") from error
        except Exception as error:
            if self._config.redis is not None:
                raise
            # Any exception: every online store has its own.
            logger.warning("Feast failed: %s: %s", type(error).__name__, error)
            service = f"Feast's online store ({self._config.online_store})"
            raise UnavailableError(service, type(error).__name__) from error


def open_feast(path: Path) -> FeatureStore:
    """Open Feast's feature store of the repo at ``path``; takes seconds.

    Raises:
        DefinitionError: ``feature_store.yaml`` cannot be used.
        DamagedError: The registry cannot be read.
    """
    return Repo(path=path, models={}).store


def _online_features(store: FeatureStore, request: OnlineFeaturesRequest) -> dict[str, Any]:
    from feast.feature_server_utils import convert_response_to_dict

    features: Any = request.features
    if request.feature_service:
        features = store.get_feature_service(request.feature_service, allow_cache=True)
    response = store.get_online_features(
        features=features,
        entity_rows=request.entities,
        full_feature_names=request.full_feature_names,
        include_feature_view_version_metadata=request.include_feature_view_version_metadata,
    )
    answer: dict[str, Any] = convert_response_to_dict(response.proto)
    return answer
