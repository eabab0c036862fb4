"""Measures whether the audit names each cause, and how fast; writes reports/bench-audit.json.

    python -m benchmarks.audit [--quick] [--requests N] [--rates SHARE...] [--part NAME]...

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
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.audit.cases import RATES, Bench, Case
from benchmarks.audit.plans import INJECTED, Chooser, Clean, mixture
from benchmarks.audit.replay import play, simulated
from benchmarks.audit.report import markdown, report
from benchmarks.audit.scene import START, Scene, Sizes, make_scene
from benchmarks.audit.speed import QUIET, ROOT, measured

from tallystick.clock import SimulatedClock
from tallystick.online_store import embedded_redis
from tallystick.prediction_log.compaction import compact
from tallystick.signals import ending_on_signals

PARTS: Final = ("accuracy", "speed")
TIMED_RATE: Final = 0.01
TIMED_BATCH_ROWS: Final = 256
FULL: Final = {"requests": 50_000, "hours": 96, "timed_requests": 200_000}
QUICK: Final = {"requests": 8_000, "hours": 48, "timed_requests": 80_000}


def main() -> None:
    """Measure, write the report, print it."""
    options = _options()
    os.environ.update(QUIET)
    began = time.perf_counter()
    parts = options.part or PARTS
    cases: list[Case] = []
    speed: dict[str, Any] = {}
    with ending_on_signals(), tempfile.TemporaryDirectory(prefix="bench-audit-") as name:
        folder = Path(name)
        address = f"unix://{embedded_redis.start(folder / 'redis')}"
        try:
            with simulated(folder) as clock:
                if "accuracy" in parts:
                    sizes = Sizes(requests=options.requests, hours=options.hours)
                    scene = make_scene(folder / "scene", sizes, address=address)
                    bench = Bench(scene, folder, clock=clock)
                    for case in _cases(bench, options.rates):
                        cases.append(case)
                        _tell(case, began)
                if "speed" in parts:
                    sizes = Sizes(requests=options.timed_requests, batch_rows=TIMED_BATCH_ROWS)
                    scene = make_scene(folder / "large", sizes, address=address)
                    speed = _timed(scene, folder, clock=clock, rounds=options.rounds)
        finally:
            embedded_redis.stop(folder / "redis")
    content = report(
        cases,
        speed,
        {
            "requests": options.requests,
            "timed_requests": options.timed_requests,
            "rounds": options.rounds,
            "seconds": round(time.perf_counter() - began),
            "load_after": os.getloadavg()[0],
        },
    )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(content, indent=1))
    print(markdown(content))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller logs, fewer hours")
    parser.add_argument("--requests", type=int, help="of each case")
    parser.add_argument("--hours", type=int, help="length of each case's log")
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES), choices=RATES)
    parser.add_argument("--timed-requests", type=int, help="of the timed logs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", action="append", choices=PARTS, help="only this")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "bench-audit.json")
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def _cases(bench: Bench, rates: list[float]) -> Iterator[Case]:
    yield bench.without_fault()
    yield bench.by_event_time()
    for rate in rates:
        for cause in INJECTED:
            yield bench.single(cause, rate)
        for kind in ("segment", "file"):
            yield bench.damaged(kind, rate)
        for overlapping in (False, True):
            yield bench.mixed(rate, overlapping=overlapping)
        yield bench.stacked(rate)


def _tell(case: Case, began: float) -> None:
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
