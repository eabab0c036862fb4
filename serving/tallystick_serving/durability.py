"""Waiting for what a request gave to a log to be on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tallystick_serving.error_responses import BusyError, NotLoggedError


class Acknowledgement:
    """What one request waits for; to be made within it.

    Args:
        what: The log in messages.
        timeout_s: Seconds that it may take.
    """

    def __init__(self, what: str, *, timeout_s: float) -> None:
        self._what = what
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._written: asyncio.Future[bool] = self._loop.create_future()

    def on_written(self, is_written: bool) -> None:  # noqa: FBT001 - the log's callback
        """Called by the log's thread."""
        self._loop.call_soon_threadsafe(self._set, is_written)

    async def of(self, append: Callable[[Callable[[bool], None]], bool]) -> None:
        """Hand rows to a log, and return once they are on disk.

        Args:
            append: Hands them over with the callback; returns whether they were taken.

        Raises:
            BusyError: The log's buffer is full, and none was taken.
            NotLoggedError: They could not be written in time.
        """
        if not append(self.on_written):
            raise BusyError(self._what, "its buffer is full, and none of these was taken")
        try:
            async with asyncio.timeout(self._timeout_s):
                is_written = await self._written
        except TimeoutError:
            is_written = False
        if not is_written:
            raise NotLoggedError(self._what, "it could not be written in time")

    def _set(self, is_written: bool) -> None:  # noqa: FBT001
        if not self._written.done():
            self._written.set_result(is_written)
