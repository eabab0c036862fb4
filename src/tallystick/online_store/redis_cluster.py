"""A Redis Cluster that is asked for many slots at once.

redis-py knows which node has which slot, and that is used here. Its own way to ask for many keys
goes through layers of policy for each slot, repeats what timed out and waits between attempts, and
its asynchronous client loses a connection whenever a node does not answer. Here each node gets all
its commands in one go, all nodes at the same time; what moved to another node is asked there; and a
command whose connection turns out to be closed is sent once more, as with one server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from redis import cluster as redis_cluster
from redis.asyncio import cluster as redis_asyncio_cluster
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from tallystick.online_store.redis_address import Place

Words: TypeAlias = tuple[bytes | str | int, ...]
"""A command of Redis with its arguments."""

_ROUNDS_MAX: Final = 5
"""A slot may move more than once while its keys are asked for."""
_SyncNode: Final[Any] = redis_cluster.ClusterNode
_AsyncNode: Final[Any] = redis_asyncio_cluster.ClusterNode
_REPEATED: Final[Any] = (RedisConnectionError, ClusterDownError, SlotNotCoveredError)
"""What redis-py repeats by itself when it is asked directly; its own list has time-outs too."""


@dataclass(slots=True)
class _Parcel:
    """What one node is sent at once.

    Attributes:
        node: The node; those of the two clients have no type in common.
        words: Commands in their order.
        owners: For each of them the number of whom its answer is for; None if for nobody.
    """

    node: Any
    words: list[Words] = field(default_factory=list)
    owners: list[int | None] = field(default_factory=list)

    def add(self, owner: int | None, words: Words) -> None:
        self.owners.append(owner)
        self.words.append(words)


class _Dispatch:
    """Commands on their way to a cluster, round after round until all are answered.

    Args:
        cluster: Whose nodes are sent them.
        commands: Slot and words of each, which have one key.
        preface: Sent to each node before its commands.
    """

    def __init__(
        self,
        cluster: Cluster | AsyncCluster,
        commands: Sequence[tuple[int, Words]],
        preface: Words | None,
    ) -> None:
        self.answers: list[Any] = [None] * len(commands)
        self.left: Sequence[int] = range(len(commands))
        self._cluster = cluster
        self._commands = commands
        self._preface = preface
        self._asking: dict[int, AskError] = {}
        self._rounds = 0

    def parcels(self) -> list[_Parcel]:
        """What is to be sent in this round."""
        parcels: dict[str, _Parcel] = {}
        for number in self.left:
            slot, words = self._commands[number]
            asked = self._asking.pop(number, None)
            if asked is None:
                node: Any = self._cluster.nodes_manager.get_node_from_slot(slot)
            else:
                node = self._cluster.node_at(asked.host, asked.port)
            parcel = parcels.get(node.name)
            if parcel is None:
                parcel = parcels[node.name] = _Parcel(node)
                if self._preface is not None:
                    parcel.add(None, self._preface)
            if asked is not None:
                parcel.add(None, ("ASKING",))
            parcel.add(number, words)
        self._rounds += 1
        return list(parcels.values())

    def take(self, parcels: Sequence[_Parcel], answers: Sequence[Sequence[Any]]) -> None:
        """Keep what was answered, and see what has to be sent again.

        Raises:
            RedisError: A command failed for good.
        """
        left: list[int] = []
        failed: Exception | None = None
        for parcel, answered in zip(parcels, answers, strict=True):
            for number, answer in zip(parcel.owners, answered, strict=True):
                if number is None:
                    continue
                if not isinstance(answer, Exception):
                    self.answers[number] = answer
                elif self._is_worth_another(number, answer) and self._rounds < _ROUNDS_MAX:
                    left.append(number)
                else:
                    failed = failed or answer
        self.left = left
        if failed is not None:
            raise failed

    def _is_worth_another(self, number: int, error: Exception) -> bool:
        """Whether a command is sent again; takes from its error what there is to learn."""
        match error:
            case MovedError():
                self._cluster.nodes_manager.move_slot(error)
                return True
            case AskError():
                self._asking[number] = error
                return True
            case ClusterDownError():
                self._cluster.is_doubtful = True
        # Subclasses say that the node refused, not that the connection was closed.
        return type(error) is RedisConnectionError and self._rounds == 1


class _Line:
    """A connection to a node, from sending to the last answer."""

    def __init__(self, cluster: Cluster, parcel: _Parcel) -> None:
        self._cluster = cluster
        self._node = parcel.node
        self._words = parcel.words
        self._pool: Any = cluster.get_redis_connection(parcel.node).connection_pool
        self._connection: Any = None
        self._error: Exception | None = None
        self._is_clean = False

    def send(self) -> None:
        try:
            self._connection = self._pool.get_connection()
            packed = self._connection.pack_commands(self._words)
            self._connection.send_packed_command(packed, check_health=False)
        except (RedisError, OSError) as error:
            self._error = error

    def receive(self) -> list[Any]:
        answers: list[Any] = []
        try:
            while self._error is None and len(answers) < len(self._words):
                try:
                    answers.append(self._connection.read_response())
                except ResponseError as error:
                    answers.append(error)
            self._is_clean = self._error is None
        except (RedisError, OSError) as error:
            self._error = error
        return answers + [self._error] * (len(self._words) - len(answers))

    def close(self) -> None:
        if not self._is_clean:
            self._cluster.doubt(self._node)
        if self._connection is not None:
            if not self._is_clean:
                self._connection.disconnect()
            self._pool.release(self._connection)


class Cluster(redis_cluster.RedisCluster):
    """The client of a Redis Cluster; it asks for the cluster's nodes when it is made.

    Args:
        place: Where the cluster is.
        **options: What redis-py takes besides.

    Raises:
        RedisClusterException: No start node answered.
    """

    ERRORS_ALLOW_RETRY = _REPEATED

    def __init__(self, place: Place, **options: Any) -> None:
        self.place = place
        self.is_doubtful = False
        super().__init__(
            startup_nodes=[_SyncNode(*address) for address in place.addresses],
            retry=Retry(NoBackoff(), 1),
            **options,
        )

    def ask(self, commands: Sequence[tuple[int, Words]], preface: Words | None = None) -> list[Any]:
        """Send commands to the nodes that have their slots.

        Args:
            commands: Slot and words of each command. It has one key: while a slot moves, several
                keys of it may be on two nodes, and then neither node can do anything.
            preface: A command that each node is sent before its share, and whose answer is dropped.

        Returns:
            Answers in the order of the commands, as Redis gives them.

        Raises:
            RedisError: A command failed, or its node did not answer; others may have been carried
                out.
            RedisClusterException: No node answered.
        """
        dispatch = _Dispatch(self, commands, preface)
        while dispatch.left:
            if self.is_doubtful:
                self.refresh()
            parcels = dispatch.parcels()
            dispatch.take(parcels, self._exchange(parcels))
        return dispatch.answers

    def refresh(self) -> None:
        """Ask which node has which slot.

        Raises:
            RedisClusterException: No node answered.
        """
        self.is_doubtful = False
        try:
            self.nodes_manager.initialize()
        except BaseException:
            self.is_doubtful = True
            raise

    def doubt(self, node: Any) -> None:
        """Ask which node has which slot before anything else, and this node last."""
        self.is_doubtful = True
        self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)

    def start_over(self) -> None:
        """Ask the start nodes as well, next time: all nodes may have other addresses by now."""
        _remember_start(self)

    def node_at(self, host: str, port: int) -> Any:
        """The node at an address, which may be new to this client."""
        known = self.nodes_manager.get_node(host, port)
        return known or _SyncNode(host, port, redis_cluster.PRIMARY)

    def _exchange(self, parcels: Sequence[_Parcel]) -> list[list[Any]]:
        """Send all, then read all, so that the nodes work at the same time."""
        lines = [_Line(self, parcel) for parcel in parcels]
        try:
            for line in lines:
                line.send()
            return [line.receive() for line in lines]
        finally:
            for line in lines:
                line.close()


class AsyncCluster(redis_asyncio_cluster.RedisCluster):
    """The client of a Redis Cluster for one event loop.

    It asks for the cluster's nodes when it is first used.

    Args:
        place: Where the cluster is.
        **options: What redis-py takes besides.
    """

    ERRORS_ALLOW_RETRY = _REPEATED

    def __init__(self, place: Place, **options: Any) -> None:
        self.place = place
        self.is_doubtful = False
        nodes = [_AsyncNode(*address) for address in place.addresses]
        super().__init__(startup_nodes=nodes, retry=AsyncRetry(NoBackoff(), 1), **options)

    async def ask(
        self, commands: Sequence[tuple[int, Words]], preface: Words | None = None
    ) -> list[Any]:
        """Send commands to the nodes that have their slots, as :meth:`Cluster.ask`."""
        dispatch = _Dispatch(self, commands, preface)
        while dispatch.left:
            await self.initialize()
            if self.is_doubtful:
                await self.refresh()
            parcels = dispatch.parcels()
            if len(parcels) == 1:
                answers = [await self._exchange(parcels[0])]
            else:
                answers = await asyncio.gather(*map(self._exchange, parcels))
            dispatch.take(parcels, answers)
        return dispatch.answers

    async def refresh(self) -> None:
        """Ask which node has which slot, as :meth:`Cluster.refresh`."""
        self.is_doubtful = False
        manager = self.nodes_manager
        nodes = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
        try:
            # Idle connections may have been closed long ago, and a node has one attempt to tell.
            await asyncio.gather(*(node.disconnect_free_connections() for node in nodes))
            await manager.initialize()
            self._unite_nodes()
        except BaseException:
            self.is_doubtful = True
            raise

    def doubt(self, node: Any) -> None:
        """Ask which node has which slot before anything else, as :meth:`Cluster.doubt`."""
        self.is_doubtful = True
        self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)

    def start_over(self) -> None:
        """Ask the start nodes as well, next time, as :meth:`Cluster.start_over`."""
        _remember_start(self)

    async def initialize(self) -> AsyncCluster:
        """Ask which node has which slot, if that was not asked yet or redis-py is in doubt."""
        if self._initialize:
            await super().initialize()
            self._unite_nodes()
        return self

    def node_at(self, host: str, port: int) -> Any:
        """The node at an address, which may be new to this client."""
        node = self.get_node(host, port)
        if node is None:
            node = _AsyncNode(host, port, redis_cluster.PRIMARY, **self.connection_kwargs)
            # Among the others, so that its connections are closed with theirs.
            manager = self.nodes_manager
            manager.set_nodes(manager.nodes_cache, {node.name: node})
        return node

    def _unite_nodes(self) -> None:
        """Have one object for each node.

        redis-py keeps those that it knew, with their connections and the role that they had then,
        and has slots point to new ones, whose connections it would never close.
        """
        manager = self.nodes_manager
        for nodes in {id(nodes): nodes for nodes in manager.slots_cache.values()}.values():
            for place, node in enumerate(nodes):
                kept = manager.nodes_cache[node.name]
                kept.server_type = node.server_type
                nodes[place] = kept

    async def _exchange(self, parcel: _Parcel) -> list[Any]:
        connection = parcel.node.acquire_connection()
        answers: list[Any] = []
        is_clean = False
        try:
            if connection.should_reconnect():
                await connection.disconnect(nowait=True)
            packed = connection.pack_commands(parcel.words)
            await connection.send_packed_command(packed, check_health=False)
            while len(answers) < len(parcel.words):
                try:
                    answers.append(await connection.read_response())
                except ResponseError as error:
                    answers.append(error)
            is_clean = True
        except (RedisError, OSError) as error:
            answers += [error] * (len(parcel.words) - len(answers))
        finally:
            if not is_clean:
                # Also if the caller's time ran out: another node may have taken over long ago.
                self.doubt(parcel.node)
                await connection.disconnect(nowait=True)
            parcel.node.release(connection)
        return answers


def _remember_start(cluster: Cluster | AsyncCluster) -> None:
    manager: Any = cluster.nodes_manager
    start = {node.name: node for node in cluster.startup_nodes}
    manager.startup_nodes = {**manager.startup_nodes, **start}
