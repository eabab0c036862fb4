"""Every cell, round by round. Engines take turns, so that a slow minute hits all of them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import httpx
from benchmarks.harness import FailedError, rotated
from benchmarks.online.answering_engines import SIZES, TALLYSTICK_PREDICT, Engine
from benchmarks.online.cells import CLOSED, HEADLINE, OPEN, Round, quantile_ms
from benchmarks.online.installation import Installed
from benchmarks.online.load_client import Budget, Taken, Target, closed_loop, open_loop
from benchmarks.processes import HOST, Cores, core_busy_s, cpu_s

FULL_REQUESTS: Final = 20_000
"""Requests of a cell of ours with which Feast's cells have all their time."""
OPEN_SHARE: Final = 0.6
LIMIT_SHARE: Final = 1 / 3
FEAST_REQUESTS: Final = 67
FEAST_S: Final = 3.0
FEAST_S_MAX: Final = 7.0
WARM_UP_SHARE: Final = 0.05
POOL_MIN, POOL_MAX = 8, 64
"""Connections of an open loop, used in turn; one for each request a second, within these.

The most is less than the requests that a server takes at once before it refuses any: after a stall
the rest waits at the client, which costs as much, since latency counts from the intended start.
"""
CLIENTS: Final = {"closed_1": 1, "closed_8": 8}
DRAIN_S: Final = 60.0
_LEDGER: Final = ("accepted", "durable", "dropped", "in_flight")


