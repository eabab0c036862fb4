"""The compactor beside a server: a process of its own, so that it takes no request's time."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

_AGAIN_S: Final = 5.0
_STOP_S: Final = 30.0


@contextmanager
def compacting(repo: Path, *, every_s: float) -> Iterator[None]:
    """Have a repo's log compacted while the block runs; once more when it has ended.

    Args:
        repo: Folder of ``feature_store.yaml``.
        every_s: Seconds between compactions; 0 for none at all.
    """
    if not every_s:
        yield
        return
    stopping = threading.Event()
    thread = threading.Thread(
        target=_keep_running, args=(repo, every_s, stopping), name="compactor", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _keep_running(repo: Path, every_s: float, stopping: threading.Event) -> None:
    command = [sys.executable, "-m", "tallystick", "--repo", str(repo), "log", "compact"]
    while not stopping.is_set():
        # It ends with the pipe, and so with this process, however that dies.
        process = subprocess.Popen(  # noqa: S603 our own program
            [*command, "--every", str(every_s)], stdin=subprocess.PIPE, start_new_session=True
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
            logger.error("The compactor of the log ended with %d; it is started again.", code)
            stopping.wait(_AGAIN_S)
