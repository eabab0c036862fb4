"""Reads from a Redis Cluster for one event loop.

redis-py's client of a cluster knows which node has which slot; each node is read over one shared
connection, as a single server is. docs/adr/0012-redis-clients-and-row-layout.md says why this is
not redis-py's asynchronous client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, TypeAlias

from redis.exceptions import (
    AskError,
    MovedError,
    RedisClusterException,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallystick.online_store.redis_address import RedisAddress
from tallystick.online_store.shared_connection import ReadTimeouts, SharedConnection

Node: TypeAlias = tuple[str, int]
"""Host and port."""
Words: TypeAlias = tuple[bytes | str, ...]
"""A command of Redis and its arguments; the first argument is the key."""

_REDIRECTIONS_MAX: Final = 5
_REFRESH_PAUSE_S: Final = 0.2


class ClusterReader:
    """A client of one Redis Cluster for one event loop; it connects at its first command.

    Args:
        address: The cluster.
        connect: Makes redis-py's synchronous client of the cluster.
        timeouts: How long a command may take.
    """

    def __init__(
        self, address: RedisAddress, connect: Callable[[], Any], timeouts: ReadTimeouts
    ) -> None:
        self._address = address
        self._connect = connect
        self._timeouts = timeouts
        self._cluster: asyncio.Task[Any] | None = None
        self._refreshing: asyncio.Task[None] | None = None
        self._connections: dict[Node, SharedConnection] = {}

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, in their order, with one round trip to each node that has any.

        Raises:
            RedisError: A node refused, or did not answer in time.
            UnavailableError: No node answered.
        """
        return await self._run([("GET", key) for key in keys]) if keys else []

    async def hmget(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        """The values of fields of a hash, in their order; errors as in :meth:`mget`."""
        (values,) = await self._run([("HMGET", key, *fields)])
        found: list[bytes | None] = values
        return found

    async def ping(self) -> None:
        """Check that the cluster answers; errors as in :meth:`mget`."""
        await asyncio.to_thread((await self._known()).ping)

    async def aclose(self) -> None:
        """Close all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
        for connection in self._connections.values():
            await connection.aclose()
        if self._cluster is not None:
            with suppress(Exception):
                (await self._cluster).close()

    async def _known(self) -> Any:
        """redis-py's client, which knows the nodes; a failed attempt to make it is repeated."""
        task = self._cluster
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = self._cluster = asyncio.create_task(asyncio.to_thread(self._connect))
        # A caller whose time runs out must not take the client from the others.
        return await asyncio.shield(task)

    async def _run(self, commands: Sequence[Words]) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeouts.budget_s):
                return await self._followed(await self._known(), commands)
        except TimeoutError as error:
            self._refresh()
            raise RedisTimeoutError(f"no answer within {self._timeouts.budget_s:g} s") from error
        except BaseException:
            # Also if the caller's time ran out: another node may have taken over long ago.
            self._refresh()
            raise

    async def _followed(self, cluster: Any, commands: Sequence[Words]) -> list[Any]:
        """The answers to commands, from the nodes to which the cluster redirects them."""
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        redirected: dict[int, AskError] = {}
        for _ in range(_REDIRECTIONS_MAX):
            by_node: dict[Node, list[int]] = {}
            for index in left:
                node = redirected.get(index) or cluster.get_node_from_key(commands[index][1])
                by_node.setdefault((node.host, node.port), []).append(index)
            found = await asyncio.gather(
                *(
                    self._sent(node, commands, indices, redirected)
                    for node, indices in by_node.items()
                )
            )
            redirected = {}
            for indices, parts in zip(by_node.values(), found, strict=True):
                for index, answer in zip(indices, parts, strict=True):
                    if isinstance(answer, AskError):
                        redirected[index] = answer
                    elif isinstance(answer, Exception):
                        raise answer
                    answers[index] = answer
            if not redirected:
                return answers
            left = list(redirected)
            if any(isinstance(error, MovedError) for error in redirected.values()):
                self._refresh()
        raise ResponseError("a slot of the cluster keeps moving")

    async def _sent(
        self,
        node: Node,
        commands: Sequence[Words],
        indices: Sequence[int],
        redirected: dict[int, AskError],
    ) -> list[Any]:
        """The answers of one node to its commands, redirections among them."""
        connection = self._connections.get(node)
        if connection is None:
            address = replace(self._address, redis_type="redis", nodes=(node,))
            connection = self._connections[node] = SharedConnection(address, self._timeouts)
        words: list[Words] = []
        for index in indices:
            if type(redirected.get(index)) is AskError:
                words.append(("ASKING",))
            words.append(commands[index])
        answers = await connection.run_many(words)
        return [
            _redirection(answer)
            for answer, one in zip(answers, words, strict=True)
            if one != ("ASKING",)
        ]

    def _refresh(self) -> None:
        """Learn anew which node has which slot, in the background and not all the time."""
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._refreshed())

    async def _refreshed(self) -> None:
        with suppress(RedisError, RedisClusterException, OSError):
            cluster = await self._known()
            await asyncio.to_thread(cluster.nodes_manager.initialize)
            nodes = {(node.host, node.port) for node in cluster.get_nodes()}
            for node in self._connections.keys() - nodes:
                await self._connections.pop(node).aclose()
        await asyncio.sleep(_REFRESH_PAUSE_S)


def _redirection(answer: Any) -> Any:
    """An answer, with the errors that name another node as redis-py's."""
    kind, _, rest = (
        str(answer).partition(" ") if isinstance(answer, ResponseError) else ("", "", "")
    )
    if kind == "MOVED":
        return MovedError(rest)
    return AskError(rest) if kind == "ASK" else answer
