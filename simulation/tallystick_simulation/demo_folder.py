"""The folder of a replay: one replay at a time, and only a replay's files are removed."""

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
RESULTS = {"summary.json", "audit.json", "performance.png", "parity.png", "server.log"}


@contextmanager
def claim(out: Path) -> Iterator[Path]:
    """Claim a folder for a replay, remove an earlier replay, and yield the new state folder.

    An embedded Redis that a killed replay left running is stopped first.

    Raises:
        InputError: The folder holds files of another origin, or another replay runs in it; nothing
            is changed.
    """
    _check(out)
    with file_lock(out / LOCK, timeout_s=0) as is_free:
        if not is_free:
            raise InputError(
                f"Another replay is running in {out}: wait for it, or name another folder."
            )
        _empty(out)
        state = out.resolve() / STATE
        state.mkdir()
        yield state


def _check(out: Path) -> None:
    if not out.exists():
        return
    known = {LOCK, STATE, *RESULTS}
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in known)
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
    for name in RESULTS:
        (out / name).unlink(missing_ok=True)
    if (out / STATE).exists():
        shutil.rmtree(out / STATE)
