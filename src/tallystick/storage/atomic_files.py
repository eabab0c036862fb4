"""Atomic files: written beside their target, synced, then renamed.

An unfinished file is a draft called ``.NAME.ID.tmp``. Its writer holds the draft's lock while it
lives. A folder may belong to a draft, called like it with ``.d`` at the end. The next process that
writes into the same folder removes the drafts whose writers are dead.
"""

from __future__ import annotations

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

from tallystick.storage.locks import abandoned, acquire, is_at

_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_FOLDER: Final = ".d"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; rename it into place when the block succeeds.

    A reader sees the old file or the new one, never a part. Write to the file that is there, do not
    replace it by another one: its lock marks it as in use. The folder is created if it is missing.
    """
    with drafted(path) as (draft, _):
        yield draft


@contextmanager
def drafted(path: Path) -> Iterator[tuple[Path, int]]:
    """As :func:`replacing`, and give the file descriptor that holds the draft's lock as well.

    A duplicate of it (:func:`os.dup`) keeps the lock, now of ``path``, for as long as it is open.
    """
    draft, handle = _new_draft(path)
    try:
        yield draft, handle
        sync(draft)
        draft.replace(path)
        sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Give a new folder beside ``path``, and remove it after the block.

    The folder of a killed process is removed by a later one, see :func:`remove_abandoned`. To
    keep the folder, rename it within the block.
    """
    draft, handle = _new_draft(path)
    folder = _folder_of(draft)
    try:
        folder.mkdir()
        yield folder
    finally:
        _remove(draft)
        os.close(handle)


def remove_abandoned(folder: Path) -> None:
    """Remove the drafts in ``folder`` whose writers are dead.

    Drafts of living writers and of other users stay. On a file system without locks all stay.
    """
    for draft in folder.glob(".*.tmp"):
        if _DRAFT.fullmatch(draft.name):
            with suppress(OSError), abandoned(draft) as handle:
                if handle is not None:
                    _remove(draft)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file's content, or the names in a folder, survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@lru_cache(maxsize=4096)
def _cleaned(folder: Path) -> None:
    """Remove abandoned drafts once per folder and process."""
    remove_abandoned(folder)


def _new_draft(path: Path) -> tuple[Path, int]:
    """A new, empty draft for ``path``, and the descriptor that holds its lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _cleaned(path.parent.absolute())
    while True:
        draft = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        # Some network file systems have no locks. There no draft counts as abandoned.
        with suppress(OSError):
            acquire(handle)
        if is_at(draft, handle):
            return draft, handle
        # Another process removed it as abandoned in the moment before it was locked.
        os.close(handle)


def _remove(draft: Path) -> None:
    """Remove a draft and its folder; the draft last, because the folder is found by it."""
    folder = _folder_of(draft)
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        draft.unlink(missing_ok=True)


def _folder_of(draft: Path) -> Path:
    return draft.with_name(draft.name + _FOLDER)
