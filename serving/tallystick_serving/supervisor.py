"""Several workers behind one address: processes that share a listening socket and Redis, no more.

The crew starts them, starts anew one that dies, and hands signals on. Each worker also listens at
an address of its own, the shared one's port plus its number, where its metrics are read: what is
asked at the shared address is answered by whichever worker comes first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tallystick.errors import StateError

logger = logging.getLogger(__name__)

_SETTLED_S: Final = 60.0
"""A worker that lived as long has started well."""
_FAILURES_MAX: Final = 3
"""Bad starts of a worker in a row after which nobody tries again."""
_POLL_S: Final = 0.1
_WELL: Final = (0, -signal.SIGTERM)
"""A worker that is stopped while it still loads has nothing to end."""
_STDIN: Final = 0


class Crew:
    """The workers of one address.

    Args:
        repo: Folder of ``feature_store.yaml``.
        listener: The socket that they share; it listens already.
        count: How many they are.
        stop_s: Seconds that they have to end after a stop was asked for.
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
        """Keep the workers running until SIGTERM or SIGINT; hand SIGUSR1 on.

        Raises:
            StateError: A worker does not start, or did not end well.
        """
        before = {
            number: signal.signal(number, handler)
            for number, handler in (
                (signal.SIGTERM, lambda *_: self._stopping.set()),
                (signal.SIGINT, lambda *_: self._stopping.set()),
                (signal.SIGUSR1, lambda *_: self._tell(signal.SIGUSR1)),
            )
        }
        try:
            while not self._stopping.is_set():
                self._look()
                self._stopping.wait(_POLL_S)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            codes = self._end()
        if bad := [code for code in codes if code not in _WELL]:
            raise StateError(f"{len(bad)} of {len(codes)} workers did not end well; see above.")

    def _look(self) -> None:
        """Start every worker that does not run."""
        for place, worker in enumerate(self._workers):
            if worker is not None and worker.poll() is None:
                continue
            if worker is not None:
                self._count_failure(place, worker.returncode)
            self._started[place] = time.monotonic()
            self._workers[place] = self._start(place + 1)

    def _count_failure(self, place: int, code: int) -> None:
        lived_s = time.monotonic() - self._started[place]
        self._failures[place] = 0 if lived_s > _SETTLED_S else self._failures[place] + 1
        logger.error("Worker %d ended with %d after %.1f s.", place + 1, code, lived_s)
        if self._failures[place] >= _FAILURES_MAX:
            raise StateError(
                f"Worker {place + 1} did not start {_FAILURES_MAX} times; the lines above say why."
            )

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tallystick", "--repo", str(self._repo), "serve"]
        shared = self._listener.fileno()
        # The pipe ends with this process, however it dies, and the worker with the pipe.
        return subprocess.Popen(  # noqa: S603 our own program
            [*command, "--worker", str(shared), str(number)],
            stdin=subprocess.PIPE,
            pass_fds=[shared],
        )

    def _tell(self, number: signal.Signals) -> None:
        for worker in self._workers:
            if worker is not None and worker.poll() is None:
                worker.send_signal(number)

    def _end(self) -> list[int]:
        """Stop all workers, in the end by force; give their exit codes."""
        self._tell(signal.SIGTERM)
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


def end_with_crew(stop: Callable[[], None]) -> None:
    """In a worker: call ``stop`` once the crew is gone."""

    def watch() -> None:
        # Not through sys.stdin: its lock would be held when the process ends.
        while os.read(_STDIN, 1):
            pass
        stop()

    threading.Thread(target=watch, name="crew-watch", daemon=True).start()
