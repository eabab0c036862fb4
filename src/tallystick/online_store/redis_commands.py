"""Commands over many keys at once, for one server and for a cluster.

A cluster accepts a command only if all its keys are in one slot. So there each key has a command of
its own, and each node gets all its commands in one round trip.

Errors are redis-py's; wrap calls in ``redis_errors``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeAlias

from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    NoScriptError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallystick.online_store.redis_connection import SyncClient

Item: TypeAlias = tuple[bytes, bytes | None]
"""A key and the argument of a script for it; None where the script has none."""
Words: TypeAlias = tuple[bytes | str | int, ...]
"""A command of Redis with its arguments."""

KEYS_PER_CALL: Final = 200
"""Keys of one call of a script at most; other clients wait meanwhile, well under 1 ms."""
_ClusterNode: Final[Any] = ClusterNode
_KEYS_PER_SCAN: Final = 1_000
_SENT_AGAIN: Final = (
    MovedError,
    TryAgainError,
    ClusterDownError,
    NoScriptError,
    RedisConnectionError,
    RedisTimeoutError,
)


def mget(client: SyncClient, keys: Sequence[bytes]) -> list[bytes | None]:
    """The values of keys, in their order, with one round trip to each node that has any.

    Args:
        client: Redis or a cluster.
        keys: In any order; a key may be repeated.
    """
    if not keys:
        return []
    if isinstance(client, RedisCluster):
        return _ask_nodes(client, keys, [("GET", key) for key in keys])
    values: list[bytes | None] = client.mget(keys)
    return values


def run_script(
    client: SyncClient, script: str, items: Sequence[Item], *, shared: Sequence[bytes] = ()
) -> list[Any]:
    """Run a script over many keys, with one round trip to each node that has any.

    A call has :data:`KEYS_PER_CALL` keys, or one in a cluster. The script's text goes to each node
    once, and its hash with each call.

    Args:
        client: Redis or a cluster.
        script: Lua. It is atomic for a key, and not across keys.
        items: Keys, each with the script's argument for it.
        shared: Arguments of every call, before those of its keys.

    Returns:
        The script's answers, one for each call, in the order of the keys.
    """
    is_cluster = isinstance(client, RedisCluster)
    size = 1 if is_cluster else KEYS_PER_CALL
    calls: list[Words] = []
    for start in range(0, len(items), size):
        keys = [key for key, _ in items[start : start + size]]
        own = [argument for _, argument in items[start : start + size] if argument is not None]
        calls.append((len(keys), *keys, *shared, *own))
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    commands: list[Words] = [("EVALSHA", sha, *call) for call in calls]
    if is_cluster:
        return _ask_nodes(client, [key for key, _ in items], commands, script)
    return _pipelined(client, commands, script)


def scan(client: SyncClient, pattern: bytes) -> Iterator[list[bytes]]:
    """The keys that match a pattern of ``SCAN``, in batches; a key may come twice.

    They are those of all primaries.
    """
    if isinstance(client, RedisCluster):
        client.nodes_manager.initialize()  # a primary that is not known would be left out
    found = client.scan_iter(match=pattern, count=_KEYS_PER_SCAN)
    while keys := list(islice(found, _KEYS_PER_SCAN)):
        yield keys


def _ask_nodes(
    client: SyncClient,
    keys: Sequence[bytes],
    commands: Sequence[Words],
    script: str | None = None,
) -> list[Any]:
    """Send each node the commands whose key it has; each command has one key.

    A command that its node did not carry out, as the slot has moved or the connection was closed,
    goes through the cluster's client, which follows. The first such command that fails ends this:
    a node that hangs costs a few timeouts, however many keys it has.
    """
    nodes: dict[str, tuple[Any, list[int]]] = {}
    for index, key in enumerate(keys):
        node: Any = client.get_node_from_key(key)
        nodes.setdefault(node.name, (node, []))[1].append(index)
    answers: list[Any] = [None] * len(keys)
    for node, indices in nodes.values():
        server = client.get_redis_connection(node)
        try:
            found = _pipelined(server, [commands[index] for index in indices], script, raises=False)
        except (RedisConnectionError, RedisTimeoutError) as error:
            found = [error] * len(indices)
        for index, answer in zip(indices, found, strict=True):
            answers[index] = answer
    for index, answer in enumerate(answers):
        name, *words = commands[index]
        again = ("EVAL", script, *words[1:]) if script else (name, *words)
        if isinstance(answer, AskError):
            # A node that has no slot yet is not among those of the client.
            node = client.get_node(answer.host, answer.port)
            server = client.get_redis_connection(node or _ClusterNode(answer.host, answer.port))
            answers[index] = _pipelined(server, [("ASKING",), again], None)[1]
        elif isinstance(answer, _SENT_AGAIN):
            answers[index] = client.execute_command(*again)
        elif isinstance(answer, Exception):
            raise answer
    return answers


def _pipelined(
    server: SyncClient, commands: Sequence[Words], script: str | None, *, raises: bool = True
) -> list[Any]:
    """The answers of one server to commands that are sent at once, after the text of a script."""
    pipeline = server.pipeline(transaction=False)
    if script is not None:
        pipeline.execute_command("SCRIPT LOAD", script)
    for words in commands:
        pipeline.execute_command(*words)
    # With its own errors redis-py shows the arguments, which are users' values.
    answers: list[Any] = pipeline.execute(raise_on_error=False)[0 if script is None else 1 :]
    for answer in answers if raises else ():
        if isinstance(answer, Exception):
            raise answer
    return answers
