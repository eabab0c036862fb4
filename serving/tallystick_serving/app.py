"""The app: routes, admission control and the clients that live as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from tallystick.settings import Settings, settings
from tallystick_serving import error_responses
from tallystick_serving.admission import AdmissionControl
from tallystick_serving.fast_path import FastPath, FastRoute
from tallystick_serving.routes import features, health, labels, models, predictions
from tallystick_serving.server_metrics import ServerMetrics
from tallystick_serving.server_state import ServerState, open_state
from tallystick_serving.store_config import StoreConfig

ROUTERS = (labels.router, models.router, features.router, health.router)
FAST_ROUTES = (
    FastRoute("/v1/models/{name}:predict", predictions.predict),
    FastRoute("/v1/models/{name}:features", predictions.read_features),
    FastRoute("/get-online-features", features.get_online_features),
)
PATHS = frozenset(
    [route.path for route in FAST_ROUTES]
    + [route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
)
"""Every route that the server answers."""


def create_app(
    config: StoreConfig,
    limits: Settings | None = None,
    *,
    while_open: Callable[[ServerState], AbstractContextManager[Any]] = nullcontext,
) -> ASGIApp:
    """The HTTP API of a repo, as an ASGI app; docs/http-api.md describes it.

    Args:
        config: The repo.
        limits: Settings; default those of the process.
        while_open: A context that the app's clients and logs are used in.
    """
    chosen = settings() if limits is None else limits
    metrics = ServerMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_state(config, chosen, metrics) as state:
            app.state.server = fast_path.state = state
            with while_open(state):
                yield

    # No generated pages: OpenAPI does not know the models' contracts, which bodies must fit.
    app = FastAPI(
        title="Tallystick", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None
    )
    for router in ROUTERS:
        app.include_router(router)
    error_responses.install(app)
    fast_path = FastPath(app, FAST_ROUTES)
    return AdmissionControl(fast_path, route_of=fast_path.route_of, limits=chosen, metrics=metrics)
