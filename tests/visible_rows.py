"""The rows of a source, and those that a materialization reads, as one table."""

from __future__ import annotations

import pyarrow as pa

from tallystick.clock import to_us
from tallystick.offline_store.duckdb_connection import query_table
from tallystick.offline_store.newly_visible import Covered, file_digests, read_newly_visible


def all_rows(files):
    """All rows of a source that is open, in its own order and under its own names."""
    quoted = {name: '"' + name.replace('"', '""') + '"' for name in files.schema.names}
    rows = " UNION ALL ".join(
        group.select({quoted[name]: sql for name, sql in group.expressions.items()})
        for group in files.groups
    )
    sql = f"SELECT {', '.join(quoted.values())} FROM ({rows}) ORDER BY row_position"
    return query_table(None, sql, what=files.label)


def visible_rows(read, *, until, clock, after=None):
    """Rows of a view that became visible in (after, until]; empty without columns for none."""
    covered, batches = None, []
    if after is not None:
        files = read_newly_visible(read, lambda _: None, clock=clock, until_us=to_us(after))
        covered = Covered(frozenset(file_digests(files)), to_us(after))
    read_newly_visible(read, batches.append, clock=clock, until_us=to_us(until), covered=covered)
    return pa.concat_tables(batches) if batches else pa.table({})
