"""Several workers behind one address: processes that share a listening socket and Redis.

The supervisor starts the workers, restarts a worker that ends, and forwards signals. Each worker
also listens at an address of its own, the shared port plus its number, where its metrics are
scraped: any worker may answer at the shared address.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Final

from tallystick.errors import StateError
from tallystick.server_process import tally_command

logger = logging.getLogger(__name__)

_SETTLED_S: Final = 60.0
"""A worker that ran this long has started well."""
_FAILURES_MAX: Final = 3
"""Failed starts of a worker in a row after which the supervisor gives up."""
_POLL_S: Final = 0.1
_GOOD_CODES: Final = (0, -signal.SIGTERM)
"""Exit codes of a clean end; SIGTERM ends a worker that still loads."""


class Supervisor:
    """The workers of one address.

    Args:
        repo: Folder of ``feature_store.yaml``.
        listener: The socket that they share; it listens already.
        count: Number of workers.
        stop_s: Seconds that they have to end after a stop signal.
    """

    def __init__(self, repo: Path, listener: socket.socket, *, count: int, stop_s: float) -> None:
        self._repo = repo
        self._listener = listener
        self._stop_s = stop_s
        self._workers: list[subprocess.Popen[bytes] | None] = [None] * count
        self._started = [0.0] * count
        self._failures = [0] * count
        self._stopping = threading.Event()

    def run(self) -> None:
        """Keep the workers running until SIGTERM or SIGINT; forward SIGUSR1.

        Raises:
            StateError: A worker does not start, or ended with an error.
        """
        before = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, lambda *_: self._stopping.set()),
                (signal.SIGINT, lambda *_: self._stopping.set()),
                (signal.SIGUSR1, lambda *_: self._send(signal.SIGUSR1)),
            )
        }
        try:
            while not self._stopping.is_set():
                self._start_missing()
                self._stopping.wait(_POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            codes = self._end()
        if bad := [code for code in codes if code not in _GOOD_CODES]:
            raise StateError(
                f"{len(bad)} of {len(codes)} workers ended with an error; the lines above say why."
            )

    def _start_missing(self) -> None:
        """Start every worker that does not run."""
        for index, worker in enumerate(self._workers):
            if worker is not None and worker.poll() is None:
                continue
            if worker is not None:
                self._count_failure(index, worker.returncode)
            self._started[index] = time.monotonic()
            self._workers[index] = self._start(index + 1)

    def _count_failure(self, index: int, code: int) -> None:
        lived_s = time.monotonic() - self._started[index]
        self._failures[index] = 0 if lived_s > _SETTLED_S else self._failures[index] + 1
        logger.error("Worker %d ended with %d after %.1f s.", index + 1, code, lived_s)
        if self._failures[index] >= _FAILURES_MAX:
            raise StateError(
                f"Worker {index + 1} did not start {_FAILURES_MAX} times; the lines above say why."
            )

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        shared = self._listener.fileno()
        # The worker ends when its standard input closes, and so with this process.
        return subprocess.Popen(  # noqa: S603 our own program
            tally_command(self._repo, "serve", "--worker", str(shared), str(number)),
            stdin=subprocess.PIPE,
            pass_fds=[shared],
        )

    def _send(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker is not None and worker.poll() is None:
                worker.send_signal(number)

    def _end(self) -> list[int]:
        """Stop all workers, kill them if they do not end in time, and return their exit codes."""
        self._send(signal.SIGTERM)
        give_up = time.monotonic() + self._stop_s
        codes = []
        for worker in self._workers:
            if worker is None:
                continue
            try:
                codes.append(worker.wait(max(0.0, give_up - time.monotonic())))
            except subprocess.TimeoutExpired:
                worker.kill()
                codes.append(worker.wait())
            if worker.stdin is not None:
                worker.stdin.close()
        return codes
