"""Histories of the wide views, and entity rows with random keys and request times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.wide_views import DAY_US, KEY, TIMESTAMP, as_table, wide_columns

START_US: Final = 1_700_000_000_000_000
DAYS: Final = 60
ROWS_PER_KEY: Final = 10
SEED: Final = 20_130_101
_CHUNK: Final = 1_000_000


def write_history(path: Path, *, view: int, rows: int, keys: int | None = None) -> None:
    """The history of one view, with ten rows a key by default; one row in fifty is a correction.

    Rows become known one to ten minutes after their event, one in a hundred up to two days later.
    """
    rng = np.random.default_rng([SEED, view, rows])
    keys = keys or max(1, rows // ROWS_PER_KEY)
    _write(path, rows, lambda count: _history(rng, view, count, keys))


def write_entity_rows(path: Path, *, rows: int, keys: int) -> None:
    """Random keys at random request times; one key in a hundred has no history."""
    rng = np.random.default_rng([SEED, rows, keys])

    def table(count: int) -> pa.Table:
        request_us = START_US + rng.integers(0, DAYS * DAY_US, size=count)
        key = rng.integers(0, keys + keys // 100, size=count)
        return pa.table({KEY: key, "event_timestamp": pa.array(request_us).cast(TIMESTAMP)})

    _write(path, rows, table)


def _write(path: Path, rows: int, table: Callable[[int], pa.Table]) -> None:
    """Write a file in chunks, so that it need not fit into memory."""
    counts = [min(_CHUNK, rows - start) for start in range(0, rows, _CHUNK)]
    first = table(counts[0])
    with pq.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for count in counts[1:]:
            writer.write_table(table(count))


def _history(rng: np.random.Generator, view: int, rows: int, keys: int) -> pa.Table:
    key = rng.integers(0, keys, size=rows)
    event = START_US + rng.integers(0, DAYS * 86_400, size=rows) * 1_000_000
    corrected = rng.random(rows) < 0.02
    corrected[0] = False
    corrections = np.flatnonzero(corrected)
    key[corrections], event[corrections] = key[corrections - 1], event[corrections - 1]
    lag = rng.integers(60, 600, size=rows) * 1_000_000
    late = rng.random(rows) < 0.01
    lag[late] = rng.integers(0, 2 * DAY_US, size=int(late.sum()))
    times = {"event_time": event, "created_time": event + lag}
    return as_table({KEY: key, **wide_columns(rng, view, rows), **times})
