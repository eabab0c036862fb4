"""The log's compactor beside a server: a process of its own, so that it delays no request."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tallystick.server_process import tally_command

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
_STOP_S: Final = 30.0


@contextmanager
def compacting(repo: Path, *, every_s: float) -> Iterator[None]:
    """Compact a repo's log while the block runs, and once more at its end.

    Args:
        repo: Folder of ``feature_store.yaml``.
        every_s: Seconds between compactions; 0 for none.
    """
    if not every_s:
        yield
        return
    stopping = threading.Event()
    thread = threading.Thread(
        target=_run_compactor, args=(repo, every_s, stopping), name="compactor", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _run_compactor(repo: Path, every_s: float, stopping: threading.Event) -> None:
    command = tally_command(repo, "log", "compact", "--every", str(every_s))
    while not stopping.is_set():
        # It ends when its standard input closes, and so with this process, however that ends.
        process = subprocess.Popen(  # noqa: S603 our own program
            command, stdin=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        while process.poll() is None and not stopping.wait(0.2):
            pass
        process.stdin.close()
        try:
            code = process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        if not stopping.is_set():
            logger.error("The log's compactor ended with exit code %d and is started again.", code)
            stopping.wait(_AGAIN_S)
