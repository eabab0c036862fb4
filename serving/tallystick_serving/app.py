"""The app: routes, errors and measures put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.routing import APIRoute

from tallystick.settings import Settings, settings
from tallystick_serving import error_responses
from tallystick_serving.admission import Direct, Lane
from tallystick_serving.routes import features, health, labels, models, predictions
from tallystick_serving.server_metrics import Measures
from tallystick_serving.server_state import Service, open_service
from tallystick_serving.store_config import Project

ROUTERS = (labels.router, models.router, features.router, health.router)
DIRECT = (
    Direct.of("/v1/models/{name}:predict", predictions.predict),
    Direct.of("/v1/models/{name}:features", predictions.read_features),
    Direct.of("/get-online-features", features.get_online_features),
)
PATHS = frozenset(
    [route.path for route in DIRECT]
    + [route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
)
"""Every route that is answered."""


def create_app(project: Project, limits: Settings | None = None) -> Lane:
    """The HTTP API of a repo, as an ASGI app; docs/http-api.md describes it.

    Args:
        project: The repo.
        limits: Settings; default those of the process.
    """
    chosen = settings() if limits is None else limits
    measures = Measures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_service(project, chosen, measures) as service:
            app.state.service = service
            yield

    # No generated pages: bodies are checked by the models' contracts, which OpenAPI does not know.
    app = FastAPI(
        title="Tallystick", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None
    )
    for router in ROUTERS:
        app.include_router(router)
    error_responses.install(app)

    def service() -> Service | None:
        return getattr(app.state, "service", None)

    return Lane(app, routes=DIRECT, service=service, limits=chosen, measures=measures)
