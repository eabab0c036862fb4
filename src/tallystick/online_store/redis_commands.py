"""What is asked of Redis for many keys at once, be it one server or a cluster.

A cluster takes a command only if all its keys are in one slot, even where one node has all of them,
and while a slot moves not even then. So there each key has a command of its own, and what keeps it
quick is that a node gets all its commands in one go, while the other nodes get theirs.

Errors are redis-py's; ``redis_errors`` goes around calls.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, TypeAlias

from redis.crc import key_slot

from tallystick.online_store.redis_cluster import AsyncCluster, Cluster, Words
from tallystick.online_store.redis_connection import AsyncClient, SyncClient

Item: TypeAlias = tuple[bytes, bytes | None]
"""A key, and what a script takes for it; None where it takes nothing."""

KEYS_PER_CALL: Final = 200
"""Keys that one call of a script has at most; other clients wait meanwhile, well under 1 ms."""
_KEYS_PER_SCAN: Final = 1_000


def mget(client: SyncClient, keys: Sequence[bytes]) -> list[bytes | None]:
    """The values of keys, in their order, with one round trip to each node that has any.

    Args:
        client: Redis or a cluster.
        keys: In any order, also repeated.
    """
    if not keys:
        return []
    if isinstance(client, Cluster):
        return client.ask([(key_slot(key), ("GET", key)) for key in keys])
    values: list[bytes | None] = client.mget(keys)
    return values


async def mget_async(client: AsyncClient, keys: Sequence[bytes]) -> list[bytes | None]:
    """The values of keys, as :func:`mget`."""
    if not keys:
        return []
    if isinstance(client, AsyncCluster):
        return await client.ask([(key_slot(key), ("GET", key)) for key in keys])
    values: list[bytes | None] = await client.mget(keys)
    return values


def run_script(
    client: SyncClient, script: str, items: Sequence[Item], *, shared: Sequence[bytes] = ()
) -> list[Any]:
    """Run a script over many keys, with one round trip to each node that has any.

    A call has :data:`KEYS_PER_CALL` keys, or one of a cluster. The script's text goes to each node
    once, and its hash with each call.

    Args:
        client: Redis or a cluster.
        script: Lua. It is atomic for a key, and not across keys.
        items: Keys, each with what the script takes for it.
        shared: Arguments that each call gets before those of its keys.

    Returns:
        The script's answers, one for each call, in the order of the keys.
    """
    calls = _calls(client, script, items, shared)
    if isinstance(client, Cluster):
        return client.ask(calls, preface=("SCRIPT", "LOAD", script))
    pipeline = client.pipeline(transaction=False)
    _queue(pipeline, script, calls)
    return _answers(pipeline.execute(raise_on_error=False))


async def run_script_async(
    client: AsyncClient, script: str, items: Sequence[Item], *, shared: Sequence[bytes] = ()
) -> list[Any]:
    """Run a script over many keys, as :func:`run_script`."""
    calls = _calls(client, script, items, shared)
    if isinstance(client, AsyncCluster):
        return await client.ask(calls, preface=("SCRIPT", "LOAD", script))
    pipeline = client.pipeline(transaction=False)
    _queue(pipeline, script, calls)
    return _answers(await pipeline.execute(raise_on_error=False))


def scan(client: SyncClient, pattern: bytes) -> Iterator[bytes]:
    """The keys that match a pattern; a key may come twice, as Redis scans.

    Args:
        client: Redis or a cluster, of which all primaries are asked.
        pattern: As Redis' ``SCAN`` takes it.
    """
    if isinstance(client, Cluster):
        client.refresh()  # a primary that is not known would be left out
    yield from client.scan_iter(match=pattern, count=_KEYS_PER_SCAN)


async def scan_async(client: AsyncClient, pattern: bytes) -> AsyncIterator[bytes]:
    """The keys that match a pattern, as :func:`scan`."""
    if isinstance(client, AsyncCluster):
        await client.initialize()
        await client.refresh()
    async for key in client.scan_iter(match=pattern, count=_KEYS_PER_SCAN):
        yield key


def _calls(
    client: SyncClient | AsyncClient, script: str, items: Sequence[Item], shared: Sequence[bytes]
) -> list[tuple[int, Words]]:
    """Slot and words of each call; one server has no slots."""
    is_cluster = isinstance(client, Cluster | AsyncCluster)
    sha = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
    size = 1 if is_cluster else KEYS_PER_CALL
    calls: list[tuple[int, Words]] = []
    for start in range(0, len(items), size):
        part = items[start : start + size]
        keys = [key for key, _ in part]
        taken = [argument for _, argument in part if argument is not None]
        slot = key_slot(keys[0]) if is_cluster else 0
        calls.append((slot, ("EVALSHA", sha, len(keys), *keys, *shared, *taken)))
    return calls


def _queue(pipeline: Any, script: str, calls: Sequence[tuple[int, Words]]) -> None:
    pipeline.execute_command("SCRIPT LOAD", script)
    for _, words in calls:
        pipeline.execute_command(*words)


def _answers(answers: list[Any]) -> list[Any]:
    """What each call answered; redis-py would show the values of the one that failed."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers[1:]
