"""The point-in-time rule, as SQL.

The value of a view for a key at time t is the row with the largest (event time, created time) among
the rows *visible* at t. It is null if its event time is older than t - ttl. Both ends of the window
are included. Of rows equal in both times the first to become visible wins, and of these the first
in source order, as it does online, where a write replaces a row only if its times are larger. See
docs/adr/0002-window-of-the-point-in-time-rule.md.

A row may lack a created time. There is one rule for it, and every part of the system refers to it:

- **In the order of rows it counts as created at its event time** (:data:`CREATED_SQL`): offline
  under every clock, online, and in the journal.
- **Where visibility depends on it, it is refused** (:func:`requires_created`): under the knowledge
  clock, when materializing by it, and for labels, which are known from their created time on. A
  guess would leak the future. Should the refusal be missing somewhere, such a row is never visible.

The rule is computed in two steps. :func:`folded_sql` orders a key's rows by when they became
visible and keeps those that were the winner at that moment, so that at most one row per key and
moment remains and its rank only rises. :func:`as_of_sql` joins requests to the last of these. Both
take O(n log n), and are DuckDB's SQL, which has ``ASOF JOIN``. Spark does not have it and does both
in one: :mod:`tallystick.offline_store.spark.as_of_join`.

All times are integers: microseconds since 1970-01-01 in UTC, so that the session's time zone does
not matter. A history is any relation with these columns:

===============  ===============================================================
key columns      as named by the caller, without rows that have a null in one
``event_us``     event time
``created_us``   created time, or null where the history does not have it
``visible_us``   when the row became visible: :func:`visible_sql`
``row_position`` an integer that ascends in source order: :data:`POSITION`
===============  ===============================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Final

TTL_US_MAX: Final = 1 << 62
"""A ttl from this on (146,000 years) means never, so that subtractions cannot overflow."""


class VisibilityClock(StrEnum):
    """When a row counts as visible."""

    EVENT = "event"
    """From its event time on: the classic point-in-time join."""

    KNOWLEDGE = "knowledge"
    """From the later of event time and created time on: what could have been known."""

    SERVED = "served"
    """From the moment on at which it was written online."""


POSITION: Final = "row_position"
"""The column by which the rows of a history ascend in source order."""

CREATED_SQL: Final = "coalesce(created_us, event_us)"
"""The created time by which rows are ordered."""

ORDER_SQL: Final = f"(event_us::HUGEINT * 18446744073709551616 + {CREATED_SQL})"
"""One value that orders rows by event time and created time."""


def requires_created(clock: VisibilityClock) -> bool:
    """Whether rows without created time are refused under a clock."""
    return clock is VisibilityClock.KNOWLEDGE


def quoted(name: str) -> str:
    """``name`` as an SQL identifier.

    >>> print(quoted('a "b" c'))
    "a ""b"" c"
    """
    return '"' + name.replace('"', '""') + '"'


def text_sql(text: str) -> str:
    """``text`` as an SQL literal.

    >>> print(text_sql("it's"))
    'it''s'
    """
    return "'" + text.replace("'", "''") + "'"


def visible_sql(clock: VisibilityClock) -> str:
    """The expression for when a row of a source became visible; the served clock uses a journal."""
    if not requires_created(clock):
        return "event_us"
    # The later of both, or null: greatest() of the two themselves would pass over a null.
    return "created_us + greatest(event_us - created_us, 0)"


def folded_sql(history: str, *, keys: Sequence[str]) -> str:
    """The rows of ``history`` that were a key's winner from the moment they became visible.

    Args:
        history: A relation with the columns in the module's text, as a name or in parentheses.
        keys: Its key columns, as SQL identifiers. At least one.

    Returns:
        A query with keys, times and position of these rows. No two share key and ``visible_us``.
    """
    partition = ", ".join(keys)
    columns = ", ".join((*keys, "event_us", "created_us", "visible_us", POSITION))
    return f"""
    SELECT {columns} FROM (
      SELECT *, max(fold_order) OVER (
        PARTITION BY {partition} ORDER BY visible_us, fold_order DESC, {POSITION}
        ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
      ) AS fold_before
      FROM (
        SELECT {columns}, {ORDER_SQL} AS fold_order
        FROM {history} AS history WHERE visible_us IS NOT NULL
      ) AS ordered
    ) AS running
    WHERE fold_before IS NULL OR fold_order > fold_before"""


def latest_sql(history: str, *, keys: Sequence[str]) -> str:
    """The winner of each key among all rows of ``history``, in source order.

    An online store holds these rows once all rows were written.

    Args:
        history: A relation with the columns in the module's text, as a name or in parentheses.
        keys: Its key columns, as SQL identifiers. At least one.

    Returns:
        A query with all columns of the history, and one more, ``row_order``.
    """
    return f"""
    SELECT * FROM (
      SELECT *, row_number() OVER (
        PARTITION BY {", ".join(keys)}
        ORDER BY event_us DESC, {CREATED_SQL} DESC, visible_us, {POSITION}
      ) AS row_order
      FROM {history} AS history
    ) AS numbered
    WHERE row_order = 1 ORDER BY {POSITION}"""


def newest_sql(history: str, *, keys: Sequence[str]) -> str:
    """As :func:`latest_sql`, at a third of its cost where keys have many rows.

    Only rows with the largest times of their key are sorted: they are found by a hash table of keys
    and times, which the engine can spill.
    """
    columns = ", ".join(keys)
    same = " AND ".join(f"history.{key} = newest.{key}" for key in keys)
    candidates = f"""(
      SELECT history.* FROM {history} AS history
      SEMI JOIN (
        SELECT {columns}, max({ORDER_SQL}) AS fold_order
        FROM {history} AS history GROUP BY {columns}
      ) AS newest ON {same} AND {ORDER_SQL} = newest.fold_order)"""
    return latest_sql(candidates, keys=keys)


def as_of_sql(
    history: str,
    *,
    entity_rows: str,
    keys: Sequence[str],
    ttl_us: int | None,
) -> str:
    """The row of the history that wins for each entity row at its request time.

    The answer has the row's position, not its values: :func:`values_sql` adds them. So the sort
    stays narrow, and values keep every bit (sorted along in a join, DuckDB turned -0.0 into 0.0).

    Args:
        history: A relation with the columns in the module's text, as a name or in parentheses.
        entity_rows: A relation with the same key columns, ``entity_row`` (an integer) and
            ``request_us``.
        keys: Key columns of both, as SQL identifiers. At least one.
        ttl_us: Microseconds after which a row is too old. None or 0 for never.

    Returns:
        A query with ``entity_row``, ``too_old`` and the winning row's position, ``event_us`` and
        ``created_us``, which are null without a winner. The order is not defined.
    """
    too_old = "false"
    if ttl_us and ttl_us < TTL_US_MAX:
        too_old = f"fold.event_us < entity_rows.request_us - {ttl_us}"
    matches = " AND ".join(f"entity_rows.{key} = fold.{key}" for key in keys)
    found = ", ".join(f"fold.{column}" for column in (POSITION, "event_us", "created_us"))
    return f"""
    SELECT entity_rows.entity_row, {found}, {too_old} AS too_old
    FROM {entity_rows} AS entity_rows
    ASOF LEFT JOIN ({folded_sql(history, keys=keys)}) AS fold
      ON {matches} AND entity_rows.request_us >= fold.visible_us"""


def values_sql(
    history: str, matched: str, *, values: Sequence[str], times: Sequence[str] = ()
) -> str:
    """The values of the rows that :func:`as_of_sql` found, in the order of the entity rows.

    Args:
        history: The relation that was joined.
        matched: Its answer, as a name or in parentheses.
        values: Columns of the history to return, as SQL identifiers.
        times: Which of ``event_us`` and ``created_us`` to return. The others do not have to be
            carried through the engine's sorts.

    Returns:
        A query with the values (null unless there is a row that is not too old) and ``too_old``,
        and the times if they are requested.
    """
    columns = [f"history.{value}" for value in values] + ["matched.too_old"]
    columns += [f"matched.{time}" for time in times]
    return f"""
    SELECT {", ".join(columns)}
    FROM {matched} AS matched
    LEFT JOIN {history} AS history
      ON history.{POSITION} = matched.{POSITION} AND NOT matched.too_old
    ORDER BY matched.entity_row"""
