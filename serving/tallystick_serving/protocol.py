"""uvicorn's HTTP, but for connections that begin a request and do not go on."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


def patient_protocol(head_timeout_s: float) -> type[HttpToolsProtocol]:
    """A protocol that closes connections whose request's head does not arrive in time.

    uvicorn bounds how long a connection may stay idle between two requests, but not how long it may
    take to send the first line and the headers; a body is bounded in the lane.

    Args:
        head_timeout_s: Seconds from the connection, or from a request's first byte.
    """

    class PatientProtocol(HttpToolsProtocol):
        _is_in_head = True
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._is_in_head = False
            self._watch()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_message_begin(self) -> None:
            self._is_in_head = True
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            super().on_headers_complete()

        def _watch(self) -> None:
            """Keep a timer while a head is awaited; most arrive whole, and need none."""
            if self._is_in_head and self._timer is None:
                self._timer = self.loop.call_later(head_timeout_s, self.transport.close)
            elif not self._is_in_head and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return PatientProtocol
