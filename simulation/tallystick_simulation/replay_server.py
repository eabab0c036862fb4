"""``tally serve`` in a process of its own, for a replay."""

from __future__ import annotations

import signal
from pathlib import Path

import httpx

from tallystick.errors import UnavailableError
from tallystick.server_process import (
    ServerProcess,
    free_port,
    http_answers,
    tally_command,
    wait_until,
)

FLUSH_S = 30.0


class ReplayServer(ServerProcess):
    """The server that a replay sends its requests to, on a free port of the loopback interface.

    Args:
        repo: Folder of the Feast repo.
        log: File that the server's output is appended to.

    Raises:
        UnavailableError: It did not become ready in time.

    Attributes:
        url: Its address.
    """

    def __init__(self, repo: Path, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        # Made before the server starts: a signal that comes later must find nothing but a server
        # that the caller stops.
        self._client = httpx.Client(base_url=self.url)
        super().__init__(
            f"The server at {self.url}", tally_command(repo, "serve", "--port", str(port)), log=log
        )
        self.wait_until(lambda: http_answers(f"{self.url}/ready"))

    def flush_log(self, *, predictions: int) -> None:
        """Have the server write its prediction log, and wait until it has.

        Args:
            predictions: How many the log must hold.

        Raises:
            UnavailableError: It did not write them in time.
        """
        self.signal(signal.SIGUSR1)
        if not wait_until(lambda: self._durable() >= predictions, timeout_s=FLUSH_S):
            raise UnavailableError(self.name, f"it did not write its log in {FLUSH_S:g} s")

    def _durable(self) -> float:
        """Predictions on disk, by the server's metrics."""
        for line in self._client.get("/metrics").text.splitlines():
            if line.startswith('tallystick_log_durable_total{log="predictions"}'):
                return float(line.rsplit(" ", 1)[1])
        return 0.0
