"""Sets the stage for a replay, plays it, and writes down what came of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick.clock import SimulatedClock
from tallystick.definitions.feature_repo import apply
from tallystick.materialization.materialize import Materializer
from tallystick.model_bundle.bundle import load_bundle, read_champion
from tallystick.storage.atomic_files import write_text
from tallystick_simulation.outcome import score
from tallystick_simulation.pictures import draw_parity, draw_performance
from tallystick_simulation.replay import Played, Replay, Stopwatch
from tallystick_simulation.replay_server import ReplayServer
from tallystick_simulation.replay_summary import report, summarize
from tallystick_simulation.scenario import Scenario

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.records.record_store import ParityReport

GRACE = timedelta(days=3)
"""Time after the last day in which its labels become known."""


def play(
    repo: Repo,
    scenario: Scenario,
    *,
    clock: SimulatedClock,
    out: Path,
    tell: Callable[[float, str], None],
) -> str:
    """Apply, train, materialize, serve, replay, and report.

    Args:
        repo: The repo.
        scenario: What to play.
        clock: The simulated time, which stands at ``scenario.train_until``.
        out: Folder for summary and pictures.
        tell: Called with the share done and one sentence.
    """
    from tallystick.online_store import embedded_redis

    stopwatch = Stopwatch()
    started = time.perf_counter()
    try:
        _prepare(repo, scenario, stopwatch, tell)
        first = load_bundle(
            repo.state_dir,
            scenario.model,
            read_champion(repo.state_dir, scenario.model).contract_hash,
        )
        played = _replay(repo, scenario, clock=clock, out=out, stopwatch=stopwatch, tell=tell)
        with stopwatch.stage("report"):
            end = datetime.combine(max(scenario.days), datetime.min.time(), tzinfo=UTC) + GRACE
            scored = score(repo, scenario.model, first, until=end)
            draw_performance(out / "performance.png", scored, played)
            draw_parity(out / "parity.png", scenario, played)
            audited = _audited(repo, scenario)
            write_text(out / "audit.json", audited.model_dump_json(indent=1))
    finally:
        embedded_redis.stop(repo.state_dir)
    counted = sum(stopwatch.seconds.values())
    seconds = {**stopwatch.seconds, "other": time.perf_counter() - started - counted}
    summary = summarize(scenario, played, scored, audited, seconds)
    write_text(out / "summary.json", json.dumps(summary, indent=1))
    return (
        f"{report(summary)}\n"
        f"Written to {out}: summary.json, audit.json, performance.png, parity.png"
    )


def _audited(repo: Repo, scenario: Scenario) -> ParityReport:
    """What the audit says of the time in which the staged outage did harm."""
    from tallystick_monitoring.audit.audit_run import audit

    outage = scenario.outage
    return audit(repo, scenario.model, start=outage.start, end=outage.end).report


def _prepare(
    repo: Repo, scenario: Scenario, stopwatch: Stopwatch, tell: Callable[[float, str], None]
) -> None:
    from tallystick_training.train_command import train

    with stopwatch.stage("apply"):
        tell(0.0, "applying the definitions")
        apply(repo)
    with stopwatch.stage("train"):
        for name in (scenario.model, *scenario.also):
            tell(0.0, f"training {name}")
            train(repo, name, end=scenario.train_until, promote=True)
    with stopwatch.stage("materialize"):
        tell(0.0, "bringing history online")
        Materializer(repo).run(until=scenario.train_until)


def _replay(
    repo: Repo,
    scenario: Scenario,
    *,
    clock: SimulatedClock,
    out: Path,
    stopwatch: Stopwatch,
    tell: Callable[[float, str], None],
) -> Played:
    with stopwatch.stage("server start"):
        server = ReplayServer(repo.path, out / "server.log")
    try:
        replay = Replay(repo, scenario, clock=clock, server=server, stopwatch=stopwatch, tell=tell)
        return asyncio.run(replay.run())
    finally:
        server.stop()
