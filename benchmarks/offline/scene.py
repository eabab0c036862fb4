"""What is measured: views of ten features for one entity, and spines of random requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

KEY: Final = "account_id"
VIEWS: Final = 4
DOUBLES, FLOATS, INTEGERS = 6, 2, 2
DAY_US: Final = 86_400_000_000
START_US: Final = 1_700_000_000_000_000
DAYS: Final = 60
ROWS_PER_KEY: Final = 10
SEED: Final = 20_130_101
_CHUNK: Final = 1_000_000
_MOMENT: Final = pa.timestamp("us", tz="UTC")


def feature_names(view: int) -> list[str]:
    """Names of a view's features."""
    return [
        *(f"v{view}_double{place}" for place in range(DOUBLES)),
        *(f"v{view}_float{place}" for place in range(FLOATS)),
        *(f"v{view}_integer{place}" for place in range(INTEGERS)),
    ]


def write_history(path: Path, *, view: int, rows: int, keys: int | None = None) -> None:
    """The history of one view, with ten rows a key by default; one row in fifty is a correction.

    Rows become known one to ten minutes after their event, one in a hundred up to two days later.
    """
    rng = np.random.default_rng([SEED, view, rows])
    keys = keys or max(1, rows // ROWS_PER_KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, _schema(view)) as writer:
        for start in range(0, rows, _CHUNK):
            writer.write_table(_history(rng, view, min(_CHUNK, rows - start), keys))


def write_spine(path: Path, *, rows: int, keys: int) -> None:
    """Requests for random keys at random moments; one in a hundred is for a key without history."""
    rng = np.random.default_rng([SEED, rows, keys])
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(KEY, pa.int64()), ("event_timestamp", _MOMENT)])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, _CHUNK):
            count = min(_CHUNK, rows - start)
            asked = START_US + rng.integers(0, DAYS * DAY_US, size=count)
            columns = {
                KEY: rng.integers(0, keys + keys // 100, size=count),
                "event_timestamp": pa.array(asked).cast(_MOMENT),
            }
            writer.write_table(pa.table(columns, schema=schema))


def _schema(view: int) -> pa.Schema:
    kinds = [pa.float64()] * DOUBLES + [pa.float32()] * FLOATS + [pa.int64()] * INTEGERS
    return pa.schema(
        [
            (KEY, pa.int64()),
            *zip(feature_names(view), kinds, strict=True),
            ("event_time", _MOMENT),
            ("created_time", _MOMENT),
        ]
    )


def _history(rng: np.random.Generator, view: int, rows: int, keys: int) -> pa.Table:
    key = rng.integers(0, keys, size=rows)
    event = START_US + rng.integers(0, DAYS * 86_400, size=rows) * 1_000_000
    corrected = rng.random(rows) < 0.02
    corrected[0] = False
    place = np.flatnonzero(corrected)
    key[place], event[place] = key[place - 1], event[place - 1]
    lag = rng.integers(60, 600, size=rows) * 1_000_000
    late = rng.random(rows) < 0.01
    lag[late] = rng.integers(0, 2 * DAY_US, size=int(late.sum()))
    names = feature_names(view)
    columns: dict[str, Any] = {KEY: key}
    for name in names[:DOUBLES]:
        columns[name] = rng.normal(size=rows)
    for name in names[DOUBLES : DOUBLES + FLOATS]:
        columns[name] = rng.normal(size=rows).astype(np.float32)
    for name in names[DOUBLES + FLOATS :]:
        columns[name] = rng.integers(0, 100_000, size=rows)
    columns["event_time"] = pa.array(event).cast(_MOMENT)
    columns["created_time"] = pa.array(event + lag).cast(_MOMENT)
    return pa.table(columns, schema=_schema(view))
