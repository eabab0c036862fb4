"""Rows of a view that became visible between two moments."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick.clock import arrow_from_us, to_us
from tallystick.definitions.exact_cast import converted
from tallystick.errors import InputError
from tallystick.offline_store.duckdb_connection import EngineLimits, connect, read_table
from tallystick.offline_store.history_cache import KeptHistory, kept_histories
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.view_history import (
    History,
    ViewRead,
    open_history,
    require_times,
    typed,
)
from tallystick.point_in_time.rule import VisibilityClock, ranked_sql

if TYPE_CHECKING:
    import pyarrow as pa


def visible_between(
    read: ViewRead,
    *,
    after: datetime | None,
    until: datetime,
    clock: VisibilityClock,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
) -> pa.Table:
    """What an online store has to be told: rows that became visible in (after, until].

    Made to be called again and again: a history is sorted by visibility once, kept in memory (all
    of them up to ``kept.KEPT_BYTES_MAX``), and read anew only when its files change.

    Args:
        read: The view; its ``name`` and ``key_map`` do not matter here.
        after: Excluded; None for the beginning.
        until: Included.
        clock: When a row counts as visible.
        config: Limits of the engine; None for the whole machine.
        repo_path: Folder from which relative source paths are taken.

    Returns:
        One row per key, the winner of these rows: the key columns, the features in their declared
        types, ``event_time`` and ``created_time`` (timestamp[us, UTC]). Rows with a null key are
        left out. In the order in which they became visible.

    Raises:
        DataError: A source does not fit its view, or lacks the time that the clock needs.
    """
    kept = read_steadily(
        lambda: open_history(read, clock=clock, repo_path=repo_path),
        lambda history: [history.files],
        lambda history: kept_histories.get(
            (read.spec.definition_hash, read.columns, history.sql),
            history.files.signature,
            lambda: keep(history, read, clock, config),
        ),
    )
    return kept.winners(after_us=None if after is None else to_us(after), until_us=to_us(until))


def keep(
    history: History, read: ViewRead, clock: VisibilityClock, config: EngineLimits | None
) -> KeptHistory:
    """Read a history into memory, sorted and ranked."""
    connection = connect(config)
    try:
        require_times(partial(read_table, connection, what=history.what), history, read, clock)
        sql = ranked_sql(history.sql, keys=history.keys, position=history.position)
        found = read_table(connection, sql, what=history.what)
    finally:
        connection.close()
    return KeptHistory(
        rows=named(found, history, read),
        visible_us=found["visible_us"].to_numpy(),
        key=found["fold_key"].to_numpy(),
        rank=found["fold_rank"].to_numpy(),
    )


def named(found: pa.Table, history: History, read: ViewRead) -> pa.Table:
    """Rows of a history under the view's own names and types.

    Raises:
        InputError: A key or feature bears a name that the answer needs.
    """
    import pyarrow as pa

    taken = {"event_time", "created_time"} & {*read.spec.key_names, *read.columns}
    if taken:
        raise InputError(
            f"View {read.spec.name} has columns named {' and '.join(sorted(taken))}.",
            hint="Rename them: these names stand for the row's own times.",
        )
    keys = {
        key.name: converted(found[f"key_{at}"], key.dtype, where=f"Key {key.name}")
        for at, key in enumerate(read.keys)
    }
    return pa.table(
        {
            **keys,
            **typed(found, history, read),
            "event_time": arrow_from_us(found["event_us"]),
            "created_time": arrow_from_us(found["created_us"]),
        }
    )
