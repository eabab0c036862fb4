"""Where serving reads features: Tallystick's online store, or any other online store of Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DefinitionError
from tallystick.online_store.online_reader import OnlineReader, ViewRows
from tallystick.online_store.redis_connection import (
    connect_for_reads,
    redis_errors,
    shown_address,
)
from tallystick.online_store.redis_options import RedisOptions
from tallystick_serving.store_config import StoreConfig


class FeatureReader(Protocol):
    """Reads the views of one contract."""

    async def read(
        self, keys: Mapping[str, Sequence[Any]], *, request_time_us: int
    ) -> dict[str, ViewRows]:
        """Read all views for all rows of a request; see ``OnlineReader.read``."""
        ...


class StoreClient(Protocol):
    """An online store, as serving needs it."""

    service: str
    """The store in error messages, without secrets."""

    def reader(self, contract: ModelContract) -> FeatureReader:
        """A reader of a contract's views, which gives up when a request's time is over.

        May take seconds, so not on the event loop.

        Raises:
            ContractError: The store's views differ from the contract's.
            DefinitionError: A view has keys that the online store cannot use.
            UnavailableError: The store or the registry did not answer.
        """
        ...

    async def ping(self) -> None:
        """Check that the store answers.

        Raises:
            UnavailableError: It does not.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


class RedisStoreClient:
    """Tallystick's own store, read from Redis without Feast.

    Args:
        config: The repo.
        options: The options of its store.
        timeout_s: Seconds to connect, and to wait for an answer, at most.

    Raises:
        InputError: The connection string cannot be used.
        UnavailableError: The embedded Redis does not start.

    Attributes:
        redis: The client of Redis.
    """

    def __init__(self, config: StoreConfig, options: RedisOptions, *, timeout_s: float) -> None:
        self.redis: Any = connect_for_reads(options, config.path, budget_s=timeout_s)
        self._is_versioned = config.is_versioned
        self.service = shown_address(self.redis)

    def reader(self, contract: ModelContract) -> OnlineReader:
        """A reader of a contract's views; each row says how it was defined.

        Raises:
            DefinitionError: Feast stores versions of a view, which a contract does not have.
        """
        if self._is_versioned:
            raise DefinitionError(
                "Models cannot be served while Feast stores each version of a view online: "
                "remove  enable_online_feature_view_versioning  from feature_store.yaml."
            )
        return OnlineReader(self.redis, contract.project, contract.views)

    async def ping(self) -> None:
        """See :class:`StoreClient`."""
        with redis_errors(self.redis):
            await self.redis.ping()

    async def close(self) -> None:
        """See :class:`StoreClient`."""
        await self.redis.aclose()
