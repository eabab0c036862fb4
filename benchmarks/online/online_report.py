"""The report of the online bench: figures, ratios, goals."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from benchmarks.harness import Goals, machine, rounded
from benchmarks.online.answering_engines import SIZES
from benchmarks.online.cells import CLOSED, HEADLINE, OPEN, Cells, cell

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
        "machine": {**machine(), "packages": {name: version(name) for name in _PACKAGES}},
        "plan": dict(plan),
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
            "median": rounded(statistics.median(others)),
            "max": rounded(max(others)),
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
        size: rounded(loops[ours][size][loop]["rps"] / loops[other][size][loop]["rps"])
        for size in loops[ours]
        if loops[other][size][loop]["rps"]
    }


def with_ratio(memory: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """The same with ours as a share of Feast's."""
    feast, ours = memory["feast"], memory["tallystick"]
    ratio = {kind: ours[kind] / feast[kind] for kind in feast}
    return {
        name: {kind: rounded(number) for kind, number in numbers.items()}
        for name, numbers in {**memory, "ratio": ratio}.items()
    }


def goals(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what was measured, and whether it was met."""
    loops = content["loops"]
    found = Goals()
    for loop in reversed(CLOSED):
        for size, limit in FEAST_RATIO_MIN.items():
            ratio = content["ratio_vs_feast_by_loop"][loop].get(str(size))
            found.at_least(f"features / Feast, {_entities(size)}, {loop}", limit, ratio)
        noop = _ratios(loops, loop, "tallystick_features", "noop").get("1")
        found.at_least(f"features / empty route, {_entities(1)}, {loop}", NOOP_RATIO_MIN, noop)
        predict = _ratios(loops, loop, "tallystick_predict", "tallystick_features")
        for entities, ratio in predict.items():
            found.at_least(
                f"predict / features, {_entities(entities)}, {loop}", PREDICT_RATIO_MIN, ratio
            )
    for engine in ("tallystick_features", "tallystick_predict"):
        for entities, cells in loops.get(engine, {}).items():
            spread = rounded(cells[OPEN]["p99_ms"] / max(cells[OPEN]["p50_ms"], 1e-9))
            found.at_most(
                f"p99 / p50 of {engine}, {_entities(entities)}, {OPEN}", P99_TO_P50_MAX, spread
            )
    for kind, ratio in (content["bytes_per_entity"] or {}).get("ratio", {}).items():
        found.at_most(f"bytes / Feast's bytes, {kind}", MEMORY_RATIO_MAX, ratio)
    return found


def _entities(size: int | str) -> str:
    return "1 entity" if int(size) == 1 else f"{size} entities"


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
