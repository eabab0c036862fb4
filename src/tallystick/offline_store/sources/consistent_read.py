"""Reads of sources that other writers may replace at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from tallystick.errors import DataError
from tallystick.offline_store.sources.source_files import SourceFiles
from tallystick.storage.locations import store_errors

Opened = TypeVar("Opened")
Answer = TypeVar("Answer")

ATTEMPTS: Final = 3
"""How often a source is read before the read fails."""


def read_steadily(
    opened: Callable[[], Opened],
    files: Callable[[Opened], Sequence[SourceFiles]],
    read: Callable[[Opened], Answer],
) -> Answer:
    """Open sources and read them, and repeat it if one of their files was replaced in between.

    A file is opened more than once: for its footer, for the join, for the values. So
    an answer counts only if every file is the same after it as it was when its source was opened.

    Args:
        opened: Opens the sources.
        files: What was opened → its files.
        read: What was opened → the answer.

    Raises:
        DataError: A source cannot be read, or changes again and again.
    """
    changed: list[str] = []
    for _ in range(ATTEMPTS):
        sources = opened()
        try:
            answer = read(sources)
        except DataError:
            changed = changed_files(files(sources))
            if not changed:
                raise
        else:
            changed = changed_files(files(sources))
            if not changed:
                return answer
    raise DataError(
        f"{changed[0]} was replaced while it was being read, {ATTEMPTS} times in a row.",
        hint="Wait until its writer has finished, or let the writer add files to a folder, which "
        "may be read at any time.",
    )


def changed_files(sources: Sequence[SourceFiles]) -> list[str]:
    """Files that are not as they were when their source was opened."""
    found = []
    for source in sources:
        if source.are_fixed:
            continue
        paths = [path for path, _, _ in source.signature]
        with store_errors(source.label):
            infos = source.store.filesystem.get_file_info(paths)
        now = [(info.path, info.mtime_ns or 0, info.size) for info in infos]
        found += [was[0] for was, each in zip(source.signature, now, strict=True) if was != each]
    return found
