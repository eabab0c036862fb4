"""One way to ask Redis through each kind of client that there is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tallystick.online_store.redis_commands import (
    Item,
    mget,
    mget_async,
    run_script,
    run_script_async,
    scan,
    scan_async,
)
from tallystick.online_store.redis_connection import connect, connect_for_reads, redis_errors

_WAIT_S = 30.0


class Caller:
    """Asks Redis in one of the ways that there are, with one client for all calls.

    Args:
        way: ``sync``; ``async``; or ``serving``, which reads with a client of its own.
    """

    def __init__(self, way: str) -> None:
        self._way = way
        self._runner = asyncio.Runner()
        self._clients: dict[tuple[str, float, bool], Any] = {}

    def call(
        self,
        text: str,
        work: Callable[[Any], Any],
        *,
        read_timeout_s: float = 5.0,
        writes: bool = True,
    ) -> Any:
        """What ``work`` gives for the client of a connection string, awaited if it has to be."""
        for_reads = self._way == "serving" and not writes
        known = (text, read_timeout_s, for_reads)
        if known not in self._clients:
            self._clients[known] = (
                connect_for_reads(text, read_timeout_s=read_timeout_s)
                if for_reads
                else connect(text, asynchronous=self._way != "sync", read_timeout_s=read_timeout_s)
            )
        client = self._clients[known]

        async def awaited() -> Any:
            with redis_errors(client):
                return await work(client)

        if self._way != "sync":
            return self._runner.run(awaited())
        with redis_errors(client):
            return work(client)

    def ping(self, text: str, **options: Any) -> None:
        self.call(text, lambda client: client.ping(), writes=False, **options)

    def mget(self, text: str, keys: Sequence[bytes], **options: Any) -> list[bytes | None]:
        function: Any = mget if self._way == "sync" else mget_async
        return self.call(text, lambda client: function(client, keys), writes=False, **options)

    def run_script(
        self, text: str, script: str, items: Sequence[Item], **options: Any
    ) -> list[Any]:
        function: Any = run_script if self._way == "sync" else run_script_async
        return self.call(text, lambda client: function(client, script, items, **options))

    def scan(self, text: str, pattern: bytes) -> list[bytes]:
        async def listed(client: Any) -> list[bytes]:
            return [key async for key in scan_async(client, pattern)]

        if self._way == "sync":
            return self.call(text, lambda client: list(scan(client, pattern)))
        return self.call(text, listed)

    def close(self) -> None:
        for client in self._clients.values():
            if self._way == "sync":
                client.close()
            else:
                self._runner.run(client.aclose())
        self._runner.run(self._parted())
        self._runner.close()

    @staticmethod
    async def _parted() -> None:
        """Wait until connections that were told to close have closed: TLS says goodbye first."""
        open_files = asyncio.get_running_loop()._selector.get_map()
        async with asyncio.timeout(_WAIT_S):
            while len(open_files) > 1:  # noqa: ASYNC110 - the loop's own is always there
                await asyncio.sleep(0.005)
