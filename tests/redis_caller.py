"""One interface to each kind of client of Redis that there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from tallystick.online_store.redis_commands import Item, mget, run_script, scan
from tallystick.online_store.redis_connection import connect, connect_for_reads, redis_errors
from tallystick.online_store.redis_options import RedisOptions

_WAIT_S = 30.0


class Caller:
    """Reaches Redis in one of the ways that there are, with one client for all calls.

    Args:
        way: ``sync``; or ``serving``, which reads with a client of its own.
    """

    def __init__(self, way: str) -> None:
        self._way = way
        self._runner = asyncio.Runner()
        self._clients: dict[tuple[Any, ...], Any] = {}

    def call(self, text: str, work: Callable[[Any], Any], **options: Any) -> Any:
        """What ``work`` returns for the synchronous client of a connection string."""
        client = self._client(connect, text, options)
        with redis_errors(client):
            return work(client)

    def read(self, text: str, work: Callable[[Any], Any], **options: Any) -> Any:
        """What ``work`` returns for a client that reads, awaited if it has to be."""
        if self._way == "sync":
            return self.call(text, work, **options)
        client = self._client(connect_for_reads, text, options)

        async def awaited() -> Any:
            with redis_errors(client):
                return await work(client)

        return self._runner.run(awaited())

    def ping(self, text: str, **options: Any) -> None:
        self.read(text, lambda client: client.ping(), **options)

    def mget(self, text: str, keys: Sequence[bytes], **options: Any) -> list[bytes | None]:
        if self._way == "sync":
            return self.call(text, lambda client: mget(client, keys), **options)
        return self.read(text, lambda client: client.mget(keys), **options)

    def run_script(
        self, text: str, script: str, items: Sequence[Item], **options: Any
    ) -> list[Any]:
        return self.call(text, lambda client: run_script(client, script, items, **options))

    def scan(self, text: str, pattern: bytes) -> list[bytes]:
        return self.call(text, lambda client: [*chain(*scan(client, pattern))])

    def _client(self, make: Callable[..., Any], text: str, options: dict[str, Any]) -> Any:
        known = (make, text, *options.items())
        if known not in self._clients:
            self._clients[known] = make(RedisOptions(connection_string=text, **options))
        return self._clients[known]

    def close(self) -> None:
        for client in self._clients.values():
            if hasattr(client, "aclose"):
                self._runner.run(client.aclose())
            else:
                client.close()
        self._runner.run(self._parted())
        self._runner.close()

    @staticmethod
    async def _parted() -> None:
        """Wait until closing connections have closed: TLS says goodbye first."""
        open_files = asyncio.get_running_loop()._selector.get_map()
        async with asyncio.timeout(_WAIT_S):
            while len(open_files) > 1:  # noqa: ASYNC110 - the loop's own is always there
                await asyncio.sleep(0.005)
