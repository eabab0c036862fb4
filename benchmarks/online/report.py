"""From what the loops saw to the report: figures, ratios, goals."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from benchmarks.loop import machine
from benchmarks.online.client import Taken
from benchmarks.online.engines import SIZES

HEADLINE: Final = "closed_8"
OPEN: Final = "open_60"
CLOSED: Final = ("closed_1", "closed_8")
LOOPS: Final = (*CLOSED, OPEN)
FEAST_RATIO_MIN: Final = {1: 12.0, 100: 40.0}
NOOP_RATIO_MIN: Final = 0.5
PREDICT_RATIO_MIN: Final = 0.7
P99_TO_P50_MAX: Final = 4.0
MEMORY_RATIO_MAX: Final = 0.6
CLIENT_SHARE_MAX: Final = 0.7
"""CPU share of the client above which a cell may be about the client."""
_PACKAGES: Final = (
    "feast", "fastapi", "uvicorn", "gunicorn", "uvloop", "httptools", "redis", "hiredis",
    "scikit-learn",
)  # fmt: skip


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
        figures[name] = _rounded(statistics.median(figure[name] for figure in each))
    figures["rounds"] = [
        {name: _rounded(figure[name]) for name in ("rps", "p50_ms", "p99_ms")} for figure in each
    ]
    return figures


def _round(one: Round) -> dict[str, float]:
    taken = one.taken
    latencies = sorted(taken.latencies_ns) or [0]
    figures = {
        "rps": len(taken.latencies_ns) / taken.seconds,
        "p50_ms": _quantile_ms(latencies, 0.5),
        "p99_ms": _quantile_ms(latencies, 0.99),
        "max_ms": latencies[-1] / 1e6,
        "client_cpu_share": taken.cpu_s / taken.seconds,
        "server_cpu_share": one.server_cpu_s / taken.seconds,
        "server_core_busy": one.server_core_busy,
        "client_core_busy": one.client_core_busy,
    }
    if one.rate_per_s is not None:
        figures |= {
            "rate_per_s": one.rate_per_s,
            "client_late_p99_ms": _quantile_ms(sorted(taken.late_ns) or [0], 0.99),
            "waited_for_connection": taken.waited,
        }
    return figures


def _quantile_ms(ordered: Sequence[int], share: float) -> float:
    """Nearest rank, of ordered nanoseconds."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] / 1e6


def _rounded(number: float) -> float:
    """Four figures that count; more would be noise."""
    return float(f"{number:.4g}")


