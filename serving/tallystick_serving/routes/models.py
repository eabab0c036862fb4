"""Routes that show the models and the version of each that answers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from tallystick_serving.server_state import state_of

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """List the models that can answer."""
    return {"models": sorted(state_of(request).champions.predictors)}


@router.get("/v1/models/{name}")
async def show_model(request: Request, name: str) -> dict[str, Any]:
    """Show the version of a model that answers, and the form it is computed in."""
    predictor = state_of(request).champions.predictor(name)
    champion = predictor.champion
    return {
        "name": champion.model,
        "ready": True,
        "version": champion.version,
        "contract_hash": champion.contract_hash,
        "form": predictor.scorer.form,
    }
