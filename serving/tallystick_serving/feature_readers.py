"""Where serving reads features: Tallystick's online store, or any other online store of Feast."""

from __future__ import annotations

from typing import Any, TypeAlias

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DefinitionError
from tallystick.online_store.online_reader import OnlineReader
from tallystick.online_store.redis_connection import (
    connect_for_reads,
    redis_errors,
    shown_address,
)
from tallystick.online_store.redis_options import RedisOptions
from tallystick_serving.feast_sdk_reader import SDKStoreClient
from tallystick_serving.store_config import StoreConfig


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
        service: The store in error messages, without secrets.
    """

    def __init__(self, config: StoreConfig, options: RedisOptions, *, timeout_s: float) -> None:
        self.redis: Any = connect_for_reads(options, config.path, budget_s=timeout_s)
        self._is_versioned = config.is_versioned
        self.service = shown_address(self.redis)

    def reader(self, contract: ModelContract) -> OnlineReader:
        """A reader of a contract's views; each row says how it was defined.

        Raises:
            DefinitionError: A view has keys that the online store cannot use, or Feast stores
                versions of a view, which a contract does not have.
        """
        if self._is_versioned:
            raise DefinitionError(
                "Models cannot be served while Feast stores each version of a view online: "
                "remove  enable_online_feature_view_versioning  from feature_store.yaml."
            )
        return OnlineReader(self.redis, contract.project, contract.views)

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            UnavailableError: It does not.
        """
        with redis_errors(self.redis):
            await self.redis.ping()

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()


StoreClient: TypeAlias = RedisStoreClient | SDKStoreClient
"""An online store, as serving needs it: a reader of each contract's views, and a check that it
answers."""
