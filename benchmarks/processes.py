"""Processes that benches start, each on its core, and end whatever happens."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.harness import FailedError, command
from redis import Redis
from redis.exceptions import RedisError

from tallystick.online_store.embedded_redis import server_program
from tallystick.server_process import ServerProcess, free_port, tally_command

HOST: Final = "127.0.0.1"
START_S: Final = 120.0
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
# In /proc/stat; what guests take is in the user's time already.
_IDLE: Final = (3, 4)
_GUEST: Final = 8
# What follows the command's name in /proc/PID/stat; the name may have spaces and brackets.
_SESSION, _USER, _SYSTEM = 3, 11, 12


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the server that answers, and that of the client and Redis."""

    server: int
    client: int

    @classmethod
    def of_machine(cls) -> Cores:
        """The first two that this process may use.

        Raises:
            FailedError: There are not two, or the system does not pin processes.
        """
        if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
            raise FailedError("needs Linux and two cores: one for the server, one for the client")
        first, second = sorted(os.sched_getaffinity(0))[:2]
        return cls(server=first, client=second)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """Have what is started meanwhile stay on one core: a process inherits it from its parent."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def cpu_s(server: ServerProcess) -> float:
    """CPU seconds that a server and the processes of its session have taken."""
    total = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[_SESSION]) == server.pid:
                    total += int(fields[_USER]) + int(fields[_SYSTEM])
    return total / _TICKS_PER_S


def start(
    stack: ExitStack,
    name: str,
    words: Sequence[str],
    *,
    folder: Path,
    core: int,
    ready: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> ServerProcess:
    """Start a process that ends with the stack, and wait until it is ready.

    Args:
        stack: Ends it.
        name: For people, and of its log.
        words: Its command line.
        folder: Where its log goes.
        core: The core on which it stays.
        ready: Whether it is ready; None not to wait.
        environment: Variables beside those of this process.

    Raises:
        UnavailableError: It ended, or is not ready in time.
    """
    log = folder / f"{name.replace(' ', '-')}.log"
    with on_core(core):
        server = ServerProcess(
            name, words, log=log, environment={**os.environ, **(environment or {})}
        )
    stack.enter_context(server)
    if ready is not None:
        server.wait_until(ready, timeout_s=START_S)
    return server


def start_redis(stack: ExitStack, name: str, folder: Path, *, core: int) -> int:
    """Start the embedded Redis on a TCP port, without files; give the port."""
    port = free_port()
    options = {"port": port, "bind": HOST, "dir": folder, "save": "", "appendonly": "no"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    words = [str(server_program()), *words]
    start(stack, name, words, folder=folder, core=core, ready=partial(redis_answers, port))
    return port


def feast(repo: Path, *arguments: str) -> list[str]:
    """A command of Feast."""
    return [sys.executable, "-m", "feast.cli.cli", "-c", str(repo), *arguments]


def feast_online(repo: Path) -> float:
    """Apply a repo and bring its rows online by Feast's commands; give the latter's seconds."""
    command(*feast(repo, "apply"))
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    return seconds_of(feast(repo, "materialize", "2020-01-01T00:00:00", now))


def tally_online(repo: Path) -> float:
    """The same by Tallystick's."""
    command(*tally_command(repo, "apply"))
    return seconds_of(tally_command(repo, "materialize"))


def seconds_of(words: Sequence[str]) -> float:
    """Seconds that a command takes, start of the process included."""
    started = time.perf_counter()
    command(*words)
    return time.perf_counter() - started


def core_busy_s(core: int) -> float:
    """CPU seconds that a core has spent on anything, since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *spent = line.split()
        if name == f"cpu{core}":
            idle = sum(int(spent[column]) for column in _IDLE)
            return (sum(map(int, spent[:_GUEST])) - idle) / _TICKS_PER_S
    raise FailedError(f"The system has no figures for core {core}.")


def redis_answers(port: int) -> bool:
    """Whether a Redis answers on a port."""
    try:
        with Redis(host=HOST, port=port, socket_timeout=1.0) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False
