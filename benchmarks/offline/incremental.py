"""One run of materialization, in a process of its own.

    python -m benchmarks.offline.incremental REPO

Prints its seconds, its peak memory and what became of the rows, as JSON. A history of narrow rows
lies in files of a million rows each, with 25 rows for each key, so that Redis stays small. A first
run brings all of it online. Then a file with 0.1% as many rows is added, and a second run brings
these. A third run has nothing to bring.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.harness import peak_mb, step
from benchmarks.processes import Cores, start_redis
from benchmarks.wide_views import (
    KEY,
    TALLYSTICK_STORES,
    wide_columns,
    write_columns,
    write_repo,
)

START_US: Final = 1_700_000_000_000_000
FILE_ROWS: Final = 1_000_000
ROWS_PER_KEY: Final = 25
NEW_SHARE: Final = 0.001
TYPES: Final = ("float", "integer")
_DEFINITIONS: Final = """\
from datetime import timedelta

from benchmarks.wide_views import account, wide_view

view_0 = wide_view(0, "data/rows", ttl=timedelta(0), types=("float", "integer"))
"""


def measure_incremental(folder: Path, *, rows: int, memory_limit: str) -> dict[str, Any]:
    """Measure the three runs.

    Args:
        folder: Folder of all data.
        rows: Rows of the history.
        memory_limit: Of the offline engine, for example ``2GB``.
    """
    offline, online = TALLYSTICK_STORES
    with ExitStack() as stack:
        port = start_redis(stack, "redis-incremental", folder, core=Cores.of_machine().client)
        repo = write_repo(
            folder / "repo_incremental",
            _DEFINITIONS,
            stores=(f"{offline}, memory_limit: {memory_limit}", online),
            address=f"127.0.0.1:{port}",
            project="bench_incremental",
        )
        history = repo / "data" / "rows"
        history.mkdir()
        keys = max(1, rows // ROWS_PER_KEY)
        for start in range(0, rows, FILE_ROWS):
            _write_rows(history, start, min(FILE_ROWS, rows - start), keys)
        found: dict[str, Any] = {"rows": rows, "keys": keys, "full": _run(repo)}
        _write_rows(history, rows, int(rows * NEW_SHARE), keys)
        found |= {"new_rows": _run(repo), "nothing_new": _run(repo)}
    found["share_of_full"] = round(found["new_rows"]["seconds"] / found["full"]["seconds"], 4)
    return found


def main() -> None:
    """Do one run."""
    from tallystick.definitions.feature_repo import apply, open_repo
    from tallystick.materialization.materializer import Materializer

    repo = open_repo(Path(sys.argv[1]))
    apply(repo)
    materializer = Materializer(repo)
    processor, started = time.process_time(), time.perf_counter()
    (done,) = materializer.run()
    found = {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "peak_mb": round(peak_mb()),
        "written": done.won,
        "repeated": done.repeated,
        "lost": done.lost,
    }
    print(json.dumps(found))


def _run(repo: Path) -> dict[str, Any]:
    found = step("benchmarks.offline.incremental", repo)
    print(f"incremental {found}", flush=True)
    return found


def _write_rows(folder: Path, start: int, count: int, keys: int) -> None:
    """Rows that follow each other by a second, in one file."""
    rng = np.random.default_rng(start)
    created = START_US + np.arange(start, start + count) * 1_000_000
    columns = {
        KEY: rng.integers(0, keys, count),
        **wide_columns(rng, 0, count, TYPES),
        "event_time": created - rng.integers(60, 600, count) * 1_000_000,
        "created_time": created,
    }
    write_columns(folder / f"rows-{start:012d}.parquet", columns)


if __name__ == "__main__":
    main()
