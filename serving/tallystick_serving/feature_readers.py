"""Where predictions read features: from Tallystick's online store, or from any other of Feast's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DefinitionError, UnavailableError
from tallystick.online_store.online_reader import OnlineReader, ViewRows
from tallystick.online_store.redis_connection import (
    connect_for_reads,
    redis_errors,
    shown_address,
)
from tallystick_serving.store_config import Project

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger(__name__)


class Reader(Protocol):
    """Reads the views of one contract."""

    async def read(
        self, keys: Mapping[str, Sequence[Any]], *, request_time_us: int
    ) -> dict[str, ViewRows]:
        """Read all views for all rows of a request; as ``OnlineReader.read``."""
        ...


class Readers(Protocol):
    """An online store, as serving needs it: a reader for each contract, and whether it answers."""

    @property
    def service(self) -> str:
        """What did not answer, in messages; nothing secret."""
        ...

    @property
    def keeps_time(self) -> bool:
        """Whether its readers give up by themselves once a request's time is over."""
        ...

    def reader(self, contract: ModelContract) -> Reader:
        """The reader of a contract's views; may take seconds, so not on the event loop.

        Raises:
            ContractError: The store does not have the views as the contract does.
            DefinitionError: A view has keys that the online store cannot use.
            UnavailableError: What has to be asked for that did not answer.
        """
        ...

    async def ping(self) -> None:
        """Ask the store for a sign of life.

        Raises:
            UnavailableError: It gave none.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class PackedReaders:
    """Tallystick's own store: packed rows, read from Redis without Feast.

    Args:
        project: The repo.
        timeout_s: Seconds to connect, and to wait for an answer, at most.

    Raises:
        InputError: The connection string cannot be used.
        UnavailableError: The embedded Redis does not start.

    Attributes:
        client: What Redis is read with.
        service: Where it is, in messages.
        keeps_time: See :class:`Readers`.
    """

    def __init__(self, project: Project, *, timeout_s: float) -> None:
        self.client: Any = connect_for_reads(
            project.connection_string,
            project.path,
            redis_type=project.redis_type,
            sentinel_master=project.sentinel_master,
            connect_timeout_s=min(timeout_s, project.connect_timeout_s),
            read_timeout_s=min(timeout_s, project.read_timeout_s),
            budget_s=timeout_s,
        )
        self.keeps_time = True
        self._is_versioned = project.is_versioned
        self.service = shown_address(self.client)

    def reader(self, contract: ModelContract) -> OnlineReader:
        """The reader of a contract's views; rows say themselves how they were defined.

        Raises:
            DefinitionError: Feast keeps the versions of a view apart, which a contract does not.
        """
        if self._is_versioned:
            raise DefinitionError(
                "Models cannot be served while Feast keeps the versions of a view apart online: "
                "remove  enable_online_feature_view_versioning  from feature_store.yaml."
            )
        return OnlineReader(self.client, contract.project, contract.views)

    async def ping(self) -> None:
        """See :class:`Readers`."""
        with redis_errors(self.client):
            await self.client.ping()

    async def close(self) -> None:
        """See :class:`Readers`."""
        await self.client.aclose()


@asynccontextmanager
async def _giving_up(readers: Readers, timeout_s: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError as error:
        raise UnavailableError(readers.service, f"no answer in {timeout_s} s") from error


def within(readers: Readers, timeout_s: float) -> AbstractAsyncContextManager[None]:
    """A block in which a store is read, for ``timeout_s`` seconds at most.

    Raises:
        UnavailableError: In the block, once its time is over.
    """
    return nullcontext() if readers.keeps_time else _giving_up(readers, timeout_s)


async def sdk_readers(project: Project, store: FeatureStore) -> Readers:
    """Another online store of Feast's, through its SDK; says once what that costs.

    Raises:
        DefinitionError: Feast cannot make the store.
    """
    from tallystick_serving.feast_sdk_reader import SDKReaders

    logger.warning(
        "online_store is %s: features are read through Feast's SDK, slower than from Tallystick's "
        "own store, and some of its guarantees are missing:  tally check  lists them.",
        project.online_store,
    )
    readers = SDKReaders(store)
    await readers.open()
    return readers
