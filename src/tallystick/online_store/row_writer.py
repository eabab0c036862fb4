"""Writes of packed rows: a row replaces another only if its (event time, created time) is larger.

This is the point-in-time rule run forward. Redis applies it, one entity at a time and atomically,
by the scripts of :mod:`tallystick.online_store.lua_scripts`: concurrent, repeated and shuffled
writes end in the same row. Redis also removes an entity's value, one ttl after the last of its rows
has expired, unless a view without ttl is among them or the clock is simulated.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from tallystick.clock import is_simulated
from tallystick.online_store.entity_keys import entity_prefix, project_prefix
from tallystick.online_store.lua_scripts import REMOVE_VIEW, WRITE_ROWS
from tallystick.online_store.materialization_mark import forget_mark
from tallystick.online_store.redis_commands import run_script, scan
from tallystick.online_store.redis_connection import SyncClient, redis_errors
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import order_of, view_tag
from tallystick.online_store.stored_definitions import names_and_keys, register

Winners: TypeAlias = "tuple[dict[bytes, bytes], WriteCounts]"
"""The rows of a batch that go to Redis, by key, and the count of the others."""

logger = logging.getLogger(__name__)

ROWS_PER_ROUND_TRIP: Final = 5_000


@dataclass(frozen=True, slots=True)
class WriteCounts:
    """The results of a write, in rows.

    Attributes:
        won: Rows that now are in Redis.
        lost: Rows older than the one in Redis, or than another one of the same write.
        repeated: Rows with the same event and created time as one that was there before.
        unkeyed: Rows with a null in their key, which no request could name.
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
    client: SyncClient,
    project: str,
    codec: RowCodec,
    rows: Iterable[tuple[bytes | None, bytes]],
    *,
    key_ttl_s: int | None = None,
) -> WriteCounts:
    """Write packed rows.

    Args:
        client: Redis.
        project: Feast project.
        codec: The codec of the rows; its definition is registered before them.
        rows: Redis key (None for a row without key) and packed row, in order of writing.
        key_ttl_s: Seconds after its last write at which an entity's value goes in any case.

    Raises:
        UnavailableError: Redis did not answer. Part of the rows may be written; writing all of them
            again does no harm.
    """
    counts = WriteCounts()
    ttls: bytes | None = None
    for winners, others in _ahead(map(_winners, _batches(rows))):
        counts += others
        if not winners:
            continue
        if ttls is None:
            ttls = register(client, project, codec)
        with redis_errors(client):
            answers = run_script(
                client, WRITE_ROWS, list(winners.items()), shared=_shared(ttls, key_ttl_s)
            )
        counts = sum((WriteCounts(*answer) for answer in answers), counts)
    logger.debug("view %s of project %s: %s", codec.name, project, counts)
    return counts


def delete_view(client: SyncClient, project: str, view: str, *, version: str | None = None) -> int:
    """Remove all rows of one view, of all its versions and keys; give their number.

    Its materialization mark goes first, so that the next run begins from the beginning.

    Args:
        client: Redis.
        project: Feast project.
        view: The view's name.
        version: The name online of the only version that goes; None for all.

    Raises:
        UnavailableError: Redis did not answer.
    """
    forget_mark(client, project, view)
    removed = 0
    with redis_errors(client):
        for name, join_keys in sorted(names_and_keys(client, project, view)):
            if version not in {None, name}:
                continue
            tag = view_tag(name, join_keys)
            for keys in scan(client, entity_prefix(project, join_keys) + b"*"):
                calls = [(key, None) for key in keys]
                removed += sum(run_script(client, REMOVE_VIEW, calls, shared=[tag]))
    forget_mark(client, project, view)  # of a run that began meanwhile, whose rows went as well
    return removed


def delete_project(client: SyncClient, project: str) -> int:
    """Remove all rows and definitions of one project; give the number of keys.

    Raises:
        UnavailableError: Redis did not answer.
    """
    removed = 0
    with redis_errors(client):
        # The prefix has no character that is special to SCAN.
        for keys in scan(client, project_prefix(project) + b"*"):
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.unlink(key)
            removed += sum(pipeline.execute())
    return removed


def _shared(ttls: bytes, key_ttl_s: int | None) -> list[bytes]:
    """The arguments of the script before the rows."""
    return [ttls, b"0" if is_simulated() else b"1", b"%d" % ((key_ttl_s or 0) * 1000)]


def _batches(
    rows: Iterable[tuple[bytes | None, bytes]],
) -> Iterator[list[tuple[bytes | None, bytes]]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, ROWS_PER_ROUND_TRIP)):
        yield batch


def _ahead(items: Iterator[Winners]) -> Iterator[Winners]:
    """The items; while one is used, a thread makes the next one.

    The thread is not one of a pool: a pool accepts nothing once the main thread has ended.
    """
    item, following = next(items, None), next(items, None)
    while following is not None:  # most writes are small and need no thread
        future: Future[Winners | None] = Future()
        threading.Thread(target=_make, args=(future, items), daemon=True).start()
        assert item is not None
        yield item
        item, following = following, future.result()
    if item is not None:
        yield item


def _make(future: Future[Winners | None], items: Iterator[Winners]) -> None:
    try:
        future.set_result(next(items, None))
    except BaseException as error:  # noqa: BLE001 raised where the result is needed
        future.set_exception(error)


def _winners(batch: Sequence[tuple[bytes | None, bytes]]) -> Winners:
    """The newest row of each key, by the rule of the script; all have the same definition."""
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
