"""The folder of a replay: taken by one at a time, emptied only of what a replay made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tallystick.errors import InputError
from tallystick.storage.locks import file_lock

LOCK = ".replay.lock"
STATE = "state"
CLOCK = "clock"
OURS = {LOCK, STATE, "summary.json", "performance.png", "parity.png", "server.log"}


@contextmanager
def taken(out: Path) -> Iterator[Path]:
    """Take a folder for a replay, emptied of an earlier one, and give its new state folder.

    A server that an earlier replay left behind, because it was killed, is stopped first.

    Raises:
        InputError: The folder holds something else, or another replay runs in it; nothing is
            changed.
    """
    _check(out)
    with file_lock(out / LOCK, timeout_s=0) as is_acquired:
        if not is_acquired:
            raise InputError(
                f"Another replay is running in {out}: wait for it, or name another folder."
            )
        _empty(out)
        state = out.resolve() / STATE
        state.mkdir()
        yield state


def _check(out: Path) -> None:
    """Refuse a folder that holds what no replay made."""
    if not out.exists():
        return
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in OURS)
    state = out / STATE
    if state.is_dir() and any(state.iterdir()) and not (state / CLOCK).is_file():
        others.append(STATE)
    if others:
        raise InputError(
            f"{out} holds files that no replay made ({', '.join(others[:3])}); name another folder."
        )


def _empty(out: Path) -> None:
    from tallystick.online_store import embedded_redis

    embedded_redis.stop(out / STATE)
    for name in OURS - {LOCK, STATE}:
        (out / name).unlink(missing_ok=True)
    if (out / STATE).exists():
        shutil.rmtree(out / STATE)
