"""Files that are whole or absent: written aside, then renamed.

What a writer has under way is a draft: a file beside its target, called ``.NAME.ID.tmp``, on which
the writer holds a lock (``flock``) while it lives. A folder may belong to it, called like the draft
with ``.d`` at the end. The system ends a lock with its holder, however that ends; so the next
process that writes into the same folder knows the drafts that nobody will finish, and removes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_FOLDER: Final = ".d"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place when the block succeeds.

    A reader sees the old file or the new one, never a part. Write to the file that is there, do not
    put another one in its place: a killed writer's file is removed by a later one, see
    :func:`remove_abandoned`. The folder is made if it is missing.
    """
    with drafted(path) as (draft, _):
        yield draft


@contextmanager
def drafted(path: Path) -> Iterator[tuple[Path, int]]:
    """As :func:`replacing`, and give the file descriptor that holds the draft's lock as well.

    A duplicate of it (:func:`os.dup`) keeps the lock, now of ``path``, for as long as it is open.
    """
    draft, handle = _claimed(path)
    try:
        yield draft, handle
        _sync(draft)
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        draft.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside ``path`` for what is needed on the way to it; it goes afterwards.

    What a killed process left in one is removed by a later one, see :func:`remove_abandoned`. To
    keep the folder, rename it within the block.
    """
    draft, handle = _claimed(path)
    folder = _folder_of(draft)
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(draft)
        os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts in ``folder`` whose writers are dead.

    Left alone are those of living writers, those of other users, and all of them where the file
    system has no locks.
    """
    for draft in folder.glob(".*.tmp"):
        if _DRAFT.fullmatch(draft.name):
            with suppress(OSError):
                _remove_if_abandoned(draft)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Have the names in a folder survive a loss of power."""
    _sync(path)


@lru_cache(maxsize=4096)
def _looked_through(folder: Path) -> None:
    """Remove what earlier processes left behind; once per folder, since a log writes often."""
    remove_abandoned(folder)


def _claimed(path: Path) -> tuple[Path, int]:
    """A new, empty draft for ``path``, and the descriptor that holds its lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _looked_through(path.parent.absolute())
    while True:
        draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Some network file systems have no locks: there, no draft counts as abandoned.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(draft, handle):
            return draft, handle
        # Somebody took it for abandoned in the moment before it was locked.
        os.close(handle)


def _remove_if_abandoned(draft: Path) -> None:
    handle = os.open(draft, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(draft, handle):
            _remove(draft)
    finally:
        os.close(handle)


def _remove(draft: Path) -> None:
    """Remove a draft and its folder; the draft last, as by it the folder is found again."""
    folder = _folder_of(draft)
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        draft.unlink(missing_ok=True)


def _folder_of(draft: Path) -> Path:
    return draft.with_name(draft.name + _FOLDER)


def _is_at(path: Path, handle: int) -> bool:
    """Whether an open file is the one at ``path``."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(handle))


def _sync(path: Path) -> None:
    """Have the operating system put a file or folder on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def unheld(path: Path) -> Iterator[int | None]:
    """Take hold of a file by its lock, for the block.

    Args:
        path: The file; its owner holds its lock for as long as it uses it.

    Returns:
        Its descriptor; None if somebody holds it, or it is gone, or goes meanwhile.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        yield None
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            # Who held it before may have moved or removed it.
            yield handle if path.exists() else None
    finally:
        os.close(handle)
