"""An HTTP client that costs little: ready-made requests, one connection after another, no tasks.

Closed loops wait for each answer before the next request. The open loop sends at moments drawn
beforehand, whatever became of earlier requests, and counts latency from the *intended* moment: a
server that stalls is charged for everyone who would have come meanwhile.

Every answer's status is checked, and that its body has a text as often as it must have.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, cast

from benchmarks.online.precise_timer import Timer
from benchmarks.processes import HOST

STUCK_S: Final = 60.0
"""Seconds without any answer after which a cell is given up."""
_LEAD_NS: Final = 20_000_000
_HEAD_END: Final = b"\r\n\r\n"
_LENGTH: Final = b"\r\ncontent-length:"


@dataclass(frozen=True, slots=True)
class Check:
    """A text that the body of an answer must have ``count`` times."""

    mark: bytes
    count: int


@dataclass(frozen=True, slots=True)
class Target:
    """Requests for a server.

    Attributes:
        port: The server's.
        requests: Bytes of requests, sent in turn.
        check: What every answer must have.
    """

    port: int
    requests: Sequence[bytes]
    check: Check


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a closed loop lasts: as many requests and as many seconds, or ``seconds_max``."""

    requests: int
    seconds: float = 0.0
    seconds_max: float = float("inf")


@dataclass(slots=True)
class Taken:
    """What a loop saw.

    Attributes:
        latencies_ns: One per answer that was right.
        errors: What was wrong → how often.
        seconds: From the first request to the last answer.
        cpu_s: CPU seconds that the client itself took.
        late_ns: Open loop: by how much each request was sent after its moment although a connection
            was free. Part of the latency; the client's own doing.
        waited: Open loop: requests that had to wait for a connection.
    """

    latencies_ns: list[int] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_s: float = 0.0
    late_ns: list[int] = field(default_factory=list)
    waited: int = 0

    @property
    def answers(self) -> int:
        """How many requests came to an end, rightly or wrongly."""
        return len(self.latencies_ns) + self.errors.total()


