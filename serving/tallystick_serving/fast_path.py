"""ASGI middleware: a fast path for predictions and features.

FastAPI's machinery for each request takes longer than a prediction, so that the routes that must be
fast are answered here. The app answers all others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from tallystick_serving.error_responses import MethodError

if TYPE_CHECKING:
    from tallystick_serving.server_state import ServerState

Handler: TypeAlias = "Callable[[ServerState, str, bytes], Awaitable[bytes]]"
"""Answers a body with JSON; takes the path's parameter, or an empty text."""


@dataclass(frozen=True, slots=True)
class FastRoute:
    """A POST route of the fast path.

    Attributes:
        path: Its path, with at most one parameter in braces.
        handler: What answers it.
    """

    path: str
    handler: Handler


class FastPath:
    """Answers its routes, and has the app answer all others.

    Args:
        app: The app behind it, which reads bodies from ``receive`` at once.
        routes: The routes that are answered here.

    Attributes:
        state: What the handlers work with; set when the app starts.
    """

    state: ServerState

    def __init__(self, app: ASGIApp, routes: Sequence[FastRoute]) -> None:
        self._app = app
        self._routes = [(compile_path(route.path)[0].fullmatch, route) for route in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        for match, route in self._routes if scope["type"] == "http" else ():
            if found := match(scope["path"]):
                scope["route"] = route
                break
        else:
            await self._app(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise MethodError(
                f"{scope['method']} {scope['path']}: this route takes POST. See docs/http-api.md."
            )
        body = (await receive())["body"]
        content = await route.handler(self.state, found[1] if found.re.groups else "", body)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def route_of(self, scope: Scope) -> str:
        """The path of a request's route without values, ``unknown`` if no route matches."""
        if (route := scope.get("route")) is None:
            for match, candidate in self._routes:
                if match(scope["path"]):
                    return candidate.path
            return "unknown"
        path: str = route.path
        return path
