"""Measures whether the audit names each cause, and how fast; writes reports/bench-audit.json.

    python -m benchmarks.audit [--quick] [--requests N] [--hours N] [--part NAME]...

A generated repo with four views is served for four days by Tallystick's own stores and server under
a clock that is set, once clean and once with each fault, done for real: a run of materialization
left out, a row put back by a writer that does not compare, a view redefined, a server with another
ttl, history edited. What differs between the two logs is wrong, and its cause is known. Parts:

- ``accuracy``: precision and recall of each cause, alone and mixed, with 0.1%, 1% and 10% of the
  requests wrong; findings on the clean log; damage to the log (counted in predictions);
- ``speed``: a larger log, clean and with 1% wrong: values per second and peak memory of the audit,
  beside a join that only compares and counts, in processes of their own and in turns.

``--quick`` takes a few minutes and writes the same report from smaller logs: for a comparison of
two versions of the code, not for the figures of the documentation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.audit.audit_report import markdown, report
from benchmarks.audit.cases import RATES, Bench, Case
from benchmarks.audit.plans import INJECTED, Chooser, Clean, mixture
from benchmarks.audit.replay import play, simulated
from benchmarks.audit.scene import START, Scene, Sizes, make_scene
from benchmarks.audit.speed import measured
from benchmarks.harness import options, run

from tallystick.clock import SimulatedClock
from tallystick.online_store import embedded_redis
from tallystick.prediction_log.compactor import compact

FULL: Final = {"requests": 50_000, "hours": 96, "timed_requests": 200_000, "rounds": 3}
QUICK: Final = {"requests": 6_000, "hours": 40, "timed_requests": 60_000}
PARTS: Final = ("accuracy", "speed")
TIMED_RATE: Final = 0.01
TIMED_BATCH_ROWS: Final = 256


def main() -> None:
    """Measure, write the report, print it."""
    chosen = options("audit", __doc__, full=FULL, quick=QUICK, parts=PARTS)
    run(partial(measure, chosen), chosen.out, shown=markdown)


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Measure the chosen parts; give the report."""
    began = time.perf_counter()
    cases: list[Case] = []
    speed: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as name:
        folder = Path(name)
        address = f"unix://{embedded_redis.start(folder / 'redis')}"
        try:
            with simulated(folder) as clock:
                if "accuracy" in chosen.part:
                    sizes = Sizes(requests=chosen.requests, hours=chosen.hours)
                    scene = make_scene(folder / "scene", sizes, address=address)
                    for case in _cases(Bench(scene, folder, clock=clock)):
                        cases.append(case)
                        _print(case, began)
                if "speed" in chosen.part:
                    sizes = Sizes(requests=chosen.timed_requests, batch_rows=TIMED_BATCH_ROWS)
                    scene = make_scene(folder / "large", sizes, address=address)
                    speed = _timed(scene, folder, clock=clock, rounds=chosen.rounds)
        finally:
            embedded_redis.stop(folder / "redis")
    plan = {name: getattr(chosen, name) for name in ("requests", "timed_requests", "rounds")}
    return report(cases, speed, plan)


def _cases(bench: Bench) -> Iterator[Case]:
    yield bench.without_fault()
    yield bench.by_event_time()
    for rate in RATES:
        for cause in INJECTED:
            yield bench.single(cause, rate)
        for kind in ("segment", "file"):
            yield bench.damaged(kind, rate)
        for overlapping in (False, True):
            yield bench.mixed(rate, overlapping=overlapping)
        yield bench.stacked(rate)


def _print(case: Case, began: float) -> None:
    score = case.score
    text = (
        f"{score.injected.total():,} injected, {score.found.total():,} found, "
        f"{score.right.total():,} right, {score.unexplained:,} unexplained"
    )
    what = case.causes[0] if len(case.causes) == 1 else f"{len(case.causes)} causes"
    print(
        f"{time.perf_counter() - began:4.0f} s  {case.name:11} {what:26} {case.rate:6.1%} "
        f"({case.wrong_share:.2%}): {text}",
        flush=True,
    )


def _timed(scene: Scene, folder: Path, *, clock: SimulatedClock, rounds: int) -> dict[str, Any]:
    """Time the audit of a clean log and of one with all causes mixed."""
    played = {"clean": play(scene, folder / "large-clean", clock=clock)}
    clean = Clean(scene, played["clean"])
    chooser = Chooser(np.random.default_rng(scene.sizes.seed), {})
    faults = mixture(clean, requests=TIMED_RATE * played["clean"].table.num_rows, chooser=chooser)
    played["contaminated"] = play(scene, folder / "large-wrong", clock=clock, faults=faults)
    found = {}
    for name, each in played.items():
        compact(each.repo.state_dir)
        print(f"audit of the {name} log", flush=True)
        found[name] = measured(each.repo, START, scene.sizes.end, rounds=rounds)
    return found


if __name__ == "__main__":
    main()
