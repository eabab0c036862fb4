"""What predictions were worth, once their labels have matured."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import DAY_US, HOUR_US
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.model_bundle.evaluation_metrics import (
    CLIP,
    log_losses,
    scores,
    slice_labels,
    slice_scores,
)
from tallystick.prediction_log.log_reader import LogPart, read_log
from tallystick.records.quarantine import touched
from tallystick.records.record_store import Incident, PerformanceReport, load_records
from tallystick.retrieval.prediction_labels import LoggedLabels, labels_of, logged_as
from tallystick_monitoring.log_columns import Floats, Int64s, microseconds

LOOK_BACK = timedelta(days=28)
"""Requests older than this say little of how the model does now."""

LABELLED_MIN = 200
"""Labelled requests without which a gain is not estimated."""

DELAY_HOURS = (1, 2, 4, 8, 12, 24, 48, 96, 168, 336, 720)
"""Hours after a request at which the share of known labels is reported."""


def performance(repo: Repo, contract: ModelContract, *, at: datetime) -> PerformanceReport:
    """Score the requests since the contract's training whose labels have matured by ``at``.

    Only requests old enough for every label to be there are looked at: labels that come early are
    not those that come late. The gain is estimated on the contract's own predictions alone.

    Args:
        repo: An applied repo.
        contract: The champion's.
        at: When the look is taken. Labels known later are not used, and of corrections the last
            known one counts.

    Raises:
        DataError: The label source is not as declared.
    """
    end = at - timedelta(microseconds=contract.label.matures_after_us)
    start = min(max(contract.data.end, end - LOOK_BACK), end)
    incidents = load_records(repo.state_dir, Incident, model=contract.model)
    parts = read_log(
        repo.state_dir,
        contract.model,
        start=start,
        end=end,
        columns=partial(_columns, incidents=incidents),
    )
    requests = sum(part.table.num_rows for part in parts)
    if not requests:
        return PerformanceReport(start=start, end=end, requests=0, labelled=0)
    known = [labels_of(repo, part, at=at) for part in parts]
    rows = _labelled(parts, [each.values for each in known], slices=contract.slices)
    outcomes, predictions = rows["outcome"].to_numpy(), rows["prediction"].to_numpy()
    mine = [
        (part, _outside(incidents, part, each.values))
        for part, each in zip(parts, known, strict=True)
        if part.contract.contract_hash == contract.contract_hash
    ]
    own = _labelled([part for part, _ in mine], [outcome for _, outcome in mine])
    gain, error = recalibration_gain(
        own["outcome"].to_numpy(),
        own["prediction"].to_numpy(),
        microseconds(own["request_time"]) // DAY_US,
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
            if f"slice.{name}" in rows.column_names
            if (found := slice_scores(outcomes, predictions, rows[f"slice.{name}"].to_numpy()))
        },
        label_delays=label_delays(parts, known, matures_after_us=contract.label.matures_after_us),
        gain_per_request=gain,
        gain_standard_error=error,
    )


def _columns(contract: ModelContract, *, incidents: Sequence[Incident]) -> list[str]:
    """The columns of the log that are needed here."""
    names = [*contract.label.keys, *contract.slices, *_affected_keys(contract, incidents)]
    return list(
        dict.fromkeys(
            ["prediction_id", "request_time", "prediction"]
            + [logged_as(contract, name) for name in names]
        )
    )


def label_delays(
    parts: Sequence[LogPart], labels: Sequence[LoggedLabels], *, matures_after_us: int
) -> dict[str, float]:
    """How soon labels come: hours after the request → share of the requests labelled by then.

    All of these requests are older than ``matures_after``, so that none is too young for a share.
    A label that was corrected counts from when it first came.

    Args:
        parts: The requests.
        labels: Their labels.
        matures_after_us: When labels count as mature, in microseconds.

    Returns:
        Shares in ascending order of hours, the last one for ``matures_after``. Without requests
        there are none.
    """
    delays = [
        each.first_known_us - microseconds(part.table["request_time"])
        for part, each in zip(parts, labels, strict=True)
    ]
    every = np.concatenate(delays) if delays else np.empty(0)
    if not len(every):
        return {}
    matures_h = matures_after_us / HOUR_US
    hours = [*(hour for hour in DELAY_HOURS if hour < matures_h), matures_h]
    # What never came is NaN, and not below anything.
    return {f"{hour:g}": float((every <= hour * HOUR_US).mean()) for hour in hours}


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
        Nats per request. None with fewer than :data:`LABELLED_MIN` rows, if the older half knows
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


def _outside(incidents: Sequence[Incident], part: LogPart, labels: Floats) -> Floats:
    """The labels of a part, NaN where an incident touched the request."""
    names = _affected_keys(part.contract, incidents)
    keys = {name: part.table[f"entity.{name}"] for name in names}
    return np.where(touched(incidents, part.table["request_time"], keys), np.nan, labels)


def _affected_keys(contract: ModelContract, incidents: Sequence[Incident]) -> list[str]:
    """The entity keys by which incidents say what they affected."""
    named = {name for each in incidents if each.keys is not None for name in each.keys.names}
    return [key.name for key in contract.entity_keys if key.name in named]


def _labelled(
    parts: Sequence[LogPart], labels: Sequence[Floats], *, slices: Sequence[str] = ()
) -> pa.Table:
    """The labelled rows of some parts, by request time.

    Returns:
        ``request_time``, ``outcome``, ``prediction``, and ``slice.<name>`` of those slices (an
        entity key, a request field or a feature) that all parts have.
    """
    moment = pa.timestamp("us", tz="UTC")
    fields = [("request_time", moment), ("outcome", pa.float64()), ("prediction", pa.float64())]
    slices = [
        name
        for name in slices
        if all(logged_as(part.contract, name) in part.table.column_names for part in parts)
    ]
    tables = [
        pa.table(
            {
                "request_time": part.table["request_time"],
                "outcome": outcomes,
                "prediction": part.table["prediction"],
                **{
                    f"slice.{name}": pa.array(
                        slice_labels(part.table[logged_as(part.contract, name)]).tolist(),
                        pa.string(),
                    )
                    for name in slices
                },
            }
        )
        for part, outcomes in zip(parts, labels, strict=True)
    ]
    rows = pa.concat_tables([pa.schema(fields).empty_table(), *tables], promote_options="default")
    return rows.filter(pc.is_finite(rows["outcome"])).sort_by("request_time")
