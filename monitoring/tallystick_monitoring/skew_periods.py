"""Periods in which a view was served wrongly, from the mismatches of an audit.

Requests are counted in windows of at least an hour and twenty requests. A window is affected when
at least five of its requests, and five in a hundred, had a wrong value of the view for one cause.
Affected windows that follow each other are one period.

Some delay on the way online is usual and not an incident. A materialization lag counts only where
the view is stale (:mod:`tallystick_monitoring.freshness`). A correction counts only after it has
been known for longer than the interval of materialization.

Windows are coarse, so a period reaches beyond them. A lag begins with the last write that was seen
before it and ends with the next one. Any other period includes what was wrong in the windows beside
it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import SECOND_US
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.log_reader import LogPart
from tallystick.records.causes import Cause
from tallystick.records.record_store import TAINTED_SHARE, AffectedKeys, KeyValue
from tallystick_monitoring.audit.findings import ENTITY
from tallystick_monitoring.freshness import MATERIALIZED_EVERY_S, REQUESTS_MIN, freshness
from tallystick_monitoring.log_columns import NO_TIME, Bools, Int64s, is_value, microseconds

WINDOW_S_MIN = 3_600
"""Shortest window, in seconds."""

WINDOW_REQUESTS_MIN = 20
"""Fewest requests of a window, unless there is only one."""

AFFECTED_MIN = 5
"""Fewest requests that make a window affected."""

KEYS_MAX = 1_000
"""Entities that an incident lists. Of more it has only the first and the last."""


@dataclass(frozen=True)
class SkewPeriod:
    """Windows that follow each other, all affected.

    Attributes:
        view: View that was wrong.
        cause: Why.
        affected_us: Request times of the affected requests, ascending.
        values_us: Request times of the wrong values, ascending.
        share: Share of the requests of its windows that were affected.
        clean_before: Whether a window before it was not affected.
        begin_us: Begin of its first window.
        is_ongoing: Whether it lasts until the last window.
        keys: Entities of the affected requests.
    """

    view: str
    cause: Cause
    affected_us: Int64s
    values_us: Int64s
    share: float
    clean_before: bool
    begin_us: int
    is_ongoing: bool
    keys: AffectedKeys | None


class Windows:
    """The requests of an audit, in windows.

    Args:
        findings: What the audit found.
        parts: The log of the same requests, at least one part. Of it request times, and status
            and times of the views are looked at.
        contract: What training saw, to recognize a stale view.
    """

    def __init__(
        self, findings: pa.Table, parts: Sequence[LogPart], contract: ModelContract
    ) -> None:
        self._findings = findings
        self._contract = contract
        self._affected = _affected(findings)
        tables = [part.table.select(windowed_columns(part.contract)) for part in parts]
        self._log = pa.concat_tables(tables, promote_options="default").sort_by("request_time")
        self.request_us = microseconds(self._log["request_time"])
        self.edges = _edges(self.request_us)
        self._total = np.histogram(self.request_us, bins=self.edges)[0]

    def periods(self) -> Iterator[SkewPeriod]:
        """All periods, by view and cause, then by time."""
        for view, cause in sorted(self._affected):
            affected_us, values_us = self._affected[view, cause]
            count = self._count(view, cause)
            bad = (count >= AFFECTED_MIN) & ~self._quiet(view, cause)
            for first, last in _runs(bad):
                span = slice(first, last + 1)
                low, high = self._reach(view, cause, affected_us, first, last)
                yield SkewPeriod(
                    view=view,
                    cause=cause,
                    affected_us=_inside(affected_us, low, high),
                    values_us=_inside(values_us, low, high),
                    share=float(count[span].sum() / self._total[span].sum()),
                    clean_before=first > 0,
                    begin_us=int(self.edges[first]),
                    is_ongoing=last + 1 == len(bad),
                    keys=self._keys(view, cause, low, high),
                )

    def _keys(self, view: str, cause: Cause, low: int, high: int) -> AffectedKeys | None:
        """The entities that a view's wrong values in [low, high) were requested for."""
        names = next(
            (use.request_keys for use in self._contract.views if use.name == view),
            tuple(key.name for key in self._contract.entity_keys),
        )
        if not names or any(f"{ENTITY}{name}" not in self._findings.column_names for name in names):
            return None
        times = microseconds(self._findings["request_time"])
        mine = _is_mine(self._findings, view, cause) & (times >= low) & (times < high)
        columns = [f"{ENTITY}{name}" for name in names]
        few = self._findings.select(columns).filter(pa.array(mine))
        found = few.group_by(columns).aggregate([]).select(columns).to_pylist()
        return affected_keys(names, {tuple(row.values()) for row in found})

    def _reach(
        self, view: str, cause: Cause, affected_us: Int64s, first: int, last: int
    ) -> tuple[int, int]:
        """From when (included) to when (excluded) a period in windows first to last reaches."""
        low, high = int(self.edges[first]), int(self.edges[last + 1])
        if cause != "materialization_lag":
            return int(self.edges[max(first - 1, 0)]), int(
                self.edges[min(last + 2, len(self.edges) - 1)]
            )
        request_us, written_us = self._writes(view)
        inside = _inside(affected_us, low, self.edges[first + 1])
        before_us = written_us[np.searchsorted(request_us, inside[-1], side="right") - 1]
        at_end = np.searchsorted(request_us, _inside(affected_us, low, high)[-1], side="right") - 1
        resumed = np.searchsorted(written_us, written_us[at_end], side="right")
        if resumed == len(request_us):
            return min(low, int(before_us)), int(self.edges[-1])
        return min(low, int(before_us)), max(high, int(request_us[resumed]))

    def _writes(self, view: str) -> tuple[Int64s, Int64s]:
        """Request times, and the newest write of a view that the log had seen by each.

        Where the online store does not say when it was, its row's event time stands for it.
        """
        log = self._log.filter(pc.is_valid(self._log[f"view.{view}.status"]))
        write_us = microseconds(log[f"view.{view}.write_time"])
        event_us = microseconds(log[f"view.{view}.event_time"])
        written_us = np.where(write_us == NO_TIME, event_us, write_us)
        return microseconds(log["request_time"]), np.maximum.accumulate(written_us)

    def is_over(self, view: str, cause: Cause, *, end_us: int) -> bool:
        """Whether a period with its last wrong request at ``end_us`` was seen to have ended.

        That is so when enough later requests were looked at, and the last window is quiet.
        """
        later = len(self.request_us) - int(np.searchsorted(self.request_us, end_us, side="right"))
        return later >= REQUESTS_MIN and bool(self._quiet(view, cause)[-1])

    def _count(self, view: str, cause: Cause) -> Int64s:
        if (view, cause) not in self._affected:
            return np.zeros_like(self._total)
        return np.histogram(self._affected[view, cause][0], bins=self.edges)[0]

    def _quiet(self, view: str, cause: Cause) -> Bools:
        """Whether so few requests of each window are affected that it is usual."""
        quiet = self._count(view, cause) < TAINTED_SHARE * self._total
        quiet |= self._count(view, cause) == 0
        if cause == "materialization_lag" and view in self._stale:
            quiet |= ~self._stale[view]
        return np.asarray(quiet, dtype=np.bool_)

    @cached_property
    def _stale(self) -> dict[str, Bools]:
        """View → whether it was stale in each window."""
        count = len(self.edges) - 1
        stale = {view: np.zeros(count, dtype=np.bool_) for view in self._contract.reference.views}
        for index in range(count):
            begin, end = np.searchsorted(self.request_us, self.edges[index : index + 2])
            log = self._log.slice(int(begin), int(end - begin))
            for view, found in freshness(self._contract, [log]).items():
                stale[view][index] = found.stale
        return stale