def report(
    cells: Cells,
    *,
    memory: Mapping[str, Mapping[str, float]] | None,
    answers_equal: Mapping[str, bool],
    log: Mapping[str, float],
    plan: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        cells: The rounds of every cell.
        memory: Store → kind of columns → bytes an entity; None if it was not measured.
        answers_equal: Engine → whether it answered as Feast's server did.
        log: The prediction log's ledger after the last prediction.
        plan: How it was measured.
    """
    loops: dict[str, dict[str, dict[str, Any]]] = {}
    for (engine, size, loop), rounds in cells.items():
        loops.setdefault(engine, {}).setdefault(str(size), {})[loop] = cell(rounds)
    ratios = {loop: ratios_vs_feast(loops, loop) for loop in CLOSED}
    content = {
        "machine": {**machine(), "load_before": plan["load_before"], **_versions()},
        "plan": {name: value for name, value in plan.items() if name != "load_before"},
        "rps": _headline(loops, HEADLINE, "rps"),
        "p50_ms": _headline(loops, OPEN, "p50_ms"),
        "p99_ms": _headline(loops, OPEN, "p99_ms"),
        "ratio_vs_feast": ratios[HEADLINE],
        "ratio_vs_feast_by_loop": ratios,
        "bytes_per_entity": None if memory is None else with_ratio(memory),
        "answers_equal": dict(answers_equal),
        "log": dict(log),
        "errors": sum(
            one["errors"] for sizes in loops.values() for cell in sizes.values()
            for one in cell.values()
        ),
        **_doubts(loops),
        "loops": loops,
    }  # fmt: skip
    return {**content, "goals": goals(content)}


def _doubts(loops: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader has to know before trusting the figures."""
    every = [
        (f"{engine} {size} {loop}", figures)
        for engine, sizes in loops.items()
        for size, cell in sizes.items()
        for loop, figures in cell.items()
    ]
    others = [max(0.0, one["server_core_busy"] - one["server_cpu_share"]) for _, one in every]
    return {
        "others_on_server_core": {
            "median": _rounded(statistics.median(others)),
            "max": _rounded(max(others)),
        },
        "client_near_its_limit": [
            name for name, one in every if one["client_cpu_share"] > CLIENT_SHARE_MAX
        ],
    }


def _headline(loops: Mapping[str, Any], loop: str, figure: str) -> dict[str, dict[str, float]]:
    return {
        engine: {size: cell[loop][figure] for size, cell in sizes.items()}
        for engine, sizes in loops.items()
    }


def ratios_vs_feast(loops: Mapping[str, Any], loop: str) -> dict[str, float]:
    """Our features against Feast's plain server, in one loop."""
    return _ratios(loops, loop, "tallystick_features", "feast")


def _ratios(loops: Mapping[str, Any], loop: str, ours: str, other: str) -> dict[str, float]:
    if ours not in loops or other not in loops:
        return {}
    return {
        size: _rounded(loops[ours][size][loop]["rps"] / loops[other][size][loop]["rps"])
        for size in loops[ours]
        if loops[other][size][loop]["rps"]
    }


def with_ratio(memory: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The same with ours as a share of Feast's."""
    feast, ours = memory["feast"], memory["tallystick"]
    ratio = {kind: ours[kind] / feast[kind] for kind in feast}
    return {
        name: {kind: _rounded(number) for kind, number in numbers.items()}
        for name, numbers in {**memory, "ratio": ratio}.items()
    }


def goals(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was measured, and whether it was met."""
    loops = content["loops"]
    found: list[dict[str, Any]] = []

    def at_least(what: str, limit: float, measured: float | None) -> None:
        if measured is not None:
            found.append(_goal(f"{what} ≥ {limit:g}", measured, met=measured >= limit))

    def at_most(what: str, limit: float, measured: float) -> None:
        found.append(_goal(f"{what} ≤ {limit:g}", measured, met=measured <= limit))

    for loop in reversed(CLOSED):
        for size, limit in FEAST_RATIO_MIN.items():
            ratio = content["ratio_vs_feast_by_loop"][loop].get(str(size))
            at_least(f"features / Feast, {_entities(size)}, {loop}", limit, ratio)
        noop = _ratios(loops, loop, "tallystick_features", "noop").get("1")
        at_least(f"features / empty route, {_entities(1)}, {loop}", NOOP_RATIO_MIN, noop)
        predict = _ratios(loops, loop, "tallystick_predict", "tallystick_features")
        for entities, ratio in predict.items():
            at_least(f"predict / features, {_entities(entities)}, {loop}", PREDICT_RATIO_MIN, ratio)
    for engine in ("tallystick_features", "tallystick_predict"):
        for entities, cells in loops.get(engine, {}).items():
            spread = _rounded(cells[OPEN]["p99_ms"] / max(cells[OPEN]["p50_ms"], 1e-9))
            at_most(f"p99 / p50 of {engine}, {_entities(entities)}, {OPEN}", P99_TO_P50_MAX, spread)
    for kind, ratio in (content["bytes_per_entity"] or {}).get("ratio", {}).items():
        at_most(f"bytes / Feast's bytes, {kind}", MEMORY_RATIO_MAX, ratio)
    return found


def _entities(size: int | str) -> str:
    return "1 entity" if int(size) == 1 else f"{size} entities"


def _goal(goal: str, measured: float, *, met: bool) -> dict[str, Any]:
    return {"goal": goal, "measured": measured, "met": met}


def table(content: Mapping[str, Any]) -> str:
    """The main figures for a terminal."""
    lines = [f"{'':22}" + "".join(f"{size:>9}" for size in SIZES) + "   entities a request"]
    for title, figure in (
        (f"requests/s, {HEADLINE}", "rps"),
        (f"p50 ms, {OPEN}", "p50_ms"),
        (f"p99 ms, {OPEN}", "p99_ms"),
    ):
        lines.append(title)
        for engine, sizes in content[figure].items():
            numbers = "".join(f"{sizes.get(str(size), 0):>9.4g}" for size in SIZES)
            lines.append(f"  {engine:20}{numbers}")
    others = content["others_on_server_core"]
    lines.append(
        f"others took {others['median']:.0%} of the server's core (median of cells; at most "
        f"{others['max']:.0%})"
    )
    if near := content["client_near_its_limit"]:
        lines.append(f"the client was near its limit: {', '.join(near)}")
    if dropped := content["log"].get("dropped"):
        lines.append(f"the prediction log dropped {dropped:,.0f} rows")
    lines.append("goals")
    for goal in content["goals"]:
        mark = "met   " if goal["met"] else "MISSED"
        lines.append(f"  {mark} {goal['measured']:>8.4g}  {goal['goal']}")
    return "\n".join(lines)


def _versions() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "kernel": os.uname().release,
        "packages": {name: version(name) for name in _PACKAGES},
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
