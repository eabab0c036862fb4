"""Histories that are read again and again, kept in memory in the order of their visibility."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import pyarrow as pa

KEPT_BYTES_MAX: Final = 1 << 30
"""Bytes of all kept histories together; the one not read for longest goes first."""


@dataclass(frozen=True)
class KeptHistory:
    """A history sorted by (visibility, source order).

    Attributes:
        rows: Its rows as they are returned.
        visible_us: When each became visible; ascending.
        key: A number per row, the same for rows of one key.
        rank: A number per row that orders rows by key, and within a key as the fold does.
    """

    rows: pa.Table
    visible_us: Any
    key: Any
    rank: Any

    @property
    def bytes_held(self) -> int:
        """Bytes in memory."""
        return int(self.rows.nbytes) + 3 * int(self.visible_us.nbytes)

    def winners(self, *, after_us: int | None, until_us: int) -> pa.Table:
        """The winning row of each key among those that became visible in (after, until]."""
        import numpy as np

        start = 0
        if after_us is not None:
            start = int(np.searchsorted(self.visible_us, after_us, side="right"))
        stop = max(start, int(np.searchsorted(self.visible_us, until_us, side="right")))
        ranked = np.argsort(self.rank[start:stop])
        key = self.key[start:stop][ranked]
        # Sorted by key and rank, the winner of a key is the last before the key changes.
        last = np.ones(len(key), dtype=bool)
        last[:-1] = key[1:] != key[:-1]
        return self.rows.slice(start, stop - start).take(np.sort(ranked[last]))


class KeptHistories:
    """Those of this process, each made anew when its files change."""

    def __init__(self, bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._kept: OrderedDict[Hashable, tuple[Hashable, KeptHistory]] = OrderedDict()
        self._bytes_max = bytes_max
        self._lock = threading.Lock()

    def get(
        self, name: Hashable, signature: Hashable, make: Callable[[], KeptHistory]
    ) -> KeptHistory:
        """The history called ``name``, made if there is none or its signature is another."""
        with self._lock:
            found = self._kept.get(name)
            if found is None or found[0] != signature:
                found = self._kept[name] = (signature, make())
            self._kept.move_to_end(name)
            while len(self._kept) > 1 and self.bytes_held > self._bytes_max:
                self._kept.popitem(last=False)
        return found[1]

    @property
    def bytes_held(self) -> int:
        """Bytes in memory."""
        return sum(history.bytes_held for _, history in self._kept.values())


kept_histories = KeptHistories()
"""Those of this process."""