def _edges(request_us: Int64s) -> Int64s:
    """Edges of windows that each hold enough requests: window i is [edges[i], edges[i + 1])."""
    edges = [int(request_us[0])]
    index = 0
    while True:
        by_time = int(np.searchsorted(request_us, edges[-1] + WINDOW_S_MIN * SECOND_US))
        last = max(by_time, index + WINDOW_REQUESTS_MIN) - 1
        if last >= len(request_us):
            break
        # Requests at one time are in one window.
        index = int(np.searchsorted(request_us, request_us[last], side="right"))
        # What is left must make a window of its own, or else it belongs to this one.
        if len(request_us) - index < WINDOW_REQUESTS_MIN:
            break
        edges.append(int(request_us[index]))
    return np.array([*edges, int(request_us[-1]) + 1], dtype=np.int64)


def windowed_columns(contract: ModelContract) -> list[str]:
    """The columns of the log that :class:`Windows` looks at."""
    return [
        "request_time",
        *(
            f"view.{use.name}.{name}"
            for use in contract.views
            for name in ("status", "event_time", "write_time")
        ),
    ]


def affected_keys(names: tuple[str, ...], keys: Collection[tuple[Any, ...]]) -> AffectedKeys | None:
    """Keys as an incident records them. None if there are none, or one that JSON cannot hold."""
    if not keys or any(not isinstance(part, KeyValue | None) for key in keys for part in key):
        return None
    ordered = sorted(keys, key=lambda key: [(part is not None, part) for part in key])
    return AffectedKeys(
        names=names,
        values=tuple(ordered) if len(ordered) <= KEYS_MAX else (),
        first=ordered[0],
        last=ordered[-1],
    )


def _is_mine(findings: pa.Table, view: str, cause: str) -> Bools:
    return is_value(findings["view"], view) & is_value(findings["cause"], cause)


def _affected(findings: pa.Table) -> dict[tuple[str, Cause], tuple[Int64s, Int64s]]:
    """View and cause → request times of the affected requests, and of the wrong values."""
    gathered = {}
    request_us = microseconds(findings["request_time"])
    visible_us = np.maximum(
        microseconds(findings["expected_event_time"]),
        microseconds(findings["expected_created_time"]),
    )
    # Without an expected row nothing is known how long: the difference must not overflow.
    known_for_us = request_us - np.where(visible_us == NO_TIME, 0, visible_us)
    requests = findings["prediction_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    pairs = findings.select(["view", "cause"]).group_by(["view", "cause"]).aggregate([])
    for pair in pairs.to_pylist():
        view, cause = pair["view"], pair["cause"]
        mine = _is_mine(findings, view, cause)
        if cause == "correction_not_propagated":
            mine &= known_for_us > MATERIALIZED_EVERY_S * SECOND_US
        if mine.any():
            rows = np.flatnonzero(mine)
            _, firsts = np.unique(requests[rows], return_index=True)
            gathered[view, cause] = (
                np.sort(request_us[rows[firsts]]),
                np.sort(request_us[rows]),
            )
    return gathered


def _runs(flags: Bools) -> list[tuple[int, int]]:
    """First and last position of each run of true."""
    steps = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    firsts, lasts = np.flatnonzero(steps == 1), np.flatnonzero(steps == -1) - 1
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def _inside(times: Int64s, low: Any, high: Any) -> Int64s:
    return np.asarray(times[(times >= low) & (times < high)], dtype=np.int64)
