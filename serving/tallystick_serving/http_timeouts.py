"""uvicorn's HTTP protocol, with a timeout for requests that begin and do not go on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tallystick_serving.admission import BODY_COMPLETE


class TimeoutProtocol(HttpToolsProtocol):
    """Closes connections on which the rest of a request does not arrive in time.

    uvicorn bounds how long a connection may be idle between two requests, but not how long it may
    take to send its headers, or the rest of a body after the answer. Admission control bounds the
    time of a body before the answer.

    Attributes:
        timeout_s: Seconds that a connection may take.
    """

    timeout_s: ClassVar[float] = 5.0
    _awaits_headers = True
    _awaits_body = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the timer for the first headers."""
        super().connection_made(transport)
        self._set_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._awaits_headers = self._awaits_body = False
        self._set_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start or stop the timer."""
        super().data_received(data)
        self._set_timer()

    def on_message_begin(self) -> None:
        """The first byte of a request has arrived."""
        self._awaits_headers = self._awaits_body = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The headers are complete."""
        self._awaits_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The body is complete."""
        self._awaits_body = False
        self.scope[BODY_COMPLETE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timer if a rest of the body is still to come, which no handler reads."""
        super().on_response_complete()
        self._set_timer()

    def _set_timer(self) -> None:
        """Run a timer while data is awaited; most requests arrive in one piece and need none."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        is_awaited = self._awaits_headers or (self._awaits_body and is_answered)
        if is_awaited and self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.close)
        elif not is_awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None


def timeout_protocol(timeout_s: float) -> type[TimeoutProtocol]:
    """The protocol with a given timeout."""
    return type("TimeoutProtocol", (TimeoutProtocol,), {"timeout_s": timeout_s})
