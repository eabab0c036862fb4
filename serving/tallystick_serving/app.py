"""The app: routes, errors and measures put together."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallystick.settings import Settings, settings
from tallystick_serving import problems
from tallystick_serving.measures import Measures
from tallystick_serving.project import Project
from tallystick_serving.routes import features, labels, models, predictions, status
from tallystick_serving.service import open_service

ROUTERS = (predictions.router, labels.router, models.router, features.router, status.router)


def create_app(project: Project, limits: Settings | None = None) -> FastAPI:
    """The HTTP API of a repo; docs/http-api.md describes it.

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
    problems.install(app)
    app.add_middleware(_Counted, measures=measures)
    return app


class _Counted:
    """Counts answers by route and status; plain ASGI, which costs least."""

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def counted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted_send)
        finally:
            route = scope.get("route")
            self._measures.count_request(
                "unknown" if route is None else route.path, status, time.perf_counter() - started
            )
