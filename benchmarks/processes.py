"""Processes that benches start, each on its core, and end whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import httpx
from benchmarks.harness import ROOT, FailedError
from redis import Redis
from redis.exceptions import RedisError

from tallystick.online_store.embedded_redis import server_program

HOST: Final = "127.0.0.1"
START_S: Final = 120.0
STOP_S: Final = 30.0
COMMAND_S: Final = 600.0
TAIL_LINES: Final = 30
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


class Server:
    """A process with everything that it starts in turn.

    Args:
        name: For people.
        command: Its command line.
        core: The core on which it stays.
        log: File for what it prints.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        core: int,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        with on_core(core), log.open("ab") as output:
            # A session of its own: Ctrl-C is for the bench, which ends its children in order.
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
            )

    @property
    def pid(self) -> int:
        """The process that was started; those it started are of its session."""
        return self._process.pid

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready.

        Raises:
            FailedError: It ended, or is not ready in time.
        """
        give_up = time.monotonic() + START_S
        while not ready():
            if self._process.poll() is not None:
                raise FailedError(self.failure(f"ended with {self._process.returncode}"))
            if time.monotonic() > give_up:
                raise FailedError(self.failure(f"was not ready after {START_S:.0f} s"))
            time.sleep(0.05)

    def wait(self) -> None:
        """Wait until it ends by itself.

        Raises:
            FailedError: It ended with anything but 0, or did not end in time.
        """
        try:
            code = self._process.wait(COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise FailedError(self.failure(f"was not done after {COMMAND_S:.0f} s")) from error
        if code:
            raise FailedError(self.failure(f"ended with {code}"))

    def failure(self, what: str) -> str:
        """A sentence about it with the end of its log."""
        lines = self._log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
        return "\n".join([f"{self.name} {what}. The end of its log:", *lines])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself."""
        self._process.send_signal(number)

    def cpu_s(self) -> float:
        """CPU seconds that it and its children have taken."""
        total = 0
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[_SESSION]) == self.pid:
                        total += int(fields[_USER]) + int(fields[_SYSTEM])
        return total / _TICKS_PER_S

    def stop(self) -> None:
        """End it, gently at first, and all of its session."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()


def start(
    stack: ExitStack,
    name: str,
    command: Sequence[str],
    *,
    folder: Path,
    core: int,
    ready: Callable[[], bool] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Start a process that ends with the stack, and wait until it is ready.

    Args:
        stack: Ends it.
        name: For people, and of its log.
        command: Its command line.
        folder: Where its log goes.
        core: The core on which it stays.
        ready: Whether it is ready; None not to wait.
        environment: Variables beside those of this process.

    Raises:
        FailedError: It ended, or is not ready in time.
    """
    log = folder / f"{name.replace(' ', '-')}.log"
    server = Server(name, command, core=core, log=log, environment=environment)
    stack.callback(server.stop)
    if ready is not None:
        server.wait_until(ready)
    return server


def start_redis(stack: ExitStack, name: str, folder: Path, *, core: int) -> int:
    """Start the embedded Redis on a TCP port, without files; give the port."""
    port = free_port()
    options = {"port": port, "bind": HOST, "dir": folder, "save": "", "appendonly": "no"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = [str(server_program()), *words]
    start(stack, name, command, folder=folder, core=core, ready=partial(redis_answers, port))
    return port


def run_together(commands: Mapping[str, Sequence[str]], *, folder: Path) -> None:
    """Run commands that end by themselves, at the same time.

    Args:
        commands: Name for people → command line.
        folder: Where their logs go.

    Raises:
        FailedError: One ended with anything but 0, or did not end in time; the others are ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        servers = [
            start(stack, name, command, folder=folder, core=cores[number % len(cores)])
            for number, (name, command) in enumerate(commands.items())
        ]
        for server in servers:
            server.wait()


def feast(repo: Path, *arguments: str) -> list[str]:
    """A command of Feast."""
    return [sys.executable, "-m", "feast.cli.cli", "-c", str(repo), *arguments]


def tally(repo: Path, *arguments: str) -> list[str]:
    """A command of Tallystick."""
    return [sys.executable, "-m", "tallystick", "--repo", str(repo), *arguments]


def core_busy_s(core: int) -> float:
    """CPU seconds that a core has spent on anything, since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *spent = line.split()
        if name == f"cpu{core}":
            idle = sum(int(spent[column]) for column in _IDLE)
            return (sum(map(int, spent[:_GUEST])) - idle) / _TICKS_PER_S
    raise FailedError(f"The system has no figures for core {core}.")


def free_port() -> int:
    """A port of this machine that is not in use."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def redis_answers(port: int) -> bool:
    """Whether a Redis answers on a port."""
    try:
        with Redis(host=HOST, port=port, socket_timeout=1.0) as client:
            return bool(client.ping())
    except (RedisError, OSError):
        return False


def http_answers(url: str) -> bool:
    """Whether a GET of a page succeeds."""
    try:
        return httpx.get(url, timeout=5.0).is_success
    except httpx.TransportError:
        return False
