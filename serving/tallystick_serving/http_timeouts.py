"""uvicorn's HTTP, but for connections that begin a request and do not go on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tallystick_serving.admission import WHOLE


class PatientProtocol(HttpToolsProtocol):
    """Closes connections that keep it waiting within a request.

    uvicorn bounds how long a connection may stay idle between two requests, but not how long it may
    take to send the first line and the headers, or the rest of a body that was answered already. A
    body that is not answered yet is bounded in the lane.

    Attributes:
        timeout_s: Seconds that it waits.
    """

    timeout_s: ClassVar[float] = 5.0
    _is_in_head = True
    _is_in_message = False
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Wait for the first head."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._is_in_head = self._is_in_message = False
        self._watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See what is awaited next."""
        super().data_received(data)
        self._watch()

    def on_message_begin(self) -> None:
        """Take the first byte of a request."""
        self._is_in_head = self._is_in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Take the last byte of a head."""
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take the last byte of a body."""
        self._is_in_message = False
        self.scope[WHOLE] = True  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See whether the rest of a body is awaited, which nobody reads."""
        super().on_response_complete()
        self._watch()

    def _watch(self) -> None:
        """Keep a timer while something is awaited; most arrives whole, and needs none."""
        is_answered = self.cycle is not None and self.cycle.response_complete
        is_awaited = self._is_in_head or (self._is_in_message and is_answered)
        if is_awaited and self._timer is None:
            self._timer = self.loop.call_later(self.timeout_s, self.transport.close)
        elif not is_awaited and self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient_protocol(timeout_s: float) -> type[PatientProtocol]:
    """The protocol with a timeout of its own."""
    return type("PatientProtocol", (PatientProtocol,), {"timeout_s": timeout_s})
