"""A real server process, as ``tally serve`` starts it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tallystick.errors import UnavailableError

START_S = 60.0
STOP_S = 30.0
WRITING_S = 0.01


class Server:
    """``tally serve`` in a process of its own, on a free port of the loopback interface.

    Args:
        repo: Folder of the Feast repo.
        log: File that takes what the server says.

    Raises:
        UnavailableError: It did not become ready in time.
    """

    def __init__(self, repo: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._client = httpx.Client(base_url=self.url)
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 our own command
                [
                    sys.executable,
                    "-m",
                    "tallystick",
                    "--repo",
                    str(repo),
                    "serve",
                    "--port",
                    str(port),
                ],
                stdout=output,
                stderr=output,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self._process.kill()
            raise

    def flush_log(self, *, expected: int) -> None:
        """Have the server write its prediction log, and wait until it has.

        Args:
            expected: Predictions that it was asked for so far.

        Raises:
            UnavailableError: It did not write them in time.
        """
        self._process.send_signal(signal.SIGUSR1)
        give_up = time.monotonic() + STOP_S
        while time.monotonic() < give_up:
            # Asking costs the server more than the writing does.
            time.sleep(WRITING_S)
            if self._durable() >= expected:
                return
        raise UnavailableError(f"The server at {self.url}", "it did not write its log")

    def _durable(self) -> float:
        """Predictions that the server says are on disk."""
        for line in self._client.get("/metrics").text.splitlines():
            if line.startswith("tallystick_log_durable"):
                return float(line.rsplit(" ", 1)[1])
        return 0.0

    def stop(self) -> None:
        """Stop cleanly: requests are answered, the log is written.

        Raises:
            UnavailableError: It had to be killed.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise UnavailableError(f"The server at {self.url}", "it did not stop") from error

    def _wait_until_ready(self) -> None:
        give_up = time.monotonic() + START_S
        said = "nothing"
        while time.monotonic() < give_up and self._process.poll() is None:
            try:
                answer = httpx.get(f"{self.url}/ready")
                if answer.is_success:
                    return
                said = answer.text
            except httpx.TransportError as error:
                said = str(error)
            time.sleep(0.05)
        raise UnavailableError(f"The server at {self.url}", f"{said}; its log is {self._log}")