class StuckError(ConnectionError):
    """No answer came for too long."""


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way."""

    def __init__(self, loop: _Loop) -> None:
        self._loop = loop
        self._buffer = bytearray()
        self._body = self._end = 0
        self.started_ns = 0
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's transports only look like asyncio's.
        self._transport = cast("asyncio.Transport", transport)

    def send(self, request: bytes, started_ns: int) -> None:
        self.started_ns = started_ns
        self.busy = True
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        buffer = self._buffer
        buffer += data
        if not self._end:
            head = buffer.find(_HEAD_END)
            if head < 0:
                return
            self._body = head + len(_HEAD_END)
            try:
                self._end = self._body + _content_length(bytes(buffer[: head + 2]))
            except ConnectionError as failure:
                self._loop.fail(failure)
                return
        if len(buffer) < self._end:
            return
        error = _wrong(buffer, self._body, self._end, self._loop.target.check)
        self._buffer = bytearray()
        self._end = 0
        self.busy = False
        self._loop.answered(self, now_ns, error)

    def connection_lost(self, exc: Exception | None) -> None:
        self._loop.lost(self, exc)


def _content_length(head: bytes) -> int:
    lower = head.lower()
    at = lower.find(_LENGTH)
    if at < 0:
        raise ConnectionError(f"an answer without a length: {head!r}")
    at += len(_LENGTH)
    return int(lower[at : lower.index(b"\r\n", at)])


def _wrong(buffer: bytearray, body: int, end: int, check: Check) -> str | None:
    """What is wrong with an answer, in words; None if nothing is."""
    status = bytes(buffer[9:12])
    if status != b"200":
        return f"status {status.decode(errors='replace')}: {bytes(buffer[body : body + 200])!r}"
    if len(buffer) != end:
        return "more bytes than the answer should have"
    count = buffer.count(check.mark, body)
    if count != check.count:
        return f"{check.mark.decode()} {count} times rather than {check.count}"
    return None


class _Loop:
    """What the loops share: the connections, the requests in turn, the end."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.taken = Taken()
        self._sent = 0
        self._running = asyncio.get_running_loop()
        self._finished: asyncio.Future[None] = self._running.create_future()
        self._connections: list[_Connection] = []

    async def connect(self) -> _Connection:
        _, connection = await self._running.create_connection(
            lambda: _Connection(self), HOST, self.target.port
        )
        self._connections.append(connection)
        return connection

    async def finish(self) -> Taken:
        """Wait for the end, and close the connections.

        Raises:
            OSError: A connection could not be opened, no answer came for :data:`STUCK_S` seconds,
                or something that is not an answer.
        """
        answers, since = 0, time.monotonic()
        try:
            while not self._finished.done():
                await asyncio.wait([self._finished], timeout=1.0)
                if self.taken.answers > answers:
                    answers, since = self.taken.answers, time.monotonic()
                elif time.monotonic() - since > STUCK_S:
                    raise StuckError(f"no answer for {STUCK_S:.0f} s, after {answers} answers")
            self._finished.result()
        finally:
            for connection in self._connections:
                connection.close()
        return self.taken

    def next_request(self) -> bytes:
        requests = self.target.requests
        request = requests[self._sent % len(requests)]
        self._sent += 1
        return request

    def record(self, connection: _Connection, now_ns: int, error: str | None) -> None:
        if error is None:
            self.taken.latencies_ns.append(now_ns - connection.started_ns)
        else:
            self.taken.errors[error] += 1

    def end(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def fail(self, error: Exception) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def answered(self, connection: _Connection, now_ns: int, error: str | None) -> None:
        raise NotImplementedError

    def lost(self, connection: _Connection, exc: Exception | None) -> None:
        raise NotImplementedError


class _Closed(_Loop):
    """Clients that wait for each answer."""

    def __init__(self, target: Target, budget: Budget) -> None:
        super().__init__(target)
        self._budget = budget
        self._active = 0
        self._began_ns = 0

    async def run(self, clients: int) -> Taken:
        connections = [await self.connect() for _ in range(clients)]
        self._active = clients
        self._began_ns = time.monotonic_ns()
        for connection in connections:
            connection.send(self.next_request(), time.monotonic_ns())
        return await self.finish()

    def answered(self, connection: _Connection, now_ns: int, error: str | None) -> None:
        self.record(connection, now_ns, error)
        if self._goes_on(now_ns):
            connection.send(self.next_request(), time.monotonic_ns())
        else:
            self._leave(now_ns)

    def lost(self, connection: _Connection, exc: Exception | None) -> None:
        if connection.busy:
            connection.busy = False
            self.taken.errors[f"connection lost: {exc}"] += 1
            self._leave(time.monotonic_ns())

    def _goes_on(self, now_ns: int) -> bool:
        seconds = (now_ns - self._began_ns) / 1e9
        budget = self._budget
        return seconds < budget.seconds_max and (
            self._sent < budget.requests or seconds < budget.seconds
        )

    def _leave(self, now_ns: int) -> None:
        self._active -= 1
        if not self._active:
            self.taken.seconds = (now_ns - self._began_ns) / 1e9
            self.end()


class _Open(_Loop):
    """Requests at moments drawn beforehand, over a pool of connections used in turn."""

    def __init__(self, target: Target, gaps_ns: Sequence[int]) -> None:
        super().__init__(target)
        self._gaps_ns = gaps_ns
        self._free: deque[_Connection] = deque()
        self._waiting: deque[int] = deque()
        self._timer = Timer()
        self._due_ns = self._began_ns = 0
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self, pool: int) -> Taken:
        try:
            for _ in range(pool):
                self._free.append(await self.connect())
            self._began_ns = time.monotonic_ns() + _LEAD_NS
            self._due_ns = self._began_ns + self._gaps_ns[0]
            self._place = 0
            self._running.add_reader(self._timer.file, self._due)
            self._timer.set(self._due_ns)
            return await self.finish()
        finally:
            self._running.remove_reader(self._timer.file)
            self._timer.close()

    def _due(self) -> None:
        self._timer.clear()
        while self._place < len(self._gaps_ns):
            now_ns = time.monotonic_ns()
            if self._due_ns > now_ns:
                self._timer.set(self._due_ns)
                return
            if self._free:
                self.taken.late_ns.append(now_ns - self._due_ns)
                self._free.popleft().send(self.next_request(), self._due_ns)
            else:
                self.taken.waited += 1
                self._waiting.append(self._due_ns)
            self._place += 1
            if self._place < len(self._gaps_ns):
                self._due_ns += self._gaps_ns[self._place]

    def answered(self, connection: _Connection, now_ns: int, error: str | None) -> None:
        self.record(connection, now_ns, error)
        self._take(connection)
        self._end_if_all_answered(now_ns)

    def lost(self, connection: _Connection, exc: Exception | None) -> None:
        """Replace the connection; a server may close one that was idle, but not one in use."""
        if self._finished.done():
            return
        if connection.busy:
            connection.busy = False
            self.taken.errors[f"connection lost: {exc}"] += 1
            self._end_if_all_answered(time.monotonic_ns())
        elif connection in self._free:
            self._free.remove(connection)
        task = self._running.create_task(self._reopen())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _reopen(self) -> None:
        try:
            connection = await self.connect()
        except OSError as error:
            self.fail(error)
            return
        self._take(connection)

    def _take(self, connection: _Connection) -> None:
        if self._waiting:
            connection.send(self.next_request(), self._waiting.popleft())
        else:
            self._free.append(connection)

    def _end_if_all_answered(self, now_ns: int) -> None:
        if self.taken.answers == len(self._gaps_ns):
            self.taken.seconds = (now_ns - self._began_ns) / 1e9
            self.end()


async def closed_loop(target: Target, *, clients: int, budget: Budget) -> Taken:
    """Send requests over ``clients`` connections, each waiting for its answer."""
    loop = _Closed(target, budget)
    with _measured(loop.taken):
        return await loop.run(clients)


async def open_loop(
    target: Target, *, rate_per_s: float, requests: int, pool: int, seed: int
) -> Taken:
    """Send requests at moments of a Poisson process, ``rate_per_s`` a second on average."""
    chance = random.Random(seed)
    gaps_ns = [round(chance.expovariate(rate_per_s) * 1e9) for _ in range(requests)]
    loop = _Open(target, gaps_ns)
    with _measured(loop.taken):
        return await loop.run(pool)


@contextmanager
def _measured(taken: Taken) -> Iterator[None]:
    """Note the client's CPU time; no garbage collection meanwhile."""
    gc.collect()
    gc.disable()
    before = time.process_time()
    try:
        yield
    finally:
        taken.cpu_s = time.process_time() - before
        gc.enable()
