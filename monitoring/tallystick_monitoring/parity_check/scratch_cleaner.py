"""Process that removes the scratch folder of a parity check after its last user has ended.

The check holds the lock of the folder, and so does its server. A cleaner, a process of its own,
waits until the check is gone, then for the lock. Then it stops the folder's Redis and removes all
of it. If the cleaner is killed as well, the next check does that.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tallystick.errors import TallystickError, UnavailableError
from tallystick.online_store import embedded_redis
from tallystick.storage.locks import abandoned, create_locked

PREFIX: Final = "tallystick-parity-"
STATE: Final = "state"
"""Folder of the scratch Redis, and of everything else that Tallystick keeps."""
_LOCK: Final = "in-use.lock"
_WAIT_S: Final = 60.0
_POLL_S: Final = 0.02


def make_folder() -> tuple[Path, int]:
    """A new scratch folder for this user only, and the descriptor that has its lock."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    return folder, create_locked(folder / _LOCK, mode=0o600)


def sockets_of(folder: Path) -> Path:
    """Where the sockets of a scratch folder lie: in it, or in a shorter path if its own is long."""
    return embedded_redis.socket_path(folder / STATE).parent


def remove(folder: Path, *, wait_s: float = 0.0) -> bool:
    """Stop the Redis of a scratch folder and remove the folder, unless it is in use.

    Returns:
        Whether it is gone.

    Raises:
        UnavailableError: Its Redis does not stop.
    """
    give_up = time.monotonic() + wait_s
    while True:
        with abandoned(folder / _LOCK) as handle:
            if handle is not None:
                embedded_redis.stop(folder / STATE)
                shutil.rmtree(sockets_of(folder), ignore_errors=True)
                _remove_all(folder)
        if not folder.exists():
            return True
        if time.monotonic() >= give_up:
            return False
        time.sleep(_POLL_S)


def remove_abandoned() -> None:
    """Remove what killed checks and their killed cleaners left. Other users' folders stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError, TallystickError):
            if folder.stat().st_uid == os.getuid():
                remove(folder)


def _remove_all(folder: Path) -> None:
    """Remove a folder, and its lock last: by the lock a later run finds the rest."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()
    (folder / _LOCK).unlink()
    folder.rmdir()


def main() -> None:
    """Wait until standard input ends, as it does with the check, then remove the folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 1024):
        pass
    try:
        removed = remove(Path(sys.argv[1]), wait_s=_WAIT_S)
    except (OSError, UnavailableError):
        removed = False
    raise SystemExit(0 if removed else 1)


if __name__ == "__main__":
    main()
