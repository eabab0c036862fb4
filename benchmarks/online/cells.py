"""From what the loops saw to the figures of a cell."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.harness import rounded
from benchmarks.online.load_client import Taken

HEADLINE: Final = "closed_8"
OPEN: Final = "open_60"
CLOSED: Final = ("closed_1", "closed_8")
LOOPS: Final = (*CLOSED, OPEN)


@dataclass(frozen=True, slots=True)
class Round:
    """One loop of one cell.

    Attributes:
        taken: What the client saw.
        server_cpu_s: CPU seconds that the server took meanwhile.
        server_core_busy: Share of the time in which its core did anything: what is beyond the
            server's own was taken by others.
        client_core_busy: The same of the core of the client and Redis.
        rate_per_s: Open loop: requests a second that were meant.
    """

    taken: Taken
    server_cpu_s: float
    server_core_busy: float
    client_core_busy: float
    rate_per_s: float | None = None


Cells = Mapping[tuple[str, int, str], Sequence[Round]]
"""(Engine, entities, loop) → its rounds."""


def cell(rounds: Sequence[Round]) -> dict[str, Any]:
    """Figures of one cell: medians over its rounds, and each round's own beside them."""
    each = [_round(one) for one in rounds]
    errors: Counter[str] = sum((one.taken.errors for one in rounds), Counter())
    figures: dict[str, Any] = {
        "requests": sum(one.taken.answers for one in rounds),
        "errors": errors.total(),
    }
    if errors:
        figures["what_was_wrong"] = dict(errors.most_common(5))
    for name in each[0]:
        figures[name] = rounded(statistics.median(figure[name] for figure in each))
    figures["rounds"] = [
        {name: rounded(figure[name]) for name in ("rps", "p50_ms", "p99_ms")} for figure in each
    ]
    return figures


def _round(one: Round) -> dict[str, float]:
    taken = one.taken
    figures = {
        "rps": len(taken.latencies_ns) / taken.seconds,
        "p50_ms": quantile_ms(taken.latencies_ns, 0.5),
        "p99_ms": quantile_ms(taken.latencies_ns, 0.99),
        "max_ms": quantile_ms(taken.latencies_ns, 1.0),
        "client_cpu_share": taken.cpu_s / taken.seconds,
        "server_cpu_share": one.server_cpu_s / taken.seconds,
        "server_core_busy": one.server_core_busy,
        "client_core_busy": one.client_core_busy,
    }
    if one.rate_per_s is not None:
        figures |= {
            "rate_per_s": one.rate_per_s,
            "client_late_p99_ms": quantile_ms(taken.late_ns, 0.99),
            "waited_for_connection": taken.waited,
        }
    return figures


def quantile_ms(nanoseconds: Sequence[int], share: float) -> float:
    """The nearest rank, in milliseconds; 0 if there are none."""
    ordered = sorted(nanoseconds) or [0]
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6
