"""What one answer is made of: the files of each table, looked up once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tallystick.offline_store.sources.file_source import SourceFiles
    from tallystick.storage.locations import Location


class Snapshots:
    """The version of each table that an answer is made of, however many views read it.

    Safe to share among threads; made anew for each answer.
    """

    def __init__(self) -> None:
        self._found: dict[Location, SourceFiles] = {}
        self._lock = threading.Lock()

    def files(self, location: Location, look_up: Callable[[], SourceFiles]) -> SourceFiles:
        """The files of the table at a location, as of the first call."""
        with self._lock:
            if location not in self._found:
                self._found[location] = look_up()
            return self._found[location]
