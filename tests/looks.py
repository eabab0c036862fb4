"""Looks at a model, made up: what a test of the retraining decision needs of monitoring."""

from __future__ import annotations

from datetime import timedelta

from tallystick.records.record_store import (
    DriftReport,
    FeatureDrift,
    Incident,
    MonitorReport,
    ParityReport,
    PerformanceReport,
)


def drift(*, drifted):
    return FeatureDrift(
        psi=0.3 if drifted else 0.01,
        limit=0.1,
        null_share=0.0,
        null_share_reference=0.0,
        drifted=drifted,
    )


def incident(*, is_open, requests, at, model="demo", view="item_stats"):
    return Incident(
        incident_id="i",
        model=model,
        view=view,
        cause="materialization_lag",
        start=at - timedelta(days=3),
        end=at - timedelta(days=1),
        found_at=at,
        requests=requests,
        values=requests,
        is_open=is_open,
        evidence="",
    )


def report(
    *,
    at,
    contract_hash,
    model="demo",
    gain=0.0,
    error=0.0,
    labels=1_000,
    drifted=False,
    prediction_drifted=False,
    incidents=(),
    unexplained=0,
):
    start = at - timedelta(days=10)
    return MonitorReport(
        model=model,
        at=at,
        start=start,
        end=at,
        contract_hash=contract_hash,
        parity=ParityReport(
            model=model,
            start=start,
            end=at,
            requests=10_000,
            values=30_000,
            equal=30_000 - unexplained,
            causes={"unexplained": unexplained} if unexplained else {},
            views={},
        ),
        freshness={},
        drift=DriftReport(
            rows=10_000,
            features={"v__f": drift(drifted=drifted)},
            prediction=drift(drifted=prediction_drifted),
        ),
        performance=PerformanceReport(
            start=start,
            end=at,
            requests=10_000,
            labelled=labels,
            gain_per_request=gain,
            gain_standard_error=error,
        ),
        incidents=list(incidents),
    )
