"""What the bench found, as JSON and as a table for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from benchmarks.audit.cases import DAMAGE, LATE, RATES, Case
from benchmarks.audit.plans import INJECTED
from benchmarks.audit.truth import NOTHING, Score
from benchmarks.harness import Goals

CAUSES: Final = (*INJECTED, DAMAGE, LATE)
GOAL_RATE: Final = 0.001
SHARE_MIN: Final = 0.99
UNKNOWN_MAX: Final = 0.001
VALUES_PER_S_MIN: Final = 1_000_000
RATIO_MAX: Final = 2.0


def report(cases: Sequence[Case], speed: dict[str, Any], plan: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured.

    ``precision``, ``recall`` and ``unknown_rate`` are those at the contamination of the goal, over
    its single cases and mixtures together; ``by_contamination`` has the others. Late arrivals are
    looked for once, in the clean log.

    Args:
        cases: What came of each case.
        speed: Name of a log → what its audit took; of ``contaminated`` are the figures on top.
        plan: How it was measured.
    """
    by_rate = {rate: _summed(cases, rate) for rate in RATES if any(c.rate == rate for c in cases)}
    late = sum((c.score for c in cases if c.causes == (LATE,)), NOTHING)
    goal = by_rate.get(GOAL_RATE, NOTHING) + late
    clean = [case.score for case in cases if case.name == "clean"]
    timed = speed.get("contaminated", {})
    content = {
        "plan": plan,
        "precision": {cause: _rounded(goal.precision(cause)) for cause in CAUSES},
        "recall": {cause: _rounded(goal.recall(cause)) for cause in CAUSES},
        "unknown_rate": round(goal.unexplained_share, 6) if GOAL_RATE in by_rate else None,
        "false_findings_on_clean": sum(score.found.total() for score in clean) if clean else None,
        "values_per_s": timed.get("values_per_s"),
        "peak_mb": timed.get("peak_mb"),
        "counts_only_baseline_seconds": timed.get("seconds", {}).get("count"),
        "ratio_to_counts_only": timed.get("ratio"),
        "by_contamination": {
            f"{rate:g}": {
                "precision": {cause: _rounded(score.precision(cause)) for cause in CAUSES},
                "recall": {cause: _rounded(score.recall(cause)) for cause in CAUSES},
                "unknown_rate": round(score.unexplained_share, 6),
            }
            for rate, score in by_rate.items()
        },
        "speed": speed,
        "cases": [_case(case) for case in cases],
    }
    return content | {"goals": _goals(content)}


def markdown(content: dict[str, Any]) -> str:
    """The report as tables."""
    tables = [_accuracy(content) if content["by_contamination"] else [], _met(content)]
    tables.append(_speed(content["speed"]) if content["speed"] else [])
    return "\n\n".join("\n".join(lines) for lines in tables if lines)


def _accuracy(content: dict[str, Any]) -> list[str]:
    rates = list(content["by_contamination"])
    head = "".join(f" {float(rate):.1%} |" for rate in rates)
    lines = [
        f"| precision / recall |{head} injected at {float(rates[0]):.1%} |",
        "| --- |" + " --- |" * (len(rates) + 1),
    ]
    for cause in CAUSES:
        cells = [_pair(content["by_contamination"][rate], cause) for rate in rates]
        if cause == LATE:
            cells = [_pair(content, cause), *[""] * (len(rates) - 1)]
        injected = sum(
            case["injected"].get(cause, 0)
            for case in content["cases"]
            if case["contamination"] in {float(rates[0]), 0.0}
        )
        lines.append(f"| {cause} | {' | '.join(cells)} | {injected:,} |")
    return lines


def _met(content: dict[str, Any]) -> list[str]:
    return ["| goal | measured | |", "| --- | --- | --- |"] + [
        f"| {goal['goal']} | {goal['measured']} | {'met' if goal['met'] else '**missed**'} |"
        for goal in content["goals"]
    ]


def _speed(speed: dict[str, Any]) -> list[str]:
    return [
        "| log | values | wrong | values/s | peak MB | audit, s | counting, s | ratio |",
        "| --- |" + " --- |" * 7,
        *(
            f"| {name} | {timed['values']:,} | {timed['mismatches']:,} "
            f"| {timed['values_per_s']:,} | {timed['peak_mb']:,} | {timed['seconds']['audit']} "
            f"| {timed['seconds']['count']} | {timed['ratio']} |"
            for name, timed in speed.items()
        ),
    ]


def _summed(cases: Sequence[Case], rate: float) -> Score:
    return sum((case.score for case in cases if case.rate == rate), NOTHING)


def _case(case: Case) -> dict[str, Any]:
    score = case.score
    return {
        "case": case.name,
        "contamination": case.rate,
        "causes": list(case.causes),
        "requests_wrong_share": round(case.wrong_share, 6),
        "of_these_several_causes_share": round(case.several_share, 6),
        "injected": dict(score.injected),
        "found": dict(score.found),
        "right": dict(score.right),
        "unexplained": score.unexplained,
        "astray": [list(each) for each in case.astray],
    }


def _goals(content: dict[str, Any]) -> list[dict[str, Any]]:
    found = Goals()
    for figure in ("precision", "recall"):
        # Of late arrivals alone, which need no contamination, the goal does not speak.
        is_measured = f"{GOAL_RATE:g}" in content["by_contamination"]
        shares = [share for share in content[figure].values() if is_measured and share is not None]
        what = f"least {figure} of a cause at {GOAL_RATE:.1%}"
        found.at_least(what, SHARE_MIN, min(shares, default=None))
    found.at_most("findings on the clean log", 0, content["false_findings_on_clean"])
    found.at_most("share unexplained of what was injected", UNKNOWN_MAX, content["unknown_rate"])
    found.at_least("values/s", VALUES_PER_S_MIN, content["values_per_s"])
    found.at_most("seconds / those of counting alone", RATIO_MAX, content["ratio_to_counts_only"])
    return found


def _pair(shares: dict[str, Any], cause: str) -> str:
    precision, recall = shares["precision"][cause], shares["recall"][cause]
    if precision is None and recall is None:
        return "-"
    return " / ".join("-" if share is None else f"{share:.4g}" for share in (precision, recall))


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)
