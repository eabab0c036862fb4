"""File locks: exclusive between processes, and released by the system when their holder ends.

A lock belongs to an open file, so a child process or a duplicate of the descriptor keeps it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.05


def acquire(handle: int) -> None:
    """Wait for the lock of an open file."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def try_acquire(handle: int) -> bool:
    """Take the lock of an open file unless another process or thread holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def file_lock(path: Path, *, timeout_s: float | None = None) -> Iterator[bool]:
    """Hold the lock of a file for the block.

    Args:
        path: The file; it and its folder are created if they are missing.
        timeout_s: Seconds to wait for the current holder; None waits until it is done.

    Yields:
        Whether the lock was acquired in time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if timeout_s is None:
            acquire(handle)
            yield True
            return
        deadline = time.monotonic() + timeout_s
        while not (is_acquired := try_acquire(handle)) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        yield is_acquired
    finally:
        os.close(handle)


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Be the only writer of a file for the block; the lock is a hidden file beside it."""
    with file_lock(path.with_name(f".{path.name}.lock")):
        yield


@contextmanager
def abandoned(path: Path) -> Iterator[int | None]:
    """Take over a file that its owner locked for as long as it lived.

    Args:
        path: The file.

    Yields:
        Its locked descriptor; None if its owner lives, or if the file was moved or removed.
    """
    try:
        handle = _opened(path)
    except FileNotFoundError:
        yield None
        return
    try:
        yield handle if try_acquire(handle) and is_at(path, handle) else None
    finally:
        os.close(handle)


def create_locked(path: Path, *, mode: int = 0o644) -> int:
    """Create a file for appending that is locked before it has its name.

    So a process that looks for abandoned files by that name never finds it unlocked.

    Returns:
        Its descriptor, which holds the lock.
    """
    draft = path.with_name(f".{path.name}")
    handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, mode)
    try:
        acquire(handle)
        draft.rename(path)
    except BaseException:
        os.close(handle)
        draft.unlink(missing_ok=True)
        raise
    return handle


def is_at(path: Path, handle: int) -> bool:
    """Whether an open file is the one at ``path``."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _opened(path: Path) -> int:
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | flags)  # NFS locks only what is open for writing
    except PermissionError:
        return os.open(path, os.O_RDONLY | flags)
