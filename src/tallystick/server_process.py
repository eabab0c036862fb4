"""A server in a process of its own: start it, wait until it answers, stop it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self, TypeVar

from tallystick.errors import UnavailableError

_TAIL_LINES: Final = 5
_POLL_S: Final = 0.02
_ANSWER_S: Final = 5.0
_OK: Final = 200
Result = TypeVar("Result")


def wait_until(condition: Callable[[], Result], *, timeout_s: float) -> Result:
    """Call ``condition`` until its result is true, and return the last result.

    The caller handles a timeout: the result is false then.
    """
    give_up = time.monotonic() + timeout_s
    while not (result := condition()) and time.monotonic() < give_up:
        time.sleep(_POLL_S)
    return result


def free_port() -> int:
    """A TCP port of the loopback interface that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def tally_command(repo: Path, *arguments: str) -> list[str]:
    """The command line that runs ``tally`` on a repo with this process's Python."""
    return [sys.executable, "-m", "tallystick", "--repo", str(repo), *arguments]


def when_input_ends(call: Callable[[], None]) -> None:
    """Call a function once the standard input ends, as it does with the process that started this.

    Another thread calls it.
    """

    def watch() -> None:
        # Not through sys.stdin: its lock would be held when the process ends.
        while os.read(0, 1):
            pass
        call()

    threading.Thread(target=watch, name="input-watch", daemon=True).start()


def http_answers(url: str) -> bool:
    """Whether a GET of ``url`` succeeds."""
    try:
        with urllib.request.urlopen(url, timeout=_ANSWER_S) as answer:  # noqa: S310 our own URL
            return bool(answer.status == _OK)
    except OSError:
        return False


class ServerProcess:
    """A server that this process starts and stops; as a context manager it is stopped at the end.

    The server runs in a session of its own, so that Ctrl-C reaches it through this process only.
    Its standard input is a pipe, which closes when this process ends: a server that must not
    outlive this process watches it.

    Args:
        name: The server in error messages.
        command: Its command line.
        log: File that its output is appended to.
        environment: Its environment; default that of this process.
        pass_fds: File descriptors that it inherits.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 the caller's own command
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """The server, started already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    @property
    def pid(self) -> int:
        """Process id; the processes that the server starts are in the session of this id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, None while it runs."""
        return self._process.poll()

    def wait_until(self, is_ready: Callable[[], bool], *, timeout_s: float = 60.0) -> None:
        """Wait until the server is ready; if it does not become ready, kill it.

        Raises:
            UnavailableError: It ended, or was not ready in time; the message has the end of its
                log.
        """
        ready = False
        try:
            ready = wait_until(
                lambda: self.returncode is not None or is_ready(), timeout_s=timeout_s
            )
            ready = ready and self.returncode is None
        finally:
            if not ready:
                what = "not ready in time" if self.returncode is None else "it ended"
                self.kill()
        if not ready:
            raise UnavailableError(self.name, self.described(what))

    def described(self, what: str) -> str:
        """What happened to the server, with the end of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL_LINES:]
        return "\n".join([f"{what}; the end of {self.log}:", *lines])

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; a server that has ended ignores it."""
        self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Wait for its end, and give the exit code.

        Raises:
            UnavailableError: It did not end in time, and was killed.
        """
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(
                self.name, self.described(f"did not end in {timeout_s:g} s")
            ) from error
        finally:
            self.kill()

    def stop(self, *, timeout_s: float = 60.0) -> int:
        """Ask it to end by SIGTERM, wait, and give the exit code.

        Raises:
            UnavailableError: It did not end in time, and was killed.
        """
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it at once, with the processes of its session."""
        if self.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
