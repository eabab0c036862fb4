"""Measures a materialization that has little to bring online, against one that has everything.

    python -m benchmarks.offline.incremental_run [--rows N] [--memory-limit 2GB]

A history of N narrow rows lies in files of a million rows each, with 25 rows for each key, so that
Redis stays small. It is brought online by a first run. Then a file with 0.1% as many rows is added,
and a second run brings these. A third run has nothing to bring. Each run is a process of its own;
its time is that of ``Materializer.run``, and its peak memory that of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.online.installation import QUIET, start_redis
from benchmarks.online.servers import ROOT

START_US: Final = 1_700_000_000_000_000
FILE_ROWS: Final = 1_000_000
ROWS_PER_KEY: Final = 25
NEW_SHARE: Final = 0.001
_DECLARED: Final = """\
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
visits = FeatureView(
    name="visits",
    entities=[user],
    ttl=timedelta(0),
    schema=[
        Field(name="user", dtype=Int64),
        Field(name="amount", dtype=Float32),
        Field(name="clicks", dtype=Int64),
    ],
    source=FileSource(
        name="visits",
        path="data/visits",
        timestamp_field="event_time",
        created_timestamp_column="created_time",
    ),
)
"""
_STORE: Final = """\
project: incremental
provider: local
registry: data/registry.db
offline_store: {{type: tallystick.offline_store.DuckDBOfflineStore, memory_limit: {limit}}}
online_store:
  type: tallystick.online_store.RedisOnlineStore
  connection_string: "127.0.0.1:{port}"
entity_key_serialization_version: 3
"""


def main() -> None:
    """Measure and print the report; or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--repo", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repo is not None:
        print(json.dumps(_measured_run(options.repo)))
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-incremental-")))
        port = start_redis(stack, "redis", folder, core=max(os.sched_getaffinity(0)))
        print(json.dumps(_report(folder, port, options.rows, options.memory_limit), indent=1))


def _report(folder: Path, port: int, rows: int, memory_limit: str) -> dict[str, Any]:
    repo = folder / "repo"
    history = repo / "data" / "visits"
    history.mkdir(parents=True)
    (repo / "feature_store.yaml").write_text(_STORE.format(limit=memory_limit, port=port))
    (repo / "declared.py").write_text(_DECLARED)
    keys = max(1, rows // ROWS_PER_KEY)
    for start in range(0, rows, FILE_ROWS):
        _write_rows(history, start, min(FILE_ROWS, rows - start), keys)
    found: dict[str, Any] = {"rows": rows, "keys": keys, "load_before": os.getloadavg()[0]}
    found["full"] = _run(repo)
    _write_rows(history, rows, int(rows * NEW_SHARE), keys)
    found["new_rows"] = _run(repo)
    found["nothing_new"] = _run(repo)
    found["share_of_full"] = round(found["new_rows"]["seconds"] / found["full"]["seconds"], 4)
    return found


def _write_rows(folder: Path, start: int, count: int, keys: int) -> None:
    """Rows that follow each other by a second, in one file."""
    rng = np.random.default_rng(start)
    moment = pa.timestamp("us", tz="UTC")
    created = START_US + np.arange(start, start + count) * 1_000_000
    event = created - rng.integers(60, 600, count) * 1_000_000
    table = pa.table(
        {
            "user": rng.integers(0, keys, count),
            "amount": rng.normal(size=count).astype(np.float32),
            "clicks": rng.integers(0, 1_000, count),
            "event_time": pa.array(event).cast(moment),
            "created_time": pa.array(created).cast(moment),
        }
    )
    pq.write_table(table, folder / f"rows-{start:012d}.parquet")


def _run(repo: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.offline.incremental_run", "--repo", str(repo)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, **QUIET},
    )
    if done.returncode:
        raise SystemExit(f"A run failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(found, file=sys.stderr, flush=True)
    return found


def _measured_run(path: Path) -> dict[str, float]:
    import resource

    from tallystick.definitions.feature_repo import apply, open_repo
    from tallystick.materialization.materializer import Materializer

    repo = open_repo(path)
    apply(repo)
    materializer = Materializer(repo)
    processor, started = time.process_time(), time.perf_counter()
    (done,) = materializer.run()
    return {
        "seconds": round(time.perf_counter() - started, 2),
        "processor_s": round(time.process_time() - processor, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000),
        "written": done.won,
        "repeated": done.repeated,
        "lost": done.lost,
    }


if __name__ == "__main__":
    main()
