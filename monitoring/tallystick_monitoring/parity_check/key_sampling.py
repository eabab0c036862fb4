"""Keys of a view, sampled from its history by their hash, some of each kind that it has."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from tallystick.clock import SECOND_US, arrow_from_us, from_us
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_types import arrow_type
from tallystick.definitions.feature_view import NO_ENTITY_KEY
from tallystick.offline_store.duckdb_connection import read_table
from tallystick.offline_store.view_read import History, ViewRead
from tallystick_monitoring.history_query import query_history

CURRENT: Final = "current"
EXPIRED: Final = "expired"
LATER: Final = "later"
UNKNOWN: Final = "unknown"
KINDS: Final = (CURRENT, EXPIRED, LATER, UNKNOWN)
"""A value within its ttl, older than that, known only afterwards, or never in history."""

NEVER_US: Final = -(1 << 62)
"""Before everything."""

_SHARE: Final = 10
"""One key in so many is of each kind that is not current."""

Key = tuple[Any, ...]
Rng = np.random.Generator

_MADE_UP: Final[dict[str, Callable[[Rng], Any]]] = {
    "INT32": lambda rng: int(rng.integers(1 << 29, 1 << 30)),
    "INT64": lambda rng: int(rng.integers(1 << 52, 1 << 53)),
    "STRING": lambda rng: f"unknown-{rng.bytes(4).hex()}",
    "UUID": lambda rng: str(uuid.UUID(bytes=rng.bytes(16))),
    "TIME_UUID": lambda rng: str(uuid.UUID(bytes=rng.bytes(16))),
    "BYTES": lambda rng: rng.bytes(8),
    "UNIX_TIMESTAMP": lambda rng: from_us(int(rng.integers(0, 1 << 30)) * SECOND_US),
}


@dataclass(frozen=True)
class SampledKeys:
    """Keys of one view, in the order of its key columns.

    Attributes:
        rows: The keys, shuffled.
        kinds: Kind → how many of them are of it.
    """

    rows: tuple[Key, ...]
    kinds: dict[str, int]


class HistoryEnd(NamedTuple):
    """The last event time of a view's history, and when its last row became known."""

    event_us: int
    visible_us: int


class KnownHistory(NamedTuple):
    """The last event time known at a moment (:data:`NEVER_US` for none).

    And when everything that had happened by that moment became known.
    """

    newest_us: int
    settled_us: int


def history_end(repo: Repo, use: ViewUse) -> HistoryEnd | None:
    """Where a view's history ends, or None if it has no rows.

    Raises:
        DataError: The source cannot be read as declared, or lacks a feature.
    """
    found = "max(event_us) AS event, max(visible_us) AS visible"
    row = _aggregate(repo, use, found, columns=use.columns)
    return None if row["event"] is None else HistoryEnd(row["event"], row["visible"])


def known_at(repo: Repo, use: ViewUse, moments_us: Sequence[int]) -> list[KnownHistory]:
    """What of a view's history was known at each moment, in microseconds since 1970.

    Raises:
        DataError: The source cannot be read as declared.
    """
    found = ", ".join(
        f"max(event_us) FILTER (WHERE visible_us <= {moment_us}) AS newest_{position}, "
        f"max(visible_us) FILTER (WHERE event_us <= {moment_us}) AS settled_{position}"
        for position, moment_us in enumerate(moments_us)
    )
    row = _aggregate(repo, use, found)
    times = [NEVER_US if time_us is None else time_us for time_us in row.values()]
    return [KnownHistory(*pair) for pair in zip(times[::2], times[1::2], strict=True)]


