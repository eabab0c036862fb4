"""Scores of a replay: the retrained champions against the first one, never retrained."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.model_bundle.bundle import Bundle
from tallystick.model_bundle.evaluation_metrics import Floats, scores
from tallystick.model_bundle.model_matrix import feature_matrix
from tallystick.prediction_log.log_reader import read_labels, read_log

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


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
        until: ReplayRequests before this time, with the labels known by then.
    """
    labels = read_labels(repo.state_dir, model, known_until=until)
    known: dict[str, int] = {}
    if labels is not None:
        ordered = labels.sort_by("known_time")
        ids, values = ordered["prediction_id"].to_pylist(), ordered["value"].to_pylist()
        known = dict(zip(ids, values, strict=True))
    logged = 0
    rows: list[tuple[datetime, int, float, float]] = []
    for part in read_log(repo.state_dir, model, start=BEGINNING, end=until):
        table = part.table
        logged += table.num_rows
        columns = {name: table[f"feature.{name}"] for name in first.contract.feature_names}
        matrix = feature_matrix(first.contract, columns)
        never = first.estimator.predict_proba(matrix)[:, 1]
        for time, prediction_id, answer, other in zip(
            table["request_time"].to_pylist(),
            table["prediction_id"].to_pylist(),
            table["prediction"].to_pylist(),
            never.tolist(),
            strict=True,
        ):
            if prediction_id in known:
                rows.append((time, known[prediction_id], answer, other))
    rows.sort()
    return ReplayScores(
        logged=logged,
        weeks=np.array([iso_week(time) for time, *_ in rows]),
        outcomes=np.array([outcome for _, outcome, *_ in rows], dtype=np.float64),
        loop=np.array([answer for _, _, answer, _ in rows]),
        never=np.array([other for *_, other in rows]),
    )


def iso_week(moment: datetime) -> str:
    """The ISO week of a moment.

    >>> iso_week(datetime(2013, 7, 4))
    '2013-W27'
    """
    year, week, _ = moment.isocalendar()
    return f"{year}-W{week:02d}"
