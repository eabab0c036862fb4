"""Measures the parts that have to be quick, on the reference scenario, and writes a report.

    python benchmarks/loop.py [--rounds N]

Writes reports/bench-loop.json and prints the same. Figures are medians over rounds, after one round
to warm up; for machines that are shared, compare figures of one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson

from tallystick.clock import SimulatedClock
from tallystick.definitions.contract import REQUEST_TIME

ROOT = Path(__file__).parents[1]
REPO = ROOT / "feature_repo"
MODEL = "late_arrival"
TRAIN_UNTIL = datetime(2013, 3, 1, tzinfo=UTC)
SPINE_ROWS = 250_000
REQUESTS = 2_000
DAY_S = 86_400
ROWS_AT_ONCE = (1, 10, 100)


def main() -> None:
    """Run every measurement in a state folder of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    from tallystick.settings import override

    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder)
        override(state_dir=state, clock_file=state / "clock")
        clock = SimulatedClock(state / "clock", start=TRAIN_UNTIL)
        from tallystick.online_store import embedded_redis

        try:
            figures = measure(rounds, clock)
        finally:
            embedded_redis.stop(state)
    report = {"machine": machine(), "rounds": rounds, **figures}
    target = ROOT / "reports" / "bench-loop.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=1))
    print(json.dumps(report, indent=1))


def measure(rounds: int, clock: SimulatedClock) -> dict[str, Any]:
    """Offline, materialization, serving, audit; in this order, since each needs the one before."""
    from tallystick.definitions.feature_repo import apply, open_repo
    from tallystick_training.train_command import train

    repo = open_repo(REPO)
    apply(repo)
    train(repo, MODEL, end=TRAIN_UNTIL, promote=True)
    return {
        "training_set": bench_training_set(repo, rounds),
        "materialize": bench_materialize(repo, rounds),
        "serve": bench_serve(repo, rounds, clock),
        "audit": bench_audit(repo, rounds),
    }


def bench_training_set(repo: Any, rounds: int) -> dict[str, float]:
    """Point-in-time features of many requests, from all views, under the knowledge clock."""
    from tallystick.point_in_time.rule import VisibilityClock
    from tallystick.retrieval.model_features import stored_values
    from tallystick.retrieval.source_rows import read_source

    model = repo.model(MODEL)
    inputs = repo.inputs(model)
    columns = {key.name: key.name for key in inputs.entity_keys}
    columns[REQUEST_TIME] = model.requests.timestamp_field
    spine = read_source(repo, model.requests, what="requests", columns=columns).slice(0, SPINE_ROWS)

    def run() -> None:
        stored_values(repo, inputs.views, spine, clock=VisibilityClock.KNOWLEDGE)

    seconds = median_s(run, rounds)
    return {
        "rows": spine.num_rows,
        "views": len(inputs.views),
        "seconds": seconds,
        "rows_per_s": spine.num_rows / seconds,
    }


def bench_materialize(repo: Any, rounds: int) -> dict[str, float]:
    """Everything known by the end of February, written to an online store that has it already."""
    from tallystick.materialization.materialize import Materializer

    materializer = Materializer(repo)
    written = materializer.run(until=TRAIN_UNTIL, again=True)
    rows = sum(view.won + view.lost + view.repeated for view in written)
    seconds = median_s(lambda: materializer.run(until=TRAIN_UNTIL, again=True), rounds)
    return {"rows": rows, "seconds": seconds, "rows_per_s": rows / seconds}


def bench_serve(repo: Any, rounds: int, clock: SimulatedClock) -> dict[str, dict[str, float]]:
    """Predictions over HTTP, logging on, one client that waits for each answer."""
    from tallystick_simulation.replay_history import Requests

    model = repo.model(MODEL)
    requests = Requests(repo, model, repo.inputs(model))
    instances = [
        instance for _, instance in requests.between(TRAIN_UNTIL, TRAIN_UNTIL + timedelta(days=3))
    ]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["-m", "tallystick", "--repo", str(REPO), "serve", "--port", str(port)]
    server = subprocess.Popen([sys.executable, *command], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_ready(url)
        with httpx.Client(base_url=url) as client:
            return {
                f"{rows}_rows": bench_route(client, instances, rows, rounds, clock)
                for rows in ROWS_AT_ONCE
            }
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        finally:
            server.kill()


def bench_route(
    client: httpx.Client,
    instances: list[dict[str, Any]],
    rows: int,
    rounds: int,
    clock: SimulatedClock,
) -> dict[str, float]:
    """Latency and throughput of requests of ``rows`` instances each."""
    bodies = [
        orjson.dumps({"instances": instances[start : start + rows]})
        for start in range(0, len(instances) - rows, rows)
    ]
    count = max(200, REQUESTS // rows)
    latencies_ms: list[float] = []
    rates = []
    for measured in range(rounds + 1):
        started = time.perf_counter()
        for number in range(count):
            # Time passes, as it does for requests that come over a day.
            clock.set(TRAIN_UNTIL + timedelta(seconds=number * DAY_S / count))
            before = time.perf_counter()
            answer = client.post(
                f"/v1/models/{MODEL}:predict",
                content=bodies[number % len(bodies)],
                headers={"Content-Type": "application/json"},
            )
            answer.raise_for_status()
            if measured:
                latencies_ms.append((time.perf_counter() - before) * 1e3)
        if measured:
            rates.append(count / (time.perf_counter() - started))
    cuts = statistics.quantiles(latencies_ms, n=100)
    return {
        "requests_per_s": statistics.median(rates),
        "predictions_per_s": statistics.median(rates) * rows,
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
    }


def bench_audit(repo: Any, rounds: int) -> dict[str, float]:
    """Every logged value recomputed and compared."""
    from tallystick_monitoring.audit.audit_run import audit

    start, end = TRAIN_UNTIL, TRAIN_UNTIL + timedelta(days=1)
    values = audit(repo, MODEL, start=start, end=end).report.values
    seconds = median_s(lambda: audit(repo, MODEL, start=start, end=end, again=True), rounds)
    return {"values": values, "seconds": seconds, "values_per_s": values / seconds}


def median_s(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call, after one to warm up."""
    run()
    seconds = []
    for _ in range(rounds):
        before = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - before)
    return statistics.median(seconds)


def wait_until_ready(url: str) -> None:
    """Wait for a server, at most a minute."""
    give_up = time.monotonic() + 60
    while time.monotonic() < give_up:
        try:
            if httpx.get(f"{url}/ready").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"The server at {url} did not become ready.")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
    }


if __name__ == "__main__":
    main()
