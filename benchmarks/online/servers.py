"""Processes that are started here, each on its core, and ended here whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from redis import Redis
from redis.exceptions import RedisError

from tallystick.online_store.embedded_redis import server_program

ROOT: Final = Path(__file__).parents[2]
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


class FailedError(Exception):
    """A process did not do what it was started for; the message has the end of its log."""


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
                raise FailedError(self.told(f"ended with {self._process.returncode}"))
            if time.monotonic() > give_up:
                raise FailedError(self.told(f"was not ready after {START_S:.0f} s"))
            time.sleep(0.05)

    def wait(self) -> None:
        """Wait until it ends by itself.

        Raises:
            FailedError: It ended with anything but 0, or did not end in time.
        """
        try:
            code = self._process.wait(COMMAND_S)
        except subprocess.TimeoutExpired as error:
            raise FailedError(self.told(f"was not done after {COMMAND_S:.0f} s")) from error
        if code:
            raise FailedError(self.told(f"ended with {code}"))

    def told(self, what: str) -> str:
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


@contextmanager
def running(server: Server) -> Iterator[Server]:
    """End a server at the end of a block."""
    try:
        yield server
    finally:
        server.stop()


def run_together(commands: Mapping[str, Sequence[str]], *, logs: Path) -> None:
    """Run commands that end by themselves, at the same time.

    Args:
        commands: Name for people → command line.
        logs: Folder for what they print.

    Raises:
        FailedError: One ended with anything but 0, or did not end in time; the others are ended.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running(
                    Server(
                        name,
                        command,
                        core=cores[place % len(cores)],
                        log=logs / f"{name.replace(' ', '-')}.log",
                    )
                )
            )
            for place, (name, command) in enumerate(commands.items())
        ]
        for server in servers:
            server.wait()


def core_busy_s(core: int) -> float:
    """CPU seconds that a core has spent on anything, since the machine started."""
    for line in Path("/proc/stat").read_text().splitlines():
        name, *spent = line.split()
        if name == f"cpu{core}":
            return (sum(map(int, spent[:_GUEST])) - sum(int(spent[at]) for at in _IDLE)) / (
                _TICKS_PER_S
            )
    raise FailedError(f"The system tells nothing about core {core}.")


def free_port() -> int:
    """A port that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def redis_command(port: int, folder: Path) -> list[str]:
    """The embedded Redis on a TCP port; nothing goes to disk: this is not about writing."""
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
    }
    return [
        str(server_program()),
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]


def redis_answers(port: int) -> bool:
    """Whether a Redis answers on a port."""
    client = Redis(host="127.0.0.1", port=port, socket_timeout=1.0)
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False
    finally:
        client.close()


def http_answers(url: str) -> bool:
    """Whether a GET of a page succeeds."""
    try:
        return httpx.get(url, timeout=5.0).is_success
    except httpx.TransportError:
        return False
