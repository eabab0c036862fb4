"""Scores of a replay: the retrained champions against the first one, never retrained."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import EPOCH, arrow_to_us, from_us
from tallystick.model_bundle.bundle import Bundle
from tallystick.model_bundle.evaluation_metrics import Floats, scores
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.prediction_log.log_reader import read_log
from tallystick.retrieval.prediction_labels import labels_of

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo


@dataclass(frozen=True)
class ReplayScores:
    """The labelled predictions of a replay, by request time; every array has one value per row.

    Attributes:
        logged: Predictions in the log, labelled or not.
        weeks: ISO week of the request, as ``2013-W27``.
        outcomes: 0 or 1.
        loop: The served predictions.
        never: The first champion's predictions for the same features.
    """

    logged: int
    weeks: np.ndarray[Any, Any]
    outcomes: Floats
    loop: Floats
    never: Floats

    def performance(self) -> dict[str, dict[str, float]]:
        """Log loss, AUC and Brier score of both."""
        names = ("log_loss", "auc", "brier")
        both = {"never": self.never, "loop": self.loop}
        return {
            who: {name: scores(self.outcomes, predictions)[name] for name in names}
            for who, predictions in both.items()
        }

    def weekly(self) -> dict[str, dict[str, float]]:
        """Week → log loss of both, with ``rows``."""
        result = {}
        for week in np.unique(self.weeks):
            rows = self.weeks == week
            result[str(week)] = {
                "rows": float(rows.sum()),
                "never": scores(self.outcomes[rows], self.never[rows])["log_loss"],
                "loop": scores(self.outcomes[rows], self.loop[rows])["log_loss"],
            }
        return result


def score(repo: Repo, model: str, first: Bundle, *, until: datetime) -> ReplayScores:
    """Read log and labels, and score the first champion on the served features.

    Args:
        repo: The repo.
        model: The model.
        first: The first champion.
        until: Requests before this time, with the labels known by then.
    """
    found = []
    for part in read_log(repo.state_dir, model, start=EPOCH, end=until):
        table = part.table
        columns = {name: table[f"feature.{name}"] for name in first.contract.feature_names}
        never = first.estimator.predict_proba(feature_matrix(first.contract, columns))[:, 1]
        found.append(
            (
                arrow_to_us(table["request_time"]).to_numpy(),
                labels_of(repo, part, at=until).values,
                table["prediction"].to_numpy(),
                never,
            )
        )
    times, outcomes, loop, never = (np.concatenate(each) for each in zip(*found, strict=True))
    rows = np.argsort(times, kind="stable")
    rows = rows[~np.isnan(outcomes[rows])]
    return ReplayScores(
        logged=len(times),
        weeks=np.array([iso_week(from_us(time)) for time in times[rows].tolist()]),
        outcomes=outcomes[rows],
        loop=loop[rows],
        never=never[rows],
    )


def iso_week(moment: datetime) -> str:
    """The ISO week of a moment.

    >>> iso_week(datetime(2013, 7, 4))
    '2013-W27'
    """
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"
