"""How long an audit takes, and how long it takes only to count: in processes of their own.

    python -m benchmarks.audit.speed audit|count REPO START END

``count`` reads what it needs of the same log, joins the same history, computes the same on-demand
features and counts what differs, without causes. Prints what one run took, after one over
the first hours to warm up, as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

import pyarrow as pa
from benchmarks.audit.declared import MODEL
from benchmarks.audit.truth import differing
from benchmarks.harness import peak_mb, rotated, step

from tallystick.definitions.contract import REQUEST_TIME, ModelContract
from tallystick.definitions.feature_repo import Repo, open_repo
from tallystick.model_bundle.bundle import load_transforms
from tallystick.prediction_log.log_reader import read_log
from tallystick.retrieval.expected_values import expected_values, recomputed
from tallystick_monitoring.audit.audit_run import audit

STEPS: Final = ("audit", "count")
WARM_UP: Final = timedelta(hours=6)


def main() -> None:
    """Do one step."""
    name, path, start, end = sys.argv[1:]
    repo = open_repo(Path(path))
    span = (datetime.fromisoformat(start), datetime.fromisoformat(end))
    _STEPS[name](repo, span[0], span[0] + WARM_UP)
    began = time.perf_counter()
    mismatches = _STEPS[name](repo, *span)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb(), "mismatches": mismatches}))


def measured(repo: Repo, start: datetime, end: datetime, *, rounds: int) -> dict[str, Any]:
    """Time all steps, in turns, over one log.

    Args:
        repo: Its log is read.
        start: First request time, included.
        end: Last one, excluded.
        rounds: How often.

    Returns:
        ``values``; ``values_per_s`` and ``peak_mb`` of the audit; seconds and peak of each step as
        medians of the rounds; ``ratio`` of the audit to counting, the median of the rounds' ratios.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in STEPS}
    for number in range(rounds):
        for name in rotated(STEPS, number):
            span = (start.isoformat(), end.isoformat())
            runs[name].append(step("benchmarks.audit.speed", name, repo.path, *span))
            print(f"{name:12} {runs[name][-1]['seconds']:.2f} s", flush=True)
    if len({run["mismatches"] for of_step in runs.values() for run in of_step}) > 1:
        raise AssertionError("the audit and the count do not find the same number of mismatches")
    parts = read_log(repo.state_dir, MODEL, start=start, end=end)
    values = sum(part.table.num_rows * len(part.contract.value_columns) for part in parts)
    seconds = {name: median(run["seconds"] for run in of_step) for name, of_step in runs.items()}
    return {
        "values": values,
        "mismatches": runs["audit"][0]["mismatches"],
        "values_per_s": round(values / seconds["audit"]),
        "peak_mb": round(median(run["peak_mb"] for run in runs["audit"])),
        "seconds": {name: round(each, 3) for name, each in seconds.items()},
        "peaks_mb": {
            name: round(median(run["peak_mb"] for run in of_step)) for name, of_step in runs.items()
        },
        "ratio": round(
            median(
                ours["seconds"] / theirs["seconds"]
                for ours, theirs in zip(runs["audit"], runs["count"], strict=True)
            ),
            2,
        ),
        "rounds": {
            name: [round(run["seconds"], 3) for run in of_step] for name, of_step in runs.items()
        },
    }


def count(repo: Repo, start: datetime, end: datetime) -> int:
    """How many served values differ from those that history gives, without causes.

    Args:
        repo: Its log is read.
        start: First request time, included.
        end: Last one, excluded.
    """
    parts = read_log(repo.state_dir, MODEL, start=start, end=end, columns=_compared)
    return sum(_count(repo, part.contract, part.table) for part in parts)


def _compared(contract: ModelContract) -> list[str]:
    """The columns of the log that are needed to compare; what the log has of rows is not."""
    return [
        REQUEST_TIME,
        *(f"entity.{key.name}" for key in contract.entity_keys),
        *(f"request.{field.name}" for field in contract.request_fields),
        *(f"feature.{name}" for name in contract.value_columns),
    ]


def _count(repo: Repo, contract: ModelContract, log: pa.Table) -> int:
    transforms = load_transforms(repo.state_dir, contract.model, contract.contract_hash)
    stored = expected_values(repo, contract, log)
    computed = recomputed(contract, transforms, log)
    return sum(
        len(differing(log[f"feature.{name}"], found[name]))
        for name in contract.value_columns
        for found in [stored if name in contract.stored_columns else computed]
    )


_STEPS: Final[dict[str, Callable[[Repo, datetime, datetime], int]]] = {
    "audit": lambda repo, start, end: (
        audit(repo, MODEL, start=start, end=end, again=True).findings.num_rows
    ),
    "count": count,
}


if __name__ == "__main__":
    main()
