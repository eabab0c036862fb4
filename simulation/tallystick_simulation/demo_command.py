"""What ``tally demo`` runs."""

from __future__ import annotations

from pathlib import Path

from tallystick.clock import SimulatedClock
from tallystick.errors import InputError
from tallystick.progress import progress
from tallystick.settings import override
from tallystick.signals import ending_on_signals
from tallystick_simulation.demo_folder import CLOCK, taken
from tallystick_simulation.scenario import Scenario

STEPS = 1000


def demo(path: Path, out: Path) -> str:
    """Replay the scenario of a repo, write ``summary.json`` and pictures, and give the report.

    Args:
        path: Folder of the Feast repo; one of its files defines a :class:`Scenario`.
        out: Folder for everything that the replay makes; an earlier replay's is replaced.

    Raises:
        InputError: The repo has no scenario, or ``out`` holds something else, or another replay
            runs in it.
    """
    from tallystick.definitions.feature_repo import open_repo

    repo = open_repo(path)
    scenarios = repo.declared(Scenario)
    if len(scenarios) != 1:
        raise InputError(
            f"{repo.path} must define one Scenario to replay; it has {len(scenarios)}."
        )
    scenario = scenarios[0]
    from tallystick_simulation.demo import play

    with ending_on_signals() as end_if_asked, taken(out) as state, progress(STEPS) as bar:
        override(
            state_dir=state,
            clock_file=state / CLOCK,
            mlflow_uri=None,
            log_window_s="60",
        )
        clock = SimulatedClock(state / CLOCK, start=scenario.train_until)

        def tell(share: float, text: str) -> None:
            # What a handler raises while Python cleans up is told and dropped.
            end_if_asked()
            bar.step(text, done=int(share * STEPS))

        return play(repo, scenario, clock=clock, out=out, tell=tell)
