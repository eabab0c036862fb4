"""Which models there are, and which version of each answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from tallystick_serving.server_state import service_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """Models that can answer."""
    return {"models": sorted(service_of(request).champions.predictors)}


@router.get("/v1/models/{name}")
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """Whether a model can answer, by which version, and in which form."""
    predictor = service_of(request).champions.predictor(name)
    champion = predictor.champion
    return {
        "name": champion.model,
        "ready": True,
        "version": champion.version,
        "contract_hash": champion.contract_hash,
        "form": predictor.scorer.form,
    }
