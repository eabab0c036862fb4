"""The fold, run forward: a write replaces a row only if its (event time, created time) is larger.

Redis does it, one key at a time and atomically, in a script: concurrent writers, repeated and
shuffled writes end in the same row. A row with the same times stays (the first written wins),
unless it was written under another definition of the view: otherwise a new column could never be
filled for times that are already there.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from tallystick.online_store.connection import AsyncClient, SyncClient, redis_errors
from tallystick.online_store.keys import definitions_key, project_prefix, store_key, view_prefix
from tallystick.online_store.packed import VERSION, order_of
from tallystick.view import ViewSpec

logger = logging.getLogger(__name__)

KEYS_PER_CALL: Final = 200
"""Rows that one call of the script writes; other clients wait meanwhile, well under 1 ms."""
CALLS_PER_ROUND_TRIP: Final = 25
_KEYS_PER_SCAN: Final = 1_000

# Redis' Lua has numbers of 53 bits and compares strings by locale: each time is compared as two
# integers of 32 bits, the upper one signed. 26 bytes: all that a row has before its write time.
FOLD: Final = f"""
local won, lost, repeated = 0, 0, 0
for i, key in ipairs(KEYS) do
  local new = ARGV[i]
  local old = redis.call('GETRANGE', key, 0, 25)
  local order = 1
  if #old == 26 and string.byte(old) == {VERSION} then
    local event_low, event_high, created_low, created_high = struct.unpack('<I4i4I4i4', old, 11)
    local new_event_low, new_event_high, new_created_low, new_created_high =
      struct.unpack('<I4i4I4i4', new, 11)
    order = new_event_high - event_high
    if order == 0 then order = new_event_low - event_low end
    if order == 0 then order = new_created_high - created_high end
    if order == 0 then order = new_created_low - created_low end
    if order == 0 and string.sub(old, 2, 9) ~= string.sub(new, 2, 9) then order = 1 end
  end
  if order > 0 then
    redis.call('SET', key, new)
    won = won + 1
  elseif order < 0 then
    lost = lost + 1
  else
    repeated = repeated + 1
  end
end
return {{won, lost, repeated}}
"""


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """What became of the rows of a write.

    Attributes:
        won: Rows that now are in Redis.
        lost: Rows older than the one in Redis, or than another one of the same write.
        repeated: Rows with the same event and created time as one that was there before.
        unkeyed: Rows with a null in their key, which nobody could ask for.
    """

    won: int = 0
    lost: int = 0
    repeated: int = 0
    unkeyed: int = 0

    def __add__(self, other: WriteCounts) -> WriteCounts:
        return WriteCounts(
            self.won + other.won,
            self.lost + other.lost,
            self.repeated + other.repeated,
            self.unkeyed + other.unkeyed,
        )


def write_rows(
    client: SyncClient, project: str, spec: ViewSpec, rows: Iterable[tuple[bytes | None, bytes]]
) -> WriteCounts:
    """Fold packed rows into Redis.

    Args:
        client: Redis.
        project: Feast project.
        spec: Definition under which the rows were packed; it is stored before them.
        rows: Redis key (None for a row without key) and packed row, in order of writing.

    Raises:
        UnavailableError: Redis did not answer. Part of the rows may be written; writing all of them
            again does no harm.
    """
    counts = WriteCounts()
    with redis_errors(client):
        for batch in _batches(rows):
            winners, folded = _fold(batch)
            pipeline = client.pipeline(transaction=False)
            _queue(pipeline, project, spec, winners)
            counts += folded + _summed(pipeline.execute())
    logger.debug("view %s of project %s: %s", spec.name, project, counts)
    return counts


async def write_rows_async(
    client: AsyncClient, project: str, spec: ViewSpec, rows: Iterable[tuple[bytes | None, bytes]]
) -> WriteCounts:
    """Fold packed rows into Redis, as :func:`write_rows`."""
    counts = WriteCounts()
    with redis_errors(client):
        for batch in _batches(rows):
            winners, folded = _fold(batch)
            pipeline = client.pipeline(transaction=False)
            _queue(pipeline, project, spec, winners)
            counts += folded + _summed(await pipeline.execute())
    logger.debug("view %s of project %s: %s", spec.name, project, counts)
    return counts


def store_identity(client: SyncClient, project: str) -> str:
    """A text that stays the same as long as the store keeps what was written to it.

    An emptied store, another server, and a store of which a view was removed have another one.

    Raises:
        UnavailableError: Redis did not answer.
    """
    key = store_key(project)
    with redis_errors(client):
        client.set(key, uuid.uuid4().hex, nx=True)
        return bytes(client.get(key)).decode()


def delete_view(client: SyncClient, project: str, view: str) -> int:
    """Remove all rows of one view; give their number.

    The store is another one from then on: what was noted of this one no longer holds.

    Raises:
        UnavailableError: Redis did not answer.
    """
    with redis_errors(client):
        client.delete(store_key(project))
    return _delete(client, view_prefix(project, view))


def delete_project(client: SyncClient, project: str) -> int:
    """Remove all rows and definitions of one project; give the number of keys.

    Raises:
        UnavailableError: Redis did not answer.
    """
    return _delete(client, project_prefix(project))


def _delete(client: SyncClient, prefix: bytes) -> int:
    """Remove the keys that start with ``prefix``, which has no character special to SCAN."""
    deleted = 0
    with redis_errors(client):
        found = client.scan_iter(match=prefix + b"*", count=_KEYS_PER_SCAN)
        while keys := list(islice(found, _KEYS_PER_SCAN)):
            deleted += client.unlink(*keys)
    return deleted


def _batches(
    rows: Iterable[tuple[bytes | None, bytes]],
) -> Iterator[list[tuple[bytes | None, bytes]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, KEYS_PER_CALL * CALLS_PER_ROUND_TRIP)):
        yield batch


def _fold(
    batch: Sequence[tuple[bytes | None, bytes]],
) -> tuple[dict[bytes, bytes], WriteCounts]:
    """Keep of each key the row that would be left of the batch, by the rule of the script.

    All rows of a batch have the same definition.
    """
    winners: dict[bytes, bytes] = {}
    lost = repeated = unkeyed = 0
    for key, row in batch:
        if key is None:
            unkeyed += 1
            continue
        before = winners.setdefault(key, row)
        if before is row:
            continue
        order, order_before = order_of(row), order_of(before)
        if order == order_before:
            repeated += 1
            continue
        lost += 1
        if order > order_before:
            winners[key] = row
    return winners, WriteCounts(lost=lost, repeated=repeated, unkeyed=unkeyed)


def _queue(
    pipeline: SyncClient | AsyncClient, project: str, spec: ViewSpec, winners: dict[bytes, bytes]
) -> None:
    """Queue the definition and then the calls of the script."""
    if winners:
        pipeline.hset(definitions_key(project), spec.definition_hash, spec.canonical_json())
    items = iter(winners.items())
    while chunk := list(islice(items, KEYS_PER_CALL)):
        keys, rows = zip(*chunk, strict=True)
        pipeline.eval(FOLD, len(keys), *keys, *rows)


def _summed(answers: Sequence[object]) -> WriteCounts:
    counts = WriteCounts()
    for answer in answers[1:]:  # the first one is the definition's
        assert isinstance(answer, list)
        counts += WriteCounts(*answer)
    return counts
