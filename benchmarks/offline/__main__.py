"""Measures training sets and materialization, and writes reports/bench-offline.json.

    python -m benchmarks.offline [--quick] [--rounds N] [--part NAME]...

On one machine and the same Parquet files, each run in a process of its own:

- ``retrieval``: 100,000 and 1,000,000 requests against four views of ten features and 1,000,000
  rows each, by Feast's DuckDB store, Feast's default store (at the smaller size only: it does not
  survive the larger one), a plain DuckDB as-of join and a Polars one as limits, and Tallystick's
  store under each of its clocks. Medians of N rounds, in which all engines take
  turns; Feast's, being slow, run once.
- ``growth``: 100,000 requests against one view of 1, 2, 4 and 8 million rows.
- ``large``: 10,000,000 requests against 50,000,000 rows, with a memory limit of 2 GB.
- ``materialize``: 1,000,000 entities of one view brought online; 400,000 of them by Feast's stores.
- ``incremental``: a history of 50,000,000 narrow rows brought online, then 0.1% as many new ones.

``ratio_vs_feast_duckdb`` compares runs of one size in this run; peak memory is the process's, with
everything that it has imported.

``--quick`` takes a few minutes and writes the same report from histories of a quarter as many rows,
and fewer still in the ``large`` and ``incremental`` parts: for a comparison of two versions of the
code, not for the figures of the documentation.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.harness import as_json, options, run, step
from benchmarks.offline.history import ROWS_PER_KEY, write_entity_rows, write_history
from benchmarks.offline.incremental import measure_incremental
from benchmarks.offline.joining_engines import ENGINES
from benchmarks.offline.materialize import measure_materialize
from benchmarks.wide_views import VIEWS

FULL: Final = {
    "rounds": 3,
    "rows": 1_000_000,
    "large_requests": 10_000_000,
    "large_rows": 50_000_000,
    "large_memory": "2GB",
    "entities": 1_000_000,
    "feast_entities": 400_000,
    "history_rows": 50_000_000,
}
QUICK: Final = {
    "rounds": 2,
    "rows": 250_000,
    "large_requests": 1_000_000,
    "large_rows": 5_000_000,
    "large_memory": "500MB",
    "entities": 250_000,
    "feast_entities": 50_000,
    "history_rows": 2_000_000,
}
REQUESTS: Final = (100_000, 1_000_000)
SLOW: Final = ("feast_duckdb", "feast_default")
OURS: Final = tuple(name for name in ENGINES if name.startswith("tallystick"))
GROWTH: Final = (1, 2, 4, 8)
PARTS: Final = ("retrieval", "growth", "large", "materialize", "incremental")


def main() -> None:
    """Measure, write the report, print it."""
    chosen = options("offline", __doc__, full=FULL, quick=QUICK, parts=PARTS)
    run(partial(measure, chosen), chosen.out, shown=as_json)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts; give the report."""
    content: dict[str, Any] = {"plan": {"rounds": chosen.rounds, "parts": chosen.part}}
    with tempfile.TemporaryDirectory(prefix="bench-offline-") as name:
        folder = Path(name)
        if "retrieval" in chosen.part:
            content |= _retrieval(folder, chosen)
        if "growth" in chosen.part:
            content["growth"] = _growth(folder, chosen)
        if "large" in chosen.part:
            content["large"] = _large(folder, chosen)
        if "materialize" in chosen.part:
            engines = {"tallystick": chosen.entities, "feast": chosen.feast_entities}
            content["materialize_rows_per_s"] = measure_materialize(folder, engines)
        if "incremental" in chosen.part:
            content["incremental"] = measure_incremental(
                folder, rows=chosen.history_rows, memory_limit=chosen.large_memory
            )
    return content


def _retrieval(folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    views = [folder / f"view_{view}.parquet" for view in range(VIEWS)]
    for view, path in enumerate(views):
        write_history(path, view=view, rows=chosen.rows)
    runs: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    for size in REQUESTS:
        entity_rows = folder / f"entity_rows_{size}.parquet"
        write_entity_rows(entity_rows, rows=size, keys=chosen.rows // ROWS_PER_KEY)
        for number in range(chosen.rounds):
            for engine in ENGINES:
                if (engine in SLOW and number) or (
                    engine == "feast_default" and size > REQUESTS[0]
                ):
                    continue
                runs[engine, size].append(_join(engine, views, entity_rows))
    found: dict[str, Any] = {"seconds": {}, "peak_mb": {}, "ratio_vs_feast_duckdb": {}}
    for (engine, size), of_cell in runs.items():
        for figure in ("seconds", "peak_mb"):
            value = round(median(each[figure] for each in of_cell), 3)
            found[figure].setdefault(engine, {})[str(size)] = value
    feast = found["seconds"]["feast_duckdb"]
    for engine in OURS:
        found["ratio_vs_feast_duckdb"][engine.removeprefix("tallystick_")] = {
            size: round(feast[size] / seconds, 1)
            for size, seconds in found["seconds"][engine].items()
        }
    return found


def _growth(folder: Path, chosen: argparse.Namespace) -> list[dict[str, float]]:
    entity_rows = folder / "entity_rows_growth.parquet"
    write_entity_rows(entity_rows, rows=REQUESTS[0], keys=chosen.rows // ROWS_PER_KEY)
    found = []
    for times in GROWTH:
        view, rows = folder / f"growth_{times}.parquet", times * chosen.rows
        write_history(view, view=0, rows=rows)
        runs = [_join("tallystick_knowledge", [view], entity_rows) for _ in range(chosen.rounds)]
        view.unlink()
        found.append({"rows": rows, "seconds": round(median(each["seconds"] for each in runs), 3)})
    return found


def _large(folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    entity_rows, view = folder / "entity_rows_large.parquet", folder / "large.parquet"
    write_entity_rows(
        entity_rows, rows=chosen.large_requests, keys=chosen.large_rows // ROWS_PER_KEY
    )
    write_history(view, view=0, rows=chosen.large_rows)
    more = ("--memory-limit", chosen.large_memory, "--out", str(folder / "large_answer.parquet"))
    taken = _join("tallystick_knowledge", [view], entity_rows, *more)
    return {name: round(value, 1) for name, value in taken.items()}


def _join(engine: str, views: Sequence[Path], entity_rows: Path, *more: str) -> dict[str, float]:
    print(f"{engine} {entity_rows.stem}", end=" ", flush=True)
    files = ("--entity-rows", str(entity_rows), "--views", *map(str, views))
    found = step("benchmarks.offline.joining_engines", engine, *files, *more)
    print(f"{found['seconds']:.2f} s, {found['peak_mb']:.0f} MB", flush=True)
    return found


if __name__ == "__main__":
    main()
