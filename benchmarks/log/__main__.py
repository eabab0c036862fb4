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
import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import uvloop
from benchmarks.online.bench import OPEN_SHARE
from benchmarks.online.client import Budget, Taken, Target, closed_loop, open_loop
from benchmarks.online.engines import TALLYSTICK_PREDICT
from benchmarks.online.installation import QUIET, Cores, start_redis
from benchmarks.online.scene import MODEL, write_repos
from benchmarks.online.servers import (
    ROOT,
    FailedError,
    Server,
    free_port,
    http_answers,
    run_together,
    running,
)

ENTITIES: Final = 10_000
CLIENTS: Final = 8
POOL: Final = 64
FULL: Final = {"requests": 20_000, "rounds": 5, "records": 1_000_000}
QUICK: Final = {"requests": 5_000, "rounds": 3, "records": 300_000}
MODES: Final = {
    "off": {"TALLYSTICK_LOG_SHARE": "0"},
    "fast": {},
    "durable": {"TALLYSTICK_LOG_DURABLE": "true"},
}


def main() -> None:
    """Measure, write the report, print it."""
    options = _options()
    content: dict[str, Any] = {
        "plan": {
            "requests_per_cell": options.requests,
            "rounds": options.rounds,
            "load_before": os.getloadavg()[0],
        }
    }
    with tempfile.TemporaryDirectory(prefix="bench-log-") as name, ExitStack() as stack:
        try:
            content |= _served(stack, Path(name), options.requests, options.rounds)
        except FailedError as error:
            raise SystemExit(str(error)) from error
        content |= _records(Path(name), options.records)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1))
    print(json.dumps(content, indent=1))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer requests and records")
    parser.add_argument("--requests", type=int, help="in each cell and round")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--records", type=int)
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bench-log.json")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _served(stack: ExitStack, folder: Path, requests: int, rounds: int) -> dict[str, Any]:
    os.environ.update(QUIET)
    cores = Cores.of_machine()
    redis_port = start_redis(stack, "redis", folder, core=cores.client)
    repo = write_repos(folder, entities=ENTITIES, redis_port=redis_port)["tally"]
    tally = [sys.executable, "-m", "tallystick", "--repo", str(repo)]
    for name, *arguments in (["apply"], ["materialize"], ["train", MODEL, "--promote"]):
        run_together({f"tally {name}": [*tally, name, *arguments]}, logs=folder)
    targets = {}
    for mode, environment in MODES.items():
        port = free_port()
        server = Server(
            mode,
            [*tally, "serve", "--port", str(port)],
            core=cores.server,
            log=folder / f"{mode}.log",
            # Its own core has the compactor in production; here there is none left.
            environment={**environment, "TALLYSTICK_LOG_COMPACT_S": "0"},
        )
        stack.enter_context(running(server))
        server.wait_until(partial(http_answers, f"http://127.0.0.1:{port}/ready"))
        targets[mode] = Target(
            port=port,
            requests=TALLYSTICK_PREDICT.requests(1, entities=ENTITIES),
            check=TALLYSTICK_PREDICT.check(1),
        )
    os.sched_setaffinity(0, {cores.client})
    found = uvloop.run(_rounds(targets, requests, rounds))
    os.sched_setaffinity(0, {cores.server, cores.client})
    return found


async def _rounds(targets: dict[str, Target], requests: int, rounds: int) -> dict[str, Any]:
    cells: dict[str, dict[str, list[float]]] = {
        figure: {mode: [] for mode in targets} for figure in ("rps", "p50_ms", "p99_ms")
    }
    modes = list(targets)
    for number in range(rounds):
        order = modes[number % len(modes) :] + modes[: number % len(modes)]
        for mode in order:
            await closed_loop(targets[mode], clients=CLIENTS, budget=Budget(requests // 20))
            taken = await closed_loop(targets[mode], clients=CLIENTS, budget=Budget(requests))
            _right(mode, taken)
            cells["rps"][mode].append(len(taken.latencies_ns) / taken.seconds)
        rate_per_s = OPEN_SHARE * min(cells["rps"][mode][-1] for mode in modes)
        for mode in order:
            taken = await open_loop(
                targets[mode], rate_per_s=rate_per_s, requests=requests, pool=POOL, seed=number
            )
            _right(mode, taken)
            latencies = sorted(taken.latencies_ns)
            cells["p50_ms"][mode].append(latencies[len(latencies) // 2] / 1e6)
            cells["p99_ms"][mode].append(latencies[int(0.99 * len(latencies))] / 1e6)
            print(
                f"{number + 1} {mode:8} {cells['rps'][mode][-1]:8.0f}/s, at {rate_per_s:.0f}/s "
                f"p50 {cells['p50_ms'][mode][-1]:.3f} p99 {cells['p99_ms'][mode][-1]:.3f} ms",
                flush=True,
            )
            await asyncio.sleep(0.2)
    pairs = {
        figure: list(zip(each["off"], each["fast"], strict=True)) for figure, each in cells.items()
    }
    lost = [1 - fast / off for off, fast in pairs["rps"]]
    later = [fast - off for off, fast in pairs["p99_ms"]]
    return {
        **{
            figure: {mode: round(median(values), 3) for mode, values in of_modes.items()}
            for figure, of_modes in cells.items()
        },
        "fast_cost": {"throughput": round(median(lost), 4), "p99_ms": round(median(later), 3)},
        "rounds": {
            figure: {mode: [round(value, 3) for value in values] for mode, values in each.items()}
            for figure, each in cells.items()
        },
    }


def _right(mode: str, taken: Taken) -> None:
    if taken.errors:
        raise FailedError(f"Logging {mode}: wrong answers: {taken.errors.most_common(3)}")


def _records(folder: Path, records: int) -> dict[str, Any]:
    repo = folder / "tally"
    state = folder / "records"
    (bundle,) = (repo / ".tallystick" / "models" / MODEL).glob("*/contract.json")
    found: dict[str, Any] = {}
    for step in ("write", "check", "compact"):
        command = [sys.executable, "-m", "benchmarks.log.records", step, str(state), str(bundle)]
        done = subprocess.run(
            [*command, str(records)], capture_output=True, text=True, check=False, cwd=ROOT
        )
        if step != "write" and done.returncode:
            raise SystemExit(f"{step} failed:\n{done.stderr[-2000:]}")
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
