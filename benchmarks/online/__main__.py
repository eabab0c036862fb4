"""Measures online serving and writes reports/bench-online.json.

    python -m benchmarks.online [--quick] [--requests N] [--rounds N] [--part NAME]...

On one machine, one Redis, the same data and one core for the server that answers (the client and
Redis have another): Feast's own Python server on its own Redis store, plain and precomputed; an
empty FastAPI route; a FastAPI route with a bare MGET; and Tallystick, for features as Feast answers
them and for predictions (on-demand view, boosted trees, logging). Every request is for 1, 10 or
100 random entities of four views of ten features.

A cell is an engine, a number of entities and a loop:

- ``closed_1``, ``closed_8``: one client, or eight, each waiting for its answer;
- ``open_60``: Poisson arrivals at 60% of what ``closed_8`` reached just before; latency counts from
  the moment at which a request should have been sent.

All engines take turns in every round; a cell's figures are medians over rounds, each of which warms
up first. In the report ``rps`` is that of ``closed_8``; ``p50_ms`` and ``p99_ms`` are those of
``open_60``; ``ratio_vs_feast`` is of ``closed_8``, and by loop in ``ratio_vs_feast_by_loop``;
``loops`` has everything. Our cells take N requests over all rounds; the limits a third of it;
Feast's cells, being slow, three seconds and 67 requests a round, or seven seconds.

Before anything is timed, our answers and Feast's precomputed ones are compared with Feast's: names,
values, statuses. Exits with 1 if they differ, if any answer was wrong, or if something did not
start. Parts are the engines, and ``memory``, the bytes of an entity in Redis.

``--quick`` takes a few minutes and writes the same report from fewer requests and entities: for a
comparison of two versions of the code, not for the figures of the documentation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import uvloop
from benchmarks.harness import options, run, step
from benchmarks.online.answering_engines import ENGINES
from benchmarks.online.comparison import compare
from benchmarks.online.installation import install
from benchmarks.online.online_report import report, table
from benchmarks.online.rounds import Plan, Rounds
from benchmarks.processes import Cores, start_redis
from benchmarks.wide_views import FEATURES, VIEWS

FULL: Final = {"requests": 20_000, "rounds": 3, "entities": 10_000}
QUICK: Final = {"requests": 2_400, "entities": 4_000}
PARTS: Final = (*(engine.name for engine in ENGINES), "memory")


def main() -> None:
    """Measure, write the report, print the main figures."""
    chosen = options("online", __doc__, full=FULL, quick=QUICK, parts=PARTS)
    content = run(partial(measure, chosen), chosen.out, shown=table)
    if content["errors"] or not all(content["answers_equal"].values()):
        raise SystemExit("FAILED: answers were wrong or not equal; do not use the report.")


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure all chosen cells; give the report."""
    cores = Cores.of_machine()
    plan = Plan(chosen.requests, chosen.rounds)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-online-")))
        memory = None
        if "memory" in chosen.part:
            print("Measuring memory (about a minute)", flush=True)
            with ExitStack() as alone:
                port = start_redis(alone, "redis for memory", folder, core=cores.client)
                (folder / "memory").mkdir()
                arguments = (str(port), str(chosen.entities), folder / "memory")
                memory = step("benchmarks.online.memory", *arguments)
        print("Making the repos, their rows and the model (about a minute)", flush=True)
        installed = install(stack, folder, entities=chosen.entities, cores=cores)
        answers_equal = compare(installed.ports, entities=chosen.entities)
        rounds = Rounds(installed, plan, entities=chosen.entities)
        os.sched_setaffinity(0, {cores.client})
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(rounds.run([engine for engine in ENGINES if engine.name in chosen.part]))
        return report(
            rounds.cells,
            memory=memory,
            answers_equal=answers_equal,
            log=rounds.log,
            plan={
                "requests_per_cell_of_ours": plan.requests,
                "rounds": plan.rounds,
                "entities_online": chosen.entities,
                "views": VIEWS,
                "features": FEATURES,
                "server_core": cores.server,
                "client_and_redis_core": cores.client,
            },
        )


if __name__ == "__main__":
    main()
