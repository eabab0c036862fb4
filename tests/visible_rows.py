"""The rows that a materialization reads, as one table."""

from __future__ import annotations

import pyarrow as pa

from tallystick.clock import to_us
from tallystick.offline_store.newly_visible import Covered, file_digests, read_newly_visible


def visible_rows(read, *, until, clock, after=None):
    """Rows of a view that became visible in (after, until]; empty without columns for none."""
    covered, batches = None, []
    if after is not None:
        files = read_newly_visible(read, lambda _: None, clock=clock, until_us=to_us(after))
        covered = Covered(frozenset(file_digests(files)), to_us(after))
    read_newly_visible(read, batches.append, clock=clock, until_us=to_us(until), covered=covered)
    return pa.concat_tables(batches) if batches else pa.table({})
