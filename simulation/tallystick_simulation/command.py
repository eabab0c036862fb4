"""What ``tally demo`` runs."""

from __future__ import annotations

import shutil
from pathlib import Path

from tallystick.clock import SimulatedClock
from tallystick.errors import InputError
from tallystick.progress import progress
from tallystick.settings import override
from tallystick_simulation.scenario import Scenario

STEPS = 1000


def demo(path: Path, out: Path) -> str:
    """Replay the scenario of a repo, write ``summary.json`` and pictures, and give the report.

    Args:
        path: Folder of the Feast repo; one of its files defines a :class:`Scenario`.
        out: Folder for everything that the replay makes; an earlier replay's is replaced.

    Raises:
        InputError: The repo has no scenario, or ``out`` holds something else.
    """
    from tallystick.repo import open_repo

    _prepare(out)
    state = out.resolve() / "state"
    state.mkdir(parents=True)
    override(state_dir=state, clock_file=state / "clock", log_flush_s="60")
    repo = open_repo(path)
    scenarios = repo.declared(Scenario)
    if len(scenarios) != 1:
        raise InputError(
            f"{repo.path} must define one Scenario to replay; it has {len(scenarios)}."
        )
    scenario = scenarios[0]
    clock = SimulatedClock(state / "clock", start=scenario.train_until)
    from tallystick_simulation.stage import play

    with progress(STEPS) as bar:

        def tell(share: float, text: str) -> None:
            bar.step(text, done=int(share * STEPS))

        return play(repo, scenario, clock=clock, out=out, tell=tell)


def _prepare(out: Path) -> None:
    """Empty the folder if an earlier replay made it; refuse to touch anything else."""
    if not out.exists():
        return
    ours = {"state", "summary.json", "performance.png", "parity.png", "server.log"}
    others = sorted(entry.name for entry in out.iterdir() if entry.name not in ours)
    if others:
        raise InputError(
            f"{out} holds files that no replay made ({', '.join(others[:3])}); name another folder."
        )
    shutil.rmtree(out)
