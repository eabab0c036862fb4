"""ASGI middleware: admission control.

The body of a request is read first, whole and in bounded time, so that a slow or dead client
delays no other. The request then counts against ``requests_in_flight_max``, or is refused at once.
It stops counting before its answer is sent, so that a client that does not read holds no slot.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tallystick.settings import Settings
from tallystick_serving.error_responses import BusyError, TooLargeError, TooSlowError, response_of
from tallystick_serving.server_metrics import ServerMetrics

BODY_COMPLETE: Final = "tallystick.body_complete"
"""Set in the scope by the HTTP protocol once it has received the whole body."""
_CLIENT_GONE: Final = 499
_ERROR: Final = 500
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE", "TRACE"})


class ClientGoneError(Exception):
    """The client disconnected before its body was complete."""


class AdmissionControl:
    """The outermost part of the app.

    Args:
        app: The app behind it.
        route_of: Gives the route of a request for the metrics: its path without values.
        limits: How many requests are worked on at once, how large a body is, how long it takes.
        metrics: Where requests are counted.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        route_of: Callable[[Scope], str],
        limits: Settings,
        metrics: ServerMetrics,
    ) -> None:
        self._app = app
        self._route_of = route_of
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0
        metrics.watch_in_flight(lambda: self._in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit a request and have the app answer it, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0
        is_admitted = False

        async def watched_send(message: Message) -> None:
            nonlocal status, is_admitted
            if not status:
                status = message["status"]
                if is_admitted:
                    is_admitted = False
                    self._in_flight -= 1
            await send(message)

        try:
            if scope["method"] not in _BODILESS:
                receive = _replay(await self._body(scope, receive), receive)
                self._admit()
                is_admitted = True
            await self._app(scope, receive, watched_send)
        except ClientGoneError:
            status = _CLIENT_GONE
        except Exception as error:  # noqa: BLE001 its answer is one of the server's
            if not _is_answered(error, status):
                await response_of(error)(scope, receive, watched_send)
        finally:
            if is_admitted:
                self._in_flight -= 1
            seconds = time.perf_counter() - started
            self._metrics.count_request(self._route_of(scope), status or _ERROR, seconds)

    def _admit(self) -> None:
        if self._in_flight >= self._limits.requests_in_flight_max:
            raise BusyError(
                "The server", f"{self._in_flight} requests are being worked on, the most it takes"
            )
        self._in_flight += 1

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        bytes_max = self._limits.request_bytes_max
        if scope.get(BODY_COMPLETE):  # nothing to wait for, so a timer would be a waste
            return await _read(receive, bytes_max)
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > bytes_max:
                raise TooLargeError(
                    f"The body has {int(value)} bytes; at most {bytes_max} are allowed."
                )
        try:
            async with asyncio.timeout(self._limits.request_body_timeout_s):
                return await _read(receive, bytes_max)
        except TimeoutError as error:
            raise TooSlowError(
                f"The body did not arrive within {self._limits.request_body_timeout_s:g} s."
            ) from error


def _is_answered(error: Exception, status: int) -> bool:
    """Whether the app has answered and logged an error that the framework raises once more.

    An error of an answer that has begun otherwise is raised.
    """
    if status not in {0, _ERROR}:
        raise error
    return status == _ERROR


async def _read(receive: Receive, bytes_max: int) -> bytes:
    parts, total, has_more = [], 0, True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        total += len(parts[-1])
        if total > bytes_max:
            raise TooLargeError(f"The body has more than the {bytes_max} bytes allowed.")
        has_more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A ``receive`` that gives a body that was read already."""
    parts: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return parts.pop() if parts else await receive()

    return receive_again
