"""The two plots of a replay."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.model_bundle.evaluation_metrics import Floats
from tallystick.storage.atomic_files import replacing
from tallystick_simulation.replay import ReplayResult
from tallystick_simulation.replay_scores import ReplayScores, iso_week
from tallystick_simulation.scenario import Scenario

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEVER, LOOP, BAD = "#8a8f98", "#0b6e6e", "#c0392b"
HALF_WINDOW = 2
HOUR = timedelta(hours=1)
SIZE_INCHES = (10.0, 4.2)


def plot_performance(path: Path, scores: ReplayScores, result: ReplayResult) -> None:
    """Plot log loss by week of the loop and of the first model, with the retrainings.

    Points are weeks; lines are means over five weeks, weighted by requests, since a
    week of one or two days is mostly noise.
    """
    figure, axes = _figure("Log loss by week of request; lines over five weeks (lower is better)")
    weekly = scores.weekly()
    weeks = list(weekly)
    rows = np.array([week["rows"] for week in weekly.values()])
    for who, color, label in (("never", NEVER, "never retrained"), ("loop", LOOP, "the loop")):
        losses = np.array([week[who] for week in weekly.values()])
        axes.plot(weeks, losses, color=color, alpha=0.35, marker=".", linestyle="none")
        axes.plot(weeks, _smooth(losses, rows), color=color, linewidth=2, label=label)
    label = "new champion"
    for decision in result.decisions:
        week = iso_week(decision.at)
        if decision.promoted and week in weeks:
            axes.axvline(week, color=LOOP, alpha=0.5, linewidth=1, linestyle=":", label=label)
            label = "_nolegend_"
    axes.legend(frameon=False, ncols=3, fontsize=9)
    _save(figure, axes, weeks, path)


def plot_parity(path: Path, scenario: Scenario, result: ReplayResult) -> None:
    """Plot the share of served values that equal the expected ones, by week, with the outage."""
    figure, axes = _figure("Served values that equal the expected ones, by week (%)")
    weeks = [iso_week(look.start) for look in result.looks]
    shares = [100 * look.parity.equal / max(look.parity.values, 1) for look in result.looks]
    axes.plot(weeks, shares, color=LOOP, marker="o", markersize=3)
    staged = iso_week(scenario.outage.start)
    if staged in weeks:
        low = shares[weeks.index(staged)]
        hours = (scenario.outage.end - scenario.outage.start) / HOUR
        axes.annotate(
            f"{scenario.outage.view}: not brought online for {hours:g} hours",
            xy=(staged, low),
            xytext=(12, 8),
            textcoords="offset points",
            color=BAD,
            arrowprops={"arrowstyle": "-", "color": BAD},
        )
    _save(figure, axes, weeks, path)


def _smooth(values: Floats, weights: Floats) -> Floats:
    """Weighted mean over each value and the two before and after it."""
    window = np.ones(2 * HALF_WINDOW + 1)
    sums = np.convolve(values * weights, window, mode="full")
    totals = np.convolve(weights, window, mode="full")
    smooth: Floats = (sums / totals)[HALF_WINDOW : HALF_WINDOW + len(values)]
    return smooth


def _figure(title: str) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    return figure, axes


def _save(figure: Figure, axes: Any, weeks: list[str], path: Path) -> None:
    shown = range(0, len(weeks), max(1, len(weeks) // 12))
    axes.set_xticks(list(shown), [weeks[index] for index in shown], fontsize=8)
    axes.margins(x=0.01)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
