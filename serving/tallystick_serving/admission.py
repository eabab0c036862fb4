"""The way in: a bound on what is worked on at once, and a short way for what must be quick.

Every request with a body comes through here. Its body is read first, whole and in bounded time, so
that a slow or dead client keeps nobody waiting; then it takes one of a bounded number of places, or
is refused at once; and it gives its place back before its answer is sent, so that a client that
does not read keeps no place either.

Predictions and features are answered from here, without the framework's machinery for each
request, which takes longer than a prediction. All other routes go on to the app.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallystick.errors import TallystickError
from tallystick.settings import Settings
from tallystick_serving import error_responses
from tallystick_serving.server_metrics import Measures

if TYPE_CHECKING:
    from tallystick_serving.server_state import Service

logger = logging.getLogger(__name__)

Handler: TypeAlias = "Callable[[Service, str, bytes], Awaitable[bytes]]"
"""Answers a body with JSON: service, the path's parameter (or an empty text), body."""
WHOLE: Final = "tallystick.whole"
"""Set in the scope of a request whose body has arrived, if the server says so."""
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})


@dataclass(frozen=True, slots=True)
class Direct:
    """A route that is answered here.

    Attributes:
        path: Its path, with at most one parameter in braces.
        handler: What answers it.
        pattern: The path as an expression.
    """

    path: str
    handler: Handler
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, path: str, handler: Handler) -> Direct:
        """The route at a path."""
        start, brace, rest = path.partition("{")
        end = rest.partition("}")[2]
        parameter = "([^/]+)" if brace else ""
        return cls(path, handler, re.compile(re.escape(start) + parameter + re.escape(end)))


class ClientGoneError(Exception):
    """The client went away before its request was whole."""


class Lane:
    """The outermost part of the app; plain ASGI, which costs least.

    Args:
        app: What answers all other routes.
        routes: What is answered here.
        service: Gives what the handlers work with; None before the app has started.
        limits: How much is taken at once, and how long a body may take.
        measures: Where requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Sequence[Direct],
        service: Callable[[], Service | None],
        limits: Settings,
        measures: Measures,
    ) -> None:
        self._app = app
        self._routes = [(route.pattern.fullmatch, route.path, route.handler) for route in routes]
        self._service = service
        self._limits = limits
        self._measures = measures
        self._in_flight = 0
        measures.watch_in_flight(lambda: self._in_flight)

    @property
    def service(self) -> Service | None:
        """What the handlers work with, once the app has started."""
        return self._service()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or have the app answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        for match, path, handler in self._routes:
            if found := match(scope["path"]):
                groups = found.groups()
                status = await self._answer(
                    scope, receive, send, handler, groups[0] if groups else ""
                )
                self._measures.count_request(path, status, time.perf_counter() - started)
                return
        status = 500
        try:
            status = await self._pass_on(scope, receive, send)
        finally:
            route = scope.get("route")
            self._measures.count_request(
                "unknown" if route is None else route.path, status, time.perf_counter() - started
            )

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, handler: Handler, name: str
    ) -> int:
        """Answer a request here; give the status."""
        try:
            _check_method(scope)
            body = await self._body(scope, receive)
            self._take_place()
            try:
                service = self._service()
                assert service is not None  # the app starts before it is asked
                content = await handler(service, name, body)
            finally:
                self._in_flight -= 1
        except ClientGoneError:
            return 499
        except TallystickError as error:
            return await _send(error_responses.response_of(error), scope, receive, send)
        except Exception:
            logger.exception("A request failed.")
            return await _send(error_responses.unforeseen(), scope, receive, send)
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(content)),
                ],
            }
        )
        await send({"type": "http.response.body", "body": content})
        return 200

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> int:
        """Have the app answer a request; give the status."""
        status = 500
        holds_place = False

        async def watched_send(message: Message) -> None:
            nonlocal status, holds_place
            if message["type"] == "http.response.start":
                status = message["status"]
                if holds_place:
                    holds_place = False
                    self._in_flight -= 1
            await send(message)

        try:
            if scope["method"] not in _BODILESS:
                receive = _again(await self._body(scope, receive), receive)
                self._take_place()
                holds_place = True
            await self._app(scope, receive, watched_send)
        except ClientGoneError:
            return 499
        except TallystickError as error:
            return await _send(error_responses.response_of(error), scope, receive, send)
        finally:
            if holds_place:
                self._in_flight -= 1
        return status

    def _take_place(self) -> None:
        """Take a place; to be given back.

        Raises:
            BusyError: There is none.
        """
        if self._in_flight >= self._limits.requests_in_flight_max:
            raise error_responses.BusyError(
                "The server", f"{self._in_flight} requests are being worked on, the most it takes"
            )
        self._in_flight += 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Read a body whole, no further than allowed and no longer.

        Raises:
            TooLargeError: It is larger.
            TooSlowError: It takes longer.
            ClientGoneError: The client went away.
        """
        bytes_max = self._limits.request_bytes_max
        if scope.get(WHOLE):  # so that nothing is waited for, and a timer would be for nothing
            return await _whole(receive, bytes_max)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > bytes_max:
                raise error_responses.TooLargeError(
                    f"The body has {int(value)} bytes; at most {bytes_max} are allowed."
                )
        try:
            async with asyncio.timeout(self._limits.request_body_timeout_s):
                return await _whole(receive, bytes_max)
        except TimeoutError as error:
            raise error_responses.TooSlowError(
                f"The body did not arrive within {self._limits.request_body_timeout_s:g} s."
            ) from error


def _check_method(scope: Scope) -> None:
    if scope["method"] != "POST":
        raise error_responses.MethodError(scope["method"], scope["path"])


async def _whole(receive: Receive, bytes_max: int) -> bytes:
    message = await _next(receive)
    body: bytes = message.get("body", b"")
    parts, total = [body], len(body)
    while message.get("more_body") and total <= bytes_max:
        message = await _next(receive)
        parts.append(message.get("body", b""))
        total += len(parts[-1])
    if total > bytes_max:
        raise error_responses.TooLargeError(
            f"The body has more than the {bytes_max} bytes allowed."
        )
    return body if len(parts) == 1 else b"".join(parts)


async def _next(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    return message


def _again(body: bytes, receive: Receive) -> Receive:
    """Give a body that was read to whoever reads it next."""
    parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again


async def _send(response: Response, scope: Scope, receive: Receive, send: Send) -> int:
    await response(scope, receive, send)
    return response.status_code
