"""Values under the event clock from rows that became known only after the request.

Feast's rule counts a row from its event time on. A row that was known later, because it came late,
was corrected, or was made by a backfill, could not have been served. It leaks into a training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tallystick.clock import SECOND_US

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.offline_store.view_read import ViewRead


@dataclass(frozen=True)
class KnownLate:
    """The values of a view that were not known at the time of their request.

    Attributes:
        view: The view's name in the answer.
        values: How many they are.
        median_us: How long after the request their rows became known, in the median, in
            microseconds.
    """

    view: str
    values: int
    median_us: int


def known_late(read: ViewRead, found: pa.Table, request_us: Any) -> list[KnownLate]:
    """The values of an answer that were not known, as a list of one, or of none.

    Args:
        read: How the view was read.
        found: The answer: ``created_us`` and ``too_old`` of the winning rows.
        request_us: The request times, in the same order.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    late = pc.subtract(found["created_us"], request_us)
    is_late = pc.and_(pc.greater(late, 0), pc.invert(pc.fill_null(found["too_old"], True)))
    late = late.filter(pc.fill_null(is_late, False))
    if not len(late):
        return []
    ranked = pc.quantile(late, q=0.5, interpolation="lower")[0]
    assert isinstance(ranked, pa.Scalar)
    return [KnownLate(read.name, len(late) * len(read.columns), ranked.as_py())]


def warning_of(found: Sequence[KnownLate], *, values: int) -> str:
    """What to tell the owner of a training set.

    Args:
        found: The values that were not known, by view.
        values: How many values the answer has.

    >>> print(warning_of([KnownLate("stats", 2, 90_000_000)], values=6))
    2 of 6 values come from rows that became known after the request (view stats, 0:01:30 in the \
median). offline_store.clock: knowledge leaves them out.
    """
    views = ", ".join(
        f"view {each.view}, {timedelta(seconds=each.median_us // SECOND_US)} in the median"
        for each in found
    )
    return (
        f"{sum(each.values for each in found):,} of {values:,} values come from rows that became "
        f"known after the request ({views}). offline_store.clock: knowledge leaves them out."
    )
