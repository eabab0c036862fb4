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

``ratio_vs_feast_duckdb`` compares runs of one size in this run; peak memory is the process's, with
everything that it has imported.

``--quick`` takes a few minutes and writes the same report from histories of a quarter as many rows,
and a tenth of them in the ``large`` part: for a comparison of two versions of the code, not for the
figures of the documentation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.offline.engines import ENGINES
from benchmarks.offline.materialize import measure_materialize
from benchmarks.offline.scene import ROWS_PER_KEY, VIEWS, write_history, write_spine

ROOT: Final = Path(__file__).parents[2]
SIZES: Final = (100_000, 1_000_000)
SLOW: Final = ("feast_duckdb", "feast_default")
OURS: Final = tuple(name for name in ENGINES if name.startswith("tallystick"))
GROWTH: Final = (1, 2, 4, 8)
QUIET: Final = {"FEAST_USAGE": "False", "DO_NOT_TRACK": "true"}
PARTS: Final = ("retrieval", "growth", "large", "materialize")
RUN_S: Final = 1_800


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: How often the engines take turns.
        rows: Rows of a view's history.
        large_requests: Requests of the large part.
        large_rows: Rows of its view.
        large_limit: The engine's memory limit there.
        entities: Engine → entities that it brings online.
    """

    rounds: int
    rows: int
    large_requests: int
    large_rows: int
    large_limit: str
    entities: Mapping[str, int]


FULL: Final = Plan(
    rounds=3,
    rows=1_000_000,
    large_requests=10_000_000,
    large_rows=50_000_000,
    large_limit="2GB",
    entities={"tallystick": 1_000_000, "feast": 400_000},
)
QUICK: Final = Plan(
    rounds=2,
    rows=250_000,
    large_requests=1_000_000,
    large_rows=5_000_000,
    large_limit="500MB",
    entities={"tallystick": 250_000, "feast": 50_000},
)


def main() -> None:
    """Measure, write the report, print it."""
    options = _options()
    parts = options.part or PARTS
    plan = QUICK if options.quick else FULL
    plan = replace(plan, rounds=options.rounds or plan.rounds)
    content: dict[str, Any] = {
        "plan": {"rounds": plan.rounds, "parts": list(parts), "load_before": os.getloadavg()[0]}
    }
    with tempfile.TemporaryDirectory(prefix="bench-offline-") as name:
        folder = Path(name)
        if "retrieval" in parts:
            content |= _retrieval(folder, plan)
        if "growth" in parts:
            content["growth"] = _growth(folder, plan)
        if "large" in parts:
            content["large"] = _large(folder, plan)
        if "materialize" in parts:
            content["materialize_rows_per_s"] = measure_materialize(folder, plan.entities)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1))
    print(json.dumps(content, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="shorter histories")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bench-offline.json")
    return parser.parse_args()


def _retrieval(folder: Path, plan: Plan) -> dict[str, Any]:
    views = []
    for view in range(VIEWS):
        views.append(folder / f"view_{view}.parquet")
        write_history(views[-1], view=view, rows=plan.rows)
    taken: dict[tuple[str, int], list[dict[str, float]]] = {}
    for size in SIZES:
        spine = folder / f"spine_{size}.parquet"
        write_spine(spine, rows=size, keys=plan.rows // ROWS_PER_KEY)
        for number in range(plan.rounds):
            for engine in ENGINES:
                if (engine in SLOW and number) or (engine == "feast_default" and size > SIZES[0]):
                    continue
                taken.setdefault((engine, size), []).append(_run(engine, views, spine))
    found: dict[str, Any] = {"seconds": {}, "peak_mb": {}, "ratio_vs_feast_duckdb": {}}
    for (engine, size), runs in taken.items():
        for what in ("seconds", "peak_mb"):
            cell = round(median(run[what] for run in runs), 3)
            found[what].setdefault(engine, {})[str(size)] = cell
    feast = found["seconds"]["feast_duckdb"]
    for engine in OURS:
        found["ratio_vs_feast_duckdb"][engine.removeprefix("tallystick_")] = {
            size: round(feast[size] / seconds, 1)
            for size, seconds in found["seconds"][engine].items()
        }
    return found


def _growth(folder: Path, plan: Plan) -> list[dict[str, float]]:
    spine = folder / "spine_growth.parquet"
    write_spine(spine, rows=SIZES[0], keys=plan.rows // ROWS_PER_KEY)
    found = []
    for times in GROWTH:
        view = folder / f"growth_{times}.parquet"
        write_history(view, view=0, rows=times * plan.rows)
        runs = [_run("tallystick_knowledge", [view], spine) for _ in range(plan.rounds)]
        view.unlink()
        seconds = median(run["seconds"] for run in runs)
        found.append({"rows": times * plan.rows, "seconds": round(seconds, 3)})
    return found


def _large(folder: Path, plan: Plan) -> dict[str, float]:
    spine, view = folder / "spine_large.parquet", folder / "large.parquet"
    write_spine(spine, rows=plan.large_requests, keys=plan.large_rows // ROWS_PER_KEY)
    write_history(view, view=0, rows=plan.large_rows)
    run = _run(
        "tallystick_knowledge",
        [view],
        spine,
        "--memory-limit",
        plan.large_limit,
        "--out",
        str(folder / "large_answer.parquet"),
    )
    return {name: round(value, 1) for name, value in run.items()}


def _run(engine: str, views: Sequence[Path], spine: Path, *more: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.offline.engines", engine, "--spine", str(spine)]
    command += ["--views", *map(str, views), *more]
    print(f"{engine} {spine.stem}", end=" ", flush=True)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=RUN_S,
        env={**os.environ, **QUIET},
    )
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{found['seconds']:.2f} s, {found['peak_mb']:.0f} MB", flush=True)
    return found


if __name__ == "__main__":
    main()
