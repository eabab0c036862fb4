"""Routes for operations: liveness, readiness and metrics."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tallystick_serving.error_responses import PROBLEM_TYPES, NotReadyError, problem_response
from tallystick_serving.server_state import state_of

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """Answer while the process runs."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether the server can answer predictions; if not, every reason.

    A new champion that cannot be loaded is a warning while an older one answers.
    """
    state = state_of(request)
    reasons = await state.reasons_not_ready()
    warnings = [
        f"model {model} stays with version {state.champions.predictors[model].champion.version}: "
        f"{reason}"
        for model, reason in state.champions.failures.items()
        if model in state.champions.predictors
    ]
    if not reasons:
        body = {"status": "ready", "models": sorted(state.champions.predictors)}
        return Response(orjson.dumps(body | {"warnings": warnings}), media_type="application/json")
    return problem_response(
        PROBLEM_TYPES[NotReadyError], "; ".join(reasons), reasons=reasons, warnings=warnings
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
