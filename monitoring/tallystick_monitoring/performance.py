"""What predictions were worth, once their labels have matured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import to_us
from tallystick.contract import ModelContract
from tallystick.metrics import CLIP, log_losses, scores, slice_labels, slice_scores
from tallystick.prediction_log.reader import LogPart, read_labels, read_log
from tallystick.records import Incident, PerformanceReport, load_records
from tallystick.repo import Repo
from tallystick.truth import known_labels
from tallystick_monitoring.evidence import microseconds

if TYPE_CHECKING:
    import pyarrow as pa

LOOK_BACK = timedelta(days=28)
"""Requests older than this say little of how the model does now."""

LABELLED_MIN = 200
"""Labelled requests without which a gain is not estimated."""

Floats = np.ndarray[Any, np.dtype[np.float64]]
Int64s = np.ndarray[Any, np.dtype[np.int64]]


def performance(repo: Repo, contract: ModelContract, *, at: datetime) -> PerformanceReport:
    """Score the requests since the contract's training whose labels have matured by ``at``.

    Only requests old enough for every label to be there are looked at: labels that come early are
    not those that come late. The gain is estimated on the contract's own predictions alone.

    Args:
        repo: An applied repo.
        contract: The champion's.
        at: When the look is taken; labels known later are not used, and of corrections the last
            known one counts.

    Raises:
        DataError: The label source is not as declared.
    """
    end = at - timedelta(microseconds=contract.label.matures_after_us)
    start = min(max(contract.data.end, end - LOOK_BACK), end)
    parts = read_log(repo.state_dir, contract.model, start=start, end=end, columns=_columns)
    requests = sum(part.table.num_rows for part in parts)
    if not requests:
        return PerformanceReport(start=start, end=end, requests=0, labelled=0)
    labels = [labels_of(repo, part, at=at) for part in parts]
    outcomes, predictions, _ = _pairs(parts, labels)
    incidents = load_records(repo.state_dir, Incident, model=contract.model)
    mine = [
        (part, _outside(incidents, part, known))
        for part, known in zip(parts, labels, strict=True)
        if part.contract.contract_hash == contract.contract_hash
    ]
    gain, error = recalibration_gain(
        *_pairs([part for part, _ in mine], [known for _, known in mine])
    )
    return PerformanceReport(
        start=start,
        end=end,
        requests=requests,
        labelled=len(outcomes),
        positive_share=float(outcomes.mean()) if len(outcomes) else None,
        mean_prediction=float(predictions.mean()) if len(outcomes) else None,
        metrics=scores(outcomes, predictions),
        slices={
            name: found
            for name in contract.slices
            if (found := _slice(parts, labels, name, outcomes, predictions))
        },
        gain_per_request=gain,
        gain_standard_error=error,
    )


def _columns(contract: ModelContract) -> list[str]:
    """The columns of the log that are needed here."""
    names = [*contract.label.keys, *contract.slices]
    return list(
        dict.fromkeys(
            ["prediction_id", "request_time", "prediction"]
            + [_logged_as(contract, name) for name in names]
        )
    )


def _logged_as(contract: ModelContract, name: str) -> str:
    """The log's column of an entity key, a request field or a feature."""
    if name in {key.name for key in contract.entity_keys}:
        return f"entity.{name}"
    if name in {field.name for field in contract.request_fields}:
        return f"request.{name}"
    return f"feature.{name}"


def labels_of(repo: Repo, part: LogPart, *, at: datetime) -> Floats:
    """The labels of a part's predictions that were known by ``at``; NaN where there is none.

    A label that was sent for the prediction counts most, then one that was sent for its keys and
    request time, then the label source's.

    Returns:
        0 or 1 or NaN, of shape (rows,), in the order of the part.
    """
    contract, log = part.contract, part.table
    model = repo.model(contract.model)
    keys = list(contract.label.keys)
    asked = log.select(
        ["prediction_id", "request_time", *(_logged_as(contract, key) for key in keys)]
    ).rename_columns(["prediction_id", "request_time", *keys])
    if not log.num_rows:
        return np.empty(0)
    times = log["request_time"]
    known = known_labels(
        repo,
        model,
        contract,
        known_until=at,
        between=(times[0].as_py(), times[-1].as_py() + timedelta(microseconds=1)),
    )
    labels = _joined(asked, known, [*keys, "request_time"])
    sent = read_labels(repo.state_dir, contract.model, known_until=at)
    if sent is None:
        return labels
    sent = sent.rename_columns(
        [{"value": "label"}.get(name, name.removeprefix("key.")) for name in sent.column_names]
    )
    for by in ([*keys, "request_time"], ["prediction_id"]):
        found = _joined(asked, _last_known(sent, by), by)
        labels = np.where(np.isnan(found), labels, found)
    return labels


