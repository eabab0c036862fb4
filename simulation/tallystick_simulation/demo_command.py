"""``tally demo``: train, serve and replay a repo's scenario, and report on it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick.clock import SimulatedClock
from tallystick.errors import InputError
from tallystick.progress import progress
from tallystick.server_process import ServerProcess, free_port, http_answers, tally_command
from tallystick.settings import override
from tallystick.signals import ending_on_signals
from tallystick_simulation.demo_folder import CLOCK, claim
from tallystick_simulation.scenario import Scenario

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

STEPS = 1000
GRACE = timedelta(days=3)
"""Time after the last day in which its labels become known."""
COMPACT_S = 10
"""Seconds between two compactions of the log, in which some three days are played.

A server in production compacts each minute, so an hourly look finds all but the last minute in
Parquet.
"""


def demo(path: Path, out: Path) -> str:
    """Replay the scenario of a repo, write ``summary.json`` and plots, and return the report.

    Args:
        path: Folder of the Feast repo; one of its files defines a :class:`Scenario`.
        out: Folder for everything that the replay writes; an earlier replay's is replaced.

    Raises:
        InputError: The repo has no scenario, ``out`` holds files of another origin, or another
            replay runs in it.
    """
    from tallystick.definitions.feature_repo import open_repo

    repo = open_repo(path)
    scenarios = repo.declared(Scenario)
    if len(scenarios) != 1:
        raise InputError(
            f"{repo.path} must define one Scenario to replay; it has {len(scenarios)}."
        )
    (scenario,) = scenarios
    with ending_on_signals() as end_if_asked, claim(out) as state, progress(STEPS) as bar:
        override(
            state_dir=state,
            clock_file=state / CLOCK,
            mlflow_uri=None,
            log_window_s=str(COMPACT_S),
            log_segment_s=str(COMPACT_S),
            log_compact_s=str(COMPACT_S),
        )
        clock = SimulatedClock(state / CLOCK, start=scenario.train_until)

        def show(share: float, text: str) -> None:
            # Python drops an exception that a signal handler raises in a destructor.
            end_if_asked()
            bar.step(text, done=int(share * STEPS))

        return _run(repo, scenario, clock=clock, out=out, show=show)


def _run(
    repo: Repo,
    scenario: Scenario,
    *,
    clock: SimulatedClock,
    out: Path,
    show: Callable[[float, str], None],
) -> str:
    """Apply, train, materialize, serve, replay, and report."""
    from tallystick.definitions.feature_repo import apply
    from tallystick.materialization.materializer import Materializer
    from tallystick.model_bundle.bundle import load_bundle, read_champion
    from tallystick.online_store import embedded_redis
    from tallystick.storage.atomic_files import write_text
    from tallystick_monitoring.audit.audit_run import audit
    from tallystick_simulation.replay import Replay, Stopwatch
    from tallystick_simulation.replay_plots import plot_parity, plot_performance
    from tallystick_simulation.replay_scores import score
    from tallystick_simulation.replay_summary import report, summarize
    from tallystick_training.train_command import train

    stopwatch = Stopwatch()
    started = time.perf_counter()
    try:
        with stopwatch.stage("apply"):
            show(0.0, "applying the definitions")
            apply(repo)
        with stopwatch.stage("train"):
            for name in (scenario.model, *scenario.also):
                show(0.0, f"training {name}")
                train(repo, name, end=scenario.train_until, promote=True)
        with stopwatch.stage("materialize"):
            show(0.0, "materializing history")
            Materializer(repo).run(until=scenario.train_until)
        champion = read_champion(repo.state_dir, scenario.model)
        first = load_bundle(repo.state_dir, scenario.model, champion.contract_hash)
        url = f"http://127.0.0.1:{free_port()}"
        with stopwatch.stage("server start"):
            server = _serving(repo, url, out / "server.log")
        with server:
            replay = Replay(repo, scenario, clock=clock, url=url, stopwatch=stopwatch, show=show)
            result = asyncio.run(replay.run())
        with stopwatch.stage("report"):
            end = datetime.combine(max(scenario.days), datetime.min.time(), tzinfo=UTC) + GRACE
            scores = score(repo, scenario.model, first, until=end)
            plot_performance(out / "performance.png", scores, result)
            plot_parity(out / "parity.png", scenario, result)
            outage = scenario.outage
            audited = audit(repo, scenario.model, start=outage.start, end=outage.end).report
            write_text(out / "audit.json", audited.model_dump_json(indent=1))
    finally:
        embedded_redis.stop(repo.state_dir)
    measured = sum(stopwatch.seconds.values())
    seconds = {**stopwatch.seconds, "other": time.perf_counter() - started - measured}
    summary = summarize(scenario, result, scores, audited, seconds)
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    return (
        f"{report(summary)}\n"
        f"Written to {out}: summary.json, audit.json, performance.png, parity.png"
    )


def _serving(repo: Repo, url: str, log: Path) -> ServerProcess:
    """``tally serve`` in a process of its own, which ends with this one.

    Raises:
        UnavailableError: It did not become ready in time.
    """
    port = url.rsplit(":", 1)[1]
    command = tally_command(repo.path, "serve", "--port", port, "--ends-with-input")
    server = ServerProcess(f"The server at {url}", command, log=log)
    server.wait_until(lambda: http_answers(f"{url}/ready"))
    return server
