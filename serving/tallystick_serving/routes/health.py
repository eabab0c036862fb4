"""Whether the server lives, whether it can answer, and what it has done."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from tallystick_serving.error_responses import MEDIA_TYPE, RETRY_AFTER_S
from tallystick_serving.server_state import service_of

router = APIRouter()


@router.get("/health")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether predictions can be answered; if not, every reason.

    A new champion that cannot be loaded is a warning while an older one answers.
    """
    service = service_of(request)
    reasons = await service.reasons_not_ready()
    warnings = [
        f"model {model} stays with version {service.champions.predictors[model].champion.version}: "
        f"{reason}"
        for model, reason in service.champions.failures.items()
        if model in service.champions.predictors
    ]
    if not reasons:
        body = {"status": "ready", "models": sorted(service.champions.predictors)}
        return Response(orjson.dumps(body | {"warnings": warnings}), media_type="application/json")
    problem = {
        "type": "urn:tallystick:problem:not-ready",
        "title": "The server cannot answer yet",
        "status": 503,
        "detail": f"{len(reasons)} things are missing; see reasons.",
        "reasons": reasons,
        "warnings": warnings,
    }
    return Response(
        orjson.dumps(problem),
        status_code=503,
        headers={"Retry-After": str(RETRY_AFTER_S)},
        media_type=MEDIA_TYPE,
    )


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(service_of(request).measures.text(), media_type=CONTENT_TYPE_LATEST)
