"""Measures the prediction log and writes reports/bench-log.json.

    python -m benchmarks.log [--quick] [--requests N] [--rounds N] [--records N]

On one machine, one Redis and one repo, one core for the server that answers (the client and Redis
have another), the predictions of ``make bench-online`` for one entity each, with logging off, fast
(the default) and durable (``TALLYSTICK_LOG_DURABLE``):

- ``rps``: eight clients, each waiting for its answer;
- ``p50_ms``, ``p99_ms``: Poisson arrivals at the same rate for all three, 60% of what the slowest
  of them reached in the round; latency counts from the moment at which a request should have been
  sent.

The three take turns in every round; figures are medians over rounds. ``fast_cost`` is the median
over rounds of 1 - fast/off, and of the difference of the 99th percentiles in ms.

Then, in processes of their own, records of this model's kind: bytes of each in a segment and in
Parquet, and how long it takes to check and to compact those of a worker that was killed.

``--quick`` takes a few minutes and writes the same report from fewer requests and records: for a
comparison of two versions of the code, not for the figures of the documentation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop
from benchmarks.harness import FailedError, as_json, options, rotated, run, step
from benchmarks.online.answering_engines import TALLYSTICK_PREDICT
from benchmarks.online.cells import quantile_ms
from benchmarks.online.installation import champion
from benchmarks.online.load_client import Budget, Taken, Target, closed_loop, open_loop
from benchmarks.online.rounds import OPEN_SHARE
from benchmarks.online.serving_repo import MODEL, write_repos
from benchmarks.processes import Cores, start, start_redis

from tallystick.server_process import free_port, http_answers, tally_command

FULL: Final = {"requests": 20_000, "rounds": 5, "records": 1_000_000}
QUICK: Final = {"requests": 5_000, "rounds": 3, "records": 300_000}
ENTITIES: Final = 10_000
CLIENTS: Final = 8
POOL: Final = 64
MODES: Final = {
    "off": {"TALLYSTICK_LOG_SHARE": "0"},
    "fast": {},
    "durable": {"TALLYSTICK_LOG_DURABLE": "true"},
}
Cells = dict[str, dict[str, list[float]]]
"""Figure → mode → one value a round."""


def main() -> None:
    """Measure, write the report, print it."""
    chosen = options("log", __doc__, full=FULL, quick=QUICK)
    run(partial(measure, chosen), chosen.out, shown=as_json)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure serving with each kind of logging, then the log itself; give the report."""
    with tempfile.TemporaryDirectory(prefix="bench-log-") as name:
        folder = Path(name)
        with ExitStack() as stack:
            served = _served(stack, folder, chosen)
        return {
            "plan": {"requests_per_cell": chosen.requests, "rounds": chosen.rounds},
            **served,
            **_records(folder, chosen.records),
        }


def _served(stack: ExitStack, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    cores = Cores.of_machine()
    redis_port = start_redis(stack, "redis", folder, core=cores.client)
    repo = write_repos(folder, entities=ENTITIES, redis_port=redis_port)["tally"]
    champion(repo)
    targets = {}
    for mode, environment in MODES.items():
        port = free_port()
        start(
            stack,
            mode,
            tally_command(repo, "serve", "--port", str(port)),
            folder=folder,
            core=cores.server,
            ready=partial(http_answers, f"http://127.0.0.1:{port}/ready"),
            # Its own core has the compactor in production; here there is none left.
            environment={**environment, "TALLYSTICK_LOG_COMPACT_S": "0"},
        )
        requests = TALLYSTICK_PREDICT.requests(1, entities=ENTITIES)
        targets[mode] = Target(port, requests, TALLYSTICK_PREDICT.check(1))
    os.sched_setaffinity(0, {cores.client})
    cells = uvloop.run(_rounds(targets, chosen.requests, chosen.rounds))
    os.sched_setaffinity(0, {cores.server, cores.client})
    return _figures(cells)


async def _rounds(targets: dict[str, Target], requests: int, rounds: int) -> Cells:
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        order = rotated(list(targets), number)
        for mode in order:
            await closed_loop(targets[mode], clients=CLIENTS, budget=Budget(requests // 20))
            taken = await closed_loop(targets[mode], clients=CLIENTS, budget=Budget(requests))
            _check(mode, taken)
            cells["rps"][mode].append(len(taken.latencies_ns) / taken.seconds)
        rate_per_s = OPEN_SHARE * min(cells["rps"][mode][-1] for mode in order)
        for mode in order:
            taken = await open_loop(
                targets[mode], rate_per_s=rate_per_s, requests=requests, pool=POOL, seed=number
            )
            _check(mode, taken)
            cells["p50_ms"][mode].append(quantile_ms(taken.latencies_ns, 0.5))
            cells["p99_ms"][mode].append(quantile_ms(taken.latencies_ns, 0.99))
            shown = {figure: round(cells[figure][mode][-1], 3) for figure in cells}
            print(f"{number + 1} {mode:8} {shown}, the open loop at {rate_per_s:.0f}/s", flush=True)
            await asyncio.sleep(0.2)
    return cells


def _figures(cells: Cells) -> dict[str, Any]:
    def pairs(figure: str) -> list[tuple[float, float]]:
        return list(zip(cells[figure]["off"], cells[figure]["fast"], strict=True))

    lost = [1 - fast / off for off, fast in pairs("rps")]
    later = [fast - off for off, fast in pairs("p99_ms")]
    return {
        **{
            figure: {mode: round(median(cells[figure][mode]), 3) for mode in MODES}
            for figure in cells
        },
        "fast_cost": {"throughput": round(median(lost), 4), "p99_ms": round(median(later), 3)},
        "rounds": {
            figure: {mode: [round(value, 3) for value in cells[figure][mode]] for mode in MODES}
            for figure in cells
        },
    }


def _check(mode: str, taken: Taken) -> None:
    if taken.errors:
        raise FailedError(f"Logging {mode}: wrong answers: {taken.errors.most_common(3)}")


def _records(folder: Path, records: int) -> dict[str, Any]:
    models = folder / "tally" / ".tallystick" / "models" / MODEL
    (contract,) = models.glob("*/contract.json")
    found: dict[str, Any] = {}
    for name in ("write", "check", "compact"):
        arguments = (name, folder / "records", contract, str(records))
        found |= step("benchmarks.log.log_records", *arguments)
    return found


if __name__ == "__main__":
    main()