def recalibration_gain(
    outcomes: Floats, predictions: Floats, days: Int64s
) -> tuple[float, float] | tuple[None, None]:
    """Log loss that a recalibration saves per request, and its standard error.

    ``a + b·logit(p)`` is fitted on the older half of the rows and evaluated on the newer half: what
    the model's outputs alone, read differently, would have saved.

    Args:
        outcomes: 0 or 1, by request time, of shape (rows,).
        predictions: Probabilities, of shape (rows,).
        days: Number of the day of each request, of shape (rows,). The requests of a day share what
            made it a good or a bad one, so the error is that of days, not of requests (Liang and
            Zeger, "Longitudinal data analysis using generalized linear models", 1986).

    Returns:
        Nats per request; None with fewer than :data:`LABELLED_MIN` rows, if the older half knows
        one outcome only, or if the newer half has one day only.
    """
    half = len(outcomes) // 2
    if len(outcomes) < LABELLED_MIN or len(np.unique(outcomes[:half])) < 2:  # noqa: PLR2004 outcomes
        return None, None
    newer_days, day = np.unique(days[half:], return_inverse=True)
    if len(newer_days) == 1:
        return None, None
    from sklearn.linear_model import LogisticRegression

    clipped = np.clip(predictions, CLIP, 1 - CLIP)
    logits = np.log(clipped / (1 - clipped)).reshape(-1, 1)
    # So weak a penalty is none, and keeps the fit finite where the outcomes can be separated.
    fitted = LogisticRegression(C=1e6).fit(logits[:half], outcomes[:half])
    recalibrated = fitted.predict_proba(logits[half:])[:, 1]
    newer = outcomes[half:]
    saved = log_losses(newer, predictions[half:]) - log_losses(newer, recalibrated)
    deviations = np.bincount(day, weights=saved - saved.mean())
    spread = (deviations**2).sum() * len(newer_days) / (len(newer_days) - 1)
    return float(saved.mean()), float(np.sqrt(spread) / len(saved))


def _joined(asked: pa.Table, labels: pa.Table, by: Sequence[str]) -> Floats:
    """Label of each asked row by the columns ``by``, NaN where there is none."""
    import pyarrow as pa

    numbered = asked.select(list(by)).append_column("row", pa.array(np.arange(asked.num_rows)))
    found = numbered.join(labels.select([*by, "label"]), keys=list(by), join_type="inner")
    answer = np.full(asked.num_rows, np.nan)
    answer[found["row"].to_numpy()] = found["label"].to_numpy()
    return answer


def _last_known(sent: pa.Table, by: Sequence[str]) -> pa.Table:
    """The last known label for each value of the columns ``by``, without rows that lack one."""
    import pyarrow.compute as pc

    for name in by:
        sent = sent.filter(pc.is_valid(sent[name]))
    return (
        sent.sort_by([("known_time", "descending")])
        .group_by(list(by), use_threads=False)
        .aggregate([("label", "first")])
        .rename_columns([*by, "label"])
    )


def _outside(incidents: Sequence[Incident], part: LogPart, labels: Floats) -> Floats:
    """The labels of a part, NaN where the request lies in an incident; an open one has no end."""
    asked = microseconds(part.table["request_time"])
    touched = np.zeros(len(asked), dtype=np.bool_)
    for incident in incidents:
        inside = asked >= to_us(incident.start)
        touched |= inside if incident.is_open else inside & (asked <= to_us(incident.end))
    return np.where(touched, np.nan, labels)


def _pairs(parts: Sequence[LogPart], labels: Sequence[Floats]) -> tuple[Floats, Floats, Int64s]:
    """Outcomes, predictions and days of the labelled rows of some parts, by request time."""
    if not parts:
        return np.empty(0), np.empty(0), np.empty(0, dtype=np.int64)
    outcomes = np.concatenate(labels)
    predictions = np.concatenate([part.table["prediction"].to_numpy() for part in parts])
    times = np.concatenate([part.table["request_time"].to_numpy() for part in parts])
    order = np.argsort(times, kind="stable")
    order = order[~np.isnan(outcomes[order])]
    days = times.astype("datetime64[D]").astype(np.int64)
    return outcomes[order], predictions[order], days[order]


def _slice(
    parts: Sequence[LogPart],
    labels: Sequence[Floats],
    name: str,
    outcomes: Floats,
    predictions: Floats,
) -> dict[str, dict[str, float]]:
    """Scores by the values of a slice: an entity key, a request field or a feature."""
    values = []
    for part in parts:
        column = _logged_as(part.contract, name)
        if column not in part.table.column_names:
            return {}
        values.append(slice_labels(part.table[column]))
    known = np.concatenate(labels)
    times = np.concatenate([part.table["request_time"].to_numpy() for part in parts])
    order = np.argsort(times, kind="stable")
    order = order[~np.isnan(known[order])]
    return slice_scores(outcomes, predictions, np.concatenate(values)[order])
