"""The as-of join for Spark, which lacks one in SQL: requests and history in one sorted stream."""

from __future__ import annotations

from collections.abc import Sequence

from tallystick.point_in_time.rule import CREATED_SQL, POSITION, TTL_US_MAX


def as_of_sql(
    history: str,
    *,
    entity_rows: str,
    keys: Sequence[str],
    values: Sequence[str],
    ttl_us: int | None,
    few_requests: bool,
) -> str:
    """For every entity row the values of its key at its request time.

    Rows of a key and requests for it are put into one order, by when a row became visible or a
    request is made. A row comes before a request of the same moment. The winner is the running
    maximum of the rank that the rule gives rows. This needs one exchange and one sort, O(n log n).

    Args:
        history: A relation with the columns in the text of :mod:`tallystick.point_in_time.rule`.
        entity_rows: A relation with the same key columns, ``entity_row`` (an integer) and
            ``request_us``.
        keys: Key columns of both. At least one.
        values: Columns of the history to return.
        ttl_us: Microseconds after which a row is too old. None or 0 for never.
        few_requests: Whether the requested keys can be sent to every reader of the history.

    Returns:
        A query with ``entity_row``, the values (null unless there is a row that is not too old),
        ``event_us``, ``created_us`` and ``too_old``, in the order of the entity rows.
    """
    partition = ", ".join(keys)
    row = ", ".join((*values, "event_us", "created_us"))
    too_old = "false"
    if ttl_us and ttl_us < TTL_US_MAX:
        too_old = f"coalesce(winner.event_us < request_us - {ttl_us}, false)"
    found = "".join(f"IF(too_old, NULL, winner.{value}) AS {value}, " for value in values)
    requested = ""
    if few_requests:
        matches = " AND ".join(f"requested.{key} = history.{key}" for key in keys)
        requested = (
            f"LEFT SEMI JOIN (SELECT {partition} FROM {entity_rows}) AS requested ON {matches}"
        )
    return f"""
    SELECT entity_row, {found}winner.event_us AS event_us, winner.created_us AS created_us, too_old
    FROM (
      SELECT entity_row, winner, {too_old} AS too_old FROM (
        SELECT entity_row, request_us, max_by(history_row, history_rank) OVER (
          PARTITION BY {partition} ORDER BY request_us, entity_row NULLS FIRST
          ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) AS winner
        FROM (
          SELECT {partition}, visible_us AS request_us, CAST(NULL AS BIGINT) AS entity_row,
            struct({row}) AS history_row,
            struct(event_us, {CREATED_SQL}, -visible_us, -{POSITION}) AS history_rank
          FROM (
            SELECT {"/*+ BROADCAST(requested) */ " if requested else ""}history.*
            FROM {history} AS history {requested}
          ) AS visible WHERE visible_us IS NOT NULL
          UNION ALL
          SELECT {partition}, request_us, entity_row, NULL, NULL FROM {entity_rows} AS entity_rows
        ) AS stream
      ) AS running WHERE entity_row IS NOT NULL
    ) AS answered ORDER BY entity_row"""
