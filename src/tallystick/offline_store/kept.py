"""Histories that are read again and again, kept sorted by visibility in the engine's memory."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tallystick.fold import VisibilityClock
from tallystick.offline_store.connection import EngineLimits, connect, run
from tallystick.offline_store.history import History, ViewRead, require_times

KEPT_HISTORIES_MAX: Final = 64
"""Histories kept; the one not read for longest goes first."""


class KeptHistories:
    """Tables made from histories, made anew when their files change."""

    def __init__(self) -> None:
        self._signatures: OrderedDict[tuple[object, str], object] = OrderedDict()
        self._lock = threading.RLock()

    @contextmanager
    def table(
        self,
        history: History,
        read: ViewRead,
        *,
        clock: VisibilityClock,
        config: EngineLimits | None,
    ) -> Iterator[tuple[Any, str]]:
        """A connection and the table that holds ``history``, for as long as the block lasts.

        One block at a time: while a table is read, no other thread replaces it.

        Raises:
            DataError: The history cannot be read, or has rows that the clock cannot place.
        """
        name = "history_" + hashlib.sha256(history.sql.encode()).hexdigest()[:24]
        limits = config and (config.memory_limit, config.threads, config.spill_dir)
        with self._lock:
            connection = connect(config)
            try:
                if self._signatures.get((limits, name)) != history.files.signature:
                    require_times(connection, history, history.sql, read, clock)
                    order = ", ".join(("visible_us", *history.position))
                    run(
                        connection,
                        f"CREATE OR REPLACE TABLE {name} AS "
                        f"SELECT * FROM {history.sql} AS history ORDER BY {order}",
                        what=history.what,
                    )
                    self._signatures[limits, name] = history.files.signature
                self._signatures.move_to_end((limits, name))
                self._drop_oldest(connection, limits)
                yield connection, name
            finally:
                connection.close()

    def _drop_oldest(self, connection: Any, limits: object) -> None:
        """Keep within the bound; each database counts for itself."""
        names = [name for of, name in self._signatures if of == limits]
        for name in names[: max(0, len(names) - KEPT_HISTORIES_MAX)]:
            run(connection, f"DROP TABLE IF EXISTS {name}", what="kept histories")
            del self._signatures[limits, name]


kept_histories = KeptHistories()
"""Those of this process."""
