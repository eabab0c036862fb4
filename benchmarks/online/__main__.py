"""Measures online serving and writes reports/bench-online.json.

    python -m benchmarks.online [--quick] [--requests N] [--rounds N] [--engine NAME]...
                                [--no-memory]

On one machine, one Redis, the same data and one core for the server that answers (the client and
Redis have another): Feast's own Python server on its own Redis store, plain and precomputed; an
empty FastAPI route; a FastAPI route with a bare MGET; and Tallystick, for features as Feast answers
them and for predictions (on-demand view, boosted trees, logging). Every request asks for 1, 10 or
100 random entities of four views of ten features.

A cell is an engine, a number of entities and a loop:

- ``closed_1``, ``closed_8``: one client, or eight, each waiting for its answer;
- ``open_60``: Poisson arrivals at 60% of what ``closed_8`` reached just before; latency counts from
  the moment at which a request should have been sent.

All engines take turns in every round; a cell's figures are medians over rounds, each of which warms
up first. In the report ``rps`` is that of ``closed_8``; ``p50_ms`` and ``p99_ms`` are those of
``open_60``; ``ratio_vs_feast`` is of ``closed_8``, and by loop in ``ratio_vs_feast_by_loop``;
``loops`` has everything. Our cells take N requests (default 20,000) over all rounds; the limits a
third of it; Feast's cells, being slow, three seconds and 67 requests a round, or seven seconds.

Before anything is timed, our answers and Feast's precomputed ones are compared with Feast's: names,
values, statuses. Exits with 1 if they differ, if any answer was wrong, or if something did not
start.

``--quick`` takes a few minutes and writes the same report from fewer requests and entities: for a
comparison of two versions of the code, not for the figures of the documentation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from benchmarks.online.bench import Bench, Plan, described
from benchmarks.online.comparison import compare
from benchmarks.online.engines import ENGINES
from benchmarks.online.installation import Cores, install, start_redis
from benchmarks.online.report import report, table
from benchmarks.online.servers import ROOT, FailedError, run_together

FULL = {"requests": 20_000, "rounds": 3, "entities": 10_000}
QUICK = {"requests": 2_400, "rounds": 3, "entities": 4_000}


def main() -> None:
    """Measure, write the report, print the main figures."""
    options = _options()
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise SystemExit("This needs Linux and two cores: one for the server, one for the client.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    load_before = os.getloadavg()[0]
    try:
        content = _measured(options, load_before)
    except FailedError as error:
        raise SystemExit(f"Not measured: {error}") from error
    except KeyboardInterrupt as error:
        raise SystemExit("Stopped; nothing is left behind, and nothing was written.") from error
    content["plan"]["seconds"] = round(time.monotonic() - started)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1))
    print(table(content))
    print(f"{options.out} has the rest; it took {content['plan']['seconds']} s.")
    if content["errors"] or not all(content["answers_equal"].values()):
        raise SystemExit("FAILED: answers were wrong or not equal; the report is not to be used.")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and entities")
    parser.add_argument("--requests", type=int, help="in a cell of ours")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--entities", type=int, help="that have rows")
    parser.add_argument(
        "--engine", action="append", choices=[engine.name for engine in ENGINES], help="only this"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave bytes_per_entity out")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bench-online.json")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _measured(options: argparse.Namespace, load_before: float) -> dict[str, Any]:
    chosen = [engine for engine in ENGINES if not options.engine or engine.name in options.engine]
    plan = Plan(options.requests, options.rounds)
    cores = Cores.of_machine()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-online-")))
        memory = None if options.no_memory else _memory(folder, options.entities)
        print("Making the repos, their rows and the model (about a minute)", flush=True)
        installed = install(stack, folder, entities=options.entities, cores=cores)
        answers_equal = compare(installed.ports, entities=options.entities)
        bench = Bench(installed, plan, entities=options.entities)
        os.sched_setaffinity(0, {cores.client})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bench.run(chosen))
        return report(
            bench.cells,
            memory=memory,
            answers_equal=answers_equal,
            log=bench.log,
            plan={"load_before": load_before, **described(plan, options.entities, installed)},
        )


def _memory(folder: Path, entities: int) -> dict[str, dict[str, float]]:
    """Bytes an entity, measured by a process of its own in a Redis of its own."""
    print("Measuring memory (about a minute)", flush=True)
    out = folder / "memory.json"
    place = folder / "memory"
    place.mkdir()
    with ExitStack() as stack:
        port = start_redis(stack, "redis for memory", folder, core=Cores.of_machine().client)
        command = [
            *(sys.executable, "-m", "benchmarks.online.memory", "--redis-port", str(port)),
            *("--entities", str(entities), "--folder", str(place), "--out", str(out)),
        ]
        run_together({"memory": command}, logs=folder)
    found: dict[str, dict[str, float]] = json.loads(out.read_text())
    return found


if __name__ == "__main__":
    main()