@dataclass(frozen=True, slots=True)
class Plan:
    """How many requests are sent.

    Attributes:
        requests: Requests in a cell of ours, over all rounds.
        rounds: How often the engines take turns.
    """

    requests: int
    rounds: int

    def budget(self, engine: Engine) -> Budget:
        """How long a closed loop of one round lasts."""
        requests = -(-self.requests // self.rounds)
        if engine.ours:
            return Budget(requests)
        if engine.server != "feast":
            return Budget(max(20, round(requests * LIMIT_SHARE)))
        share = min(1.0, self.requests / FULL_REQUESTS)
        return Budget(
            max(10, round(FEAST_REQUESTS * share)), FEAST_S * share, max(1.0, FEAST_S_MAX * share)
        )

    def open_requests(self, engine: Engine, rate_per_s: float) -> int:
        """How many requests an open loop of one round has."""
        budget = self.budget(engine)
        requests = max(budget.requests, budget.seconds * rate_per_s)
        return max(5, round(min(requests, budget.seconds_max * rate_per_s)))

    def warm_up(self, engine: Engine) -> Budget:
        """Requests before a loop that are not measured."""
        budget = self.budget(engine)
        return Budget(max(5, round(budget.requests * WARM_UP_SHARE)))


class Rounds:
    """Sends requests to all engines in turn.

    Args:
        installed: The servers.
        plan: How many requests are sent.
        entities: How many have rows.

    Attributes:
        cells: (engine, entities, loop) → rounds.
        log: The prediction log's ledger, as last read.
    """

    def __init__(self, installed: Installed, plan: Plan, *, entities: int) -> None:
        self.cells: dict[tuple[str, int, str], list[Round]] = defaultdict(list)
        self.log: dict[str, float] = {}
        self._installed = installed
        self._plan = plan
        self._entities = entities

    async def run(self, engines: Sequence[Engine]) -> None:
        """Measure every cell.

        Raises:
            FailedError: A server stopped answering.
        """
        for number in range(self._plan.rounds):
            for size in SIZES:
                for engine in rotated(engines, number):
                    await self._run_engine(engine, size, number)

    async def _run_engine(self, engine: Engine, size: int, number: int) -> None:
        target = Target(
            port=self._installed.ports[engine.server],
            requests=engine.requests(size, entities=self._entities),
            check=engine.check(size),
        )
        for loop in CLOSED:
            await self._answered(
                engine,
                closed_loop(target, clients=CLIENTS[loop], budget=self._plan.warm_up(engine)),
            )
            await self._measure(
                (engine, size, loop, number),
                closed_loop(target, clients=CLIENTS[loop], budget=self._plan.budget(engine)),
            )
        # This round's: if the machine has become slower, an earlier one is more than it can do.
        reached = self.cells[engine.name, size, HEADLINE][-1].taken
        rate_per_s = max(0.5, OPEN_SHARE * len(reached.latencies_ns) / reached.seconds)
        await self._measure(
            (engine, size, OPEN, number),
            open_loop(
                target,
                rate_per_s=rate_per_s,
                requests=self._plan.open_requests(engine, rate_per_s),
                pool=max(POOL_MIN, min(POOL_MAX, round(rate_per_s))),
                seed=number,
            ),
            rate_per_s=rate_per_s,
        )
        if engine is TALLYSTICK_PREDICT:
            await self._drain_log()

    async def _measure(
        self,
        cell: tuple[Engine, int, str, int],
        loop: Coroutine[Any, Any, Taken],
        rate_per_s: float | None = None,
    ) -> None:
        engine, size, name, number = cell
        server, cores = self._installed.servers[engine.server], self._installed.cores

        server_before, cores_before = cpu_s(server), _busy_s(cores)
        taken = await self._answered(engine, loop)
        # The cores first: to look for the server's processes takes a while.
        spent = [now - then for now, then in zip(_busy_s(cores), cores_before, strict=True)]
        server_cpu_s = cpu_s(server) - server_before
        busy = [seconds / spent[0] for seconds in spent[1:]]
        self.cells[engine.name, size, name].append(
            Round(taken, server_cpu_s, busy[0], busy[1], rate_per_s)
        )
        shares = [
            f"{share:>4.0%}"
            for share in (taken.cpu_s / taken.seconds, server_cpu_s / taken.seconds, *busy)
        ]
        print(
            f"{number + 1} {engine.name:20}{size:>4}  {name:9}"
            f"{len(taken.latencies_ns) / taken.seconds:>9.1f}/s"
            f"  p50 {quantile_ms(taken.latencies_ns, 0.5):>8.3f}"
            f"  p99 {quantile_ms(taken.latencies_ns, 0.99):>8.3f} ms"
            f"  cpu: client {shares[0]}, server {shares[1]}, cores {shares[2]} {shares[3]}",
            flush=True,
        )
        for error, count in taken.errors.most_common(3):
            print(f"    WRONG {count} times: {error}", flush=True)

    async def _answered(self, engine: Engine, loop: Coroutine[Any, Any, Taken]) -> Taken:
        try:
            return await loop
        except OSError as error:
            server = self._installed.servers[engine.server]
            raise FailedError(server.described(f"did not answer as it should ({error})")) from error

    async def _drain_log(self) -> None:
        """Have the log written and removed: the next engine shall not pay for it, nor the disk."""
        self._installed.servers["tally"].signal(signal.SIGUSR1)
        port = self._installed.ports["tally"]
        async with httpx.AsyncClient() as client, asyncio.timeout(DRAIN_S):
            while True:
                self.log = _ledger((await client.get(f"http://{HOST}:{port}/metrics")).text)
                if not self.log.get("in_flight"):
                    break
                await asyncio.sleep(0.1)
        for file in (self._installed.tally_repo / ".tallystick" / "wal").rglob("*.sealed"):
            with suppress(FileNotFoundError):
                file.unlink()


def _busy_s(cores: Cores) -> tuple[float, float, float]:
    """The time, and for how long the server's and the client's core have been busy."""
    return time.monotonic(), core_busy_s(cores.server), core_busy_s(cores.client)


def _ledger(metrics: str) -> dict[str, float]:
    """The prediction log's counters, out of Prometheus' text."""
    found: dict[str, float] = {}
    for line in metrics.splitlines():
        name, _, value = line.rpartition(" ")
        if name.startswith("tallystick_log_") and 'log="predictions"' in name:
            kind = name.removeprefix("tallystick_log_").partition("{")[0].removesuffix("_total")
            if kind in _LEDGER:
                found[kind] = found.get(kind, 0.0) + float(value)
    return found
