"""The frame of all benches: options, a quick form, steps in processes of their own, the report."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from tallystick.errors import TallystickError

ROOT: Final = Path(__file__).parents[1]
QUIET: Final = {"FEAST_USAGE": "False", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
"""Environment of everything that a bench starts: no telemetry."""
STEP_S: Final = 1_800
_ERROR_CHARACTERS: Final = 2_000

T = TypeVar("T")


class FailedError(Exception):
    """A process did not do what it was started for; the message has the end of its log."""


def options(
    name: str,
    description: str | None,
    *,
    full: Mapping[str, Any],
    quick: Mapping[str, Any],
    parts: Sequence[str] = (),
) -> argparse.Namespace:
    """Read the command line of a bench.

    Args:
        name: Of the bench; the report is ``reports/bench-NAME.json``.
        description: Help text.
        full: Option → its value in the full form.
        quick: The same in the quick form, where it differs.
        parts: What ``--part`` can choose; no such option if empty.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="the quick form of the bench")
    for option, value in full.items():
        shown = f"default {value}, in the quick form {quick.get(option, value)}"
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(value), help=shown)
    if parts:
        parser.add_argument("--part", action="append", choices=parts, help="only this part")
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / f"bench-{name}.json")
    chosen = parser.parse_args()
    for option, value in ({**full, **quick} if chosen.quick else full).items():
        if getattr(chosen, option) is None:
            setattr(chosen, option, value)
    if parts and not chosen.part:
        chosen.part = list(parts)
    return chosen


def run(
    measure: Callable[[], dict[str, Any]], out: Path, *, shown: Callable[[dict[str, Any]], str]
) -> dict[str, Any]:
    """Measure, write the report, print the main figures; give the report.

    Args:
        measure: Gives the report. Its ``plan`` gets the load before and the seconds.
        out: File for the report.
        shown: Report → text for a terminal.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ.update(QUIET)
    load_before, started = os.getloadavg()[0], time.monotonic()
    try:
        report = measure()
    except (FailedError, TallystickError) as error:
        raise SystemExit(f"Not measured: {error}") from error
    except KeyboardInterrupt as error:
        raise SystemExit("Stopped. No process is left, and no report was written.") from error
    seconds = round(time.monotonic() - started)
    report["plan"] = {**report.get("plan", {}), "load_before": load_before, "seconds": seconds}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    print(f"{shown(report)}\n{out} has the report; it took {seconds} s.")
    return report


def as_json(report: dict[str, Any]) -> str:
    """The whole report as text."""
    return json.dumps(report, indent=1)


def step(*arguments: str | Path) -> dict[str, Any]:
    """Run ``python -m`` with arguments; give what it printed last, which is JSON.

    A step that ends by SIGKILL is taken as done: some steps kill themselves.

    Raises:
        FailedError: It failed.
    """
    done = command(sys.executable, "-m", *arguments, accepted=(0, -signal.SIGKILL))
    found: dict[str, Any] = json.loads(done.splitlines()[-1])
    return found


def command(*arguments: str | Path, accepted: Sequence[int] = (0,)) -> str:
    """Run a command; give what it printed.

    Raises:
        FailedError: It ended with another code than the accepted ones, or not in time.
    """
    words = [str(each) for each in arguments]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, check=False, cwd=ROOT, timeout=STEP_S
        )
    except subprocess.TimeoutExpired as error:
        raise FailedError(f"{' '.join(words)} was not done after {STEP_S} s") from error
    if done.returncode not in accepted:
        raise FailedError(f"{' '.join(words)} failed:\n{done.stderr[-_ERROR_CHARACTERS:]}")
    return done.stdout


def rotated(items: Sequence[T], number: int) -> list[T]:
    """The items in the order of a round: each round begins with another one."""
    turn = number % len(items)
    return [*items[turn:], *items[:turn]]


def rounded(number: float) -> float:
    """Four figures that count; more would be noise."""
    return float(f"{number:.4g}")


class Goals(list[dict[str, Any]]):
    """What was aimed at, what was measured, and whether it was met; nothing if not measured."""

    def at_least(self, what: str, limit: float, measured: float | None) -> None:
        """Add a goal that is met from a limit on."""
        self._add(f"{what} ≥ {limit:,.7g}", measured, lambda value: value >= limit)

    def at_most(self, what: str, limit: float, measured: float | None) -> None:
        """Add a goal that is met up to a limit."""
        self._add(f"{what} ≤ {limit:,.7g}", measured, lambda value: value <= limit)

    def _add(self, goal: str, measured: float | None, is_met: Callable[[float], bool]) -> None:
        if measured is not None:
            self.append({"goal": goal, "measured": measured, "met": is_met(measured)})


def peak_mb() -> float:
    """The largest resident memory of this process.

    Not from ``resource`` on Linux, which counts what the parent had when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (each for each in status.read_text().splitlines() if each.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "kernel": os.uname().release,
        "processor": _processor(),
    }


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    for line in file.read_text().splitlines() if file.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"