def draw_keys(repo: Repo, use: ViewUse, *, at_us: int, count: int, seed: int) -> SampledKeys:
    """Draw keys of a view, the same ones for the same seed and history.

    Raises:
        DataError: The source cannot be read as declared.
    """
    if all(key.name == NO_ENTITY_KEY for key in use.spec.join_keys):
        return SampledKeys(rows=((),), kinds={CURRENT: 1})

    def ask(history: History, read: ViewRead, connection: Any) -> tuple[list[str], list[Any]]:
        sql = _sql(history, ttl_us=use.spec.ttl_us, at_us=at_us, count=count, seed=seed)
        found = read_table(connection, sql, what=history.what)
        columns = [
            arrow_from_us(found[name]) if key.dtype == "UNIX_TIMESTAMP" else found[name]
            for name, key in zip(history.keys, read.keys, strict=True)
        ]
        typed = [
            column.cast(arrow_type(key.dtype)).to_pylist()
            for column, key in zip(columns, read.keys, strict=True)
        ]
        return [key.dtype for key in read.keys], [found["kind"].to_pylist(), *typed]

    dtypes, columns = query_history(repo, use, ask)
    drawn: dict[str, list[Key]] = {kind: [] for kind in KINDS}
    for kind, *key in zip(*columns, strict=True):
        drawn[kind].append(tuple(key))
    rng = np.random.default_rng([seed, *use.name.encode()])
    few = max(1, count // _SHARE)
    chosen = {
        EXPIRED: drawn[EXPIRED][:few],
        LATER: drawn[LATER][:few],
        UNKNOWN: _unknown(dtypes, drawn[CURRENT], few, rng),
    }
    rest = max(1, count - sum(map(len, chosen.values())))
    chosen[CURRENT] = drawn[CURRENT][:rest]
    if not chosen[CURRENT]:
        chosen[EXPIRED] = drawn[EXPIRED][: few + rest]
    rows = [key for kind in KINDS for key in chosen[kind]]
    return SampledKeys(
        rows=tuple(rows[position] for position in rng.permutation(len(rows))),
        kinds={kind: len(chosen[kind]) for kind in KINDS if chosen[kind]},
    )


def made_up(dtype: str, rng: Rng) -> Any:
    """A value of a type that history hardly has, or None for a type without one."""
    make = _MADE_UP.get(dtype)
    return None if make is None else make(rng)


def _unknown(dtypes: Sequence[str], known: Sequence[Key], count: int, rng: Rng) -> list[Key]:
    """Keys that history lacks: one column is made up, the others are those of a known key."""
    unknown = []
    for row in range(count):
        key = list(known[row % len(known)]) if known else [made_up(dtype, rng) for dtype in dtypes]
        position = row % len(dtypes)
        key[position] = made_up(dtypes[position], rng)
        if None not in key:
            unknown.append(tuple(key))
    return unknown


def _aggregate(
    repo: Repo, use: ViewUse, found: str, *, columns: Sequence[str] = ()
) -> dict[str, Any]:
    """One row of aggregates over a view's history."""

    def ask(history: History, _: ViewRead, connection: Any) -> dict[str, Any]:
        sql = f"SELECT {found} FROM {history.sql} AS history"
        rows = read_table(connection, sql, what=history.what).to_pylist()
        return dict(rows[0])

    return query_history(repo, use, ask, columns=columns)


def _sql(history: History, *, ttl_us: int | None, at_us: int, count: int, seed: int) -> str:
    """The first keys of each kind, by a hash that is the same everywhere.

    The row that wins has the largest event time of those that were known, so that this alone says
    whether the value has expired.
    """
    keys = ", ".join(history.keys)
    text = ", ".join(f"CAST({key} AS VARCHAR)" for key in history.keys)
    expired = "false" if ttl_us is None else f"newest < {at_us - ttl_us}"
    return f"""
        SELECT {keys}, kind FROM (
            SELECT *, row_number() OVER (
                PARTITION BY kind ORDER BY md5(concat_ws('|', '{seed}', {text})), {keys}
            ) AS position FROM (
                SELECT {keys}, CASE WHEN newest IS NULL THEN '{LATER}'
                    WHEN {expired} THEN '{EXPIRED}' ELSE '{CURRENT}' END AS kind
                FROM (
                    SELECT {keys}, max(event_us) FILTER (WHERE visible_us <= {at_us}) AS newest
                    FROM {history.sql} AS history GROUP BY {keys}
                )
            )
        ) WHERE position <= {count} ORDER BY kind, position
    """
